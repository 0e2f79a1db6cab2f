"""Query encoders that need no neural network: a tokenizer, one weight per token, binary presence.

Nothing here loads torch or transformers. Two conventions exist for the same ``idf.json`` and give
different vectors; both are here under their own names (``CONVENTIONS``). A neural query side is
only pointed at from here and lives in ``encoder``. Token ids of queries and documents are the same
numbers: positions in ``vocabulary``.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from tokenizers import Tokenizer

from sparse_ir.errors import ConfigError, DamagedError, DataError
from sparse_ir.models.tokenization import (
    TermPlace,
    WordTable,
    find_terms,
    id_limit,
    read_tokenizer,
    special_token_ids,
    tokenizer_hash,
    vocabulary_of,
    without_state,
)
from sparse_ir.storage import files, reading

Convention = Literal["sentence-transformers", "opensearch"]
CONVENTIONS: tuple[str, ...] = get_args(Convention)
_MISSING_WEIGHT = {"sentence-transformers": 0.0, "opensearch": 1.0}
FORMAT = 1
QUERY_FILE = "query.json"
_TOKENIZER_FILE = "tokenizer.json"
_WEIGHTS_FILE = "weights.safetensors"
_WEIGHTS_NAME = "weight"


class StaticQueryEncoder:
    """Query vectors by table look-up: each token in the query gets its fixed weight, once.

    The conventions differ in what they do to the weights:

    * "sentence-transformers" works like ``SparseStaticEmbedding``. Weights stay as they are, also
      those of the unknown token and of a special token written in the query. ``max_length`` tokens
      of the query are read. A negative weight is refused, because an impact cannot be negative.
    * "opensearch" sets the weights of special tokens and of the unknown token to 0, and applies a
      ReLU to the others. The special tokens that frame a text count in ``max_length``.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        weights: np.ndarray,
        convention: Convention,
        *,
        max_length: int | None = None,
        name: str = "static",
        prompt: str = "",
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        """Make an encoder.

        Args:
            tokenizer: Its padding and truncation are ignored.
            weights: One finite weight per token id, float32 ``[V]``.
            convention: What is done to the weights.
            max_length: Tokens read of a query.
            name: What reports call this side.
            prompt: A text before each query.
            origin: Where the weights come from, for the fingerprint.

        Raises ``ConfigError`` for weights or options that do not fit the tokenizer.
        """
        _check_options(convention, max_length)
        self._tokenizer = without_state(tokenizer)
        self._weights = _effective_weights(self._tokenizer, weights, convention)
        self._counts = _counting_tokens(self._weights)
        self._words = WordTable.of(self._tokenizer)
        self._prompt = prompt
        self._limit = _limit(self._tokenizer, convention, max_length)
        self.vocabulary: list[str] = vocabulary_of(self._tokenizer, len(self._weights))
        self.fingerprint: dict[str, Any] = {
            "kind": "static",
            "name": name,
            "convention": convention,
            "max_length": max_length,
            "prompt": prompt,
            "tokenizer_sha256": tokenizer_hash(self._tokenizer),
            "weights_sha256": _array_hash(self._weights),
        }
        if origin:
            self.fingerprint["origin"] = dict(origin)

    @property
    def weights(self) -> np.ndarray:
        """The weights under the convention, float32 ``[V]``, all >= 0, read-only."""
        return self._weights

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer's rules, without truncation and padding."""
        return self._tokenizer

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Return ascending, distinct int32 token ids and their float32 weights > 0."""
        counts = self._counts
        ids = {token_id for token_id in self._read(self._prompt + text) if counts[token_id]}
        token_ids = np.array(sorted(ids), dtype=np.int32)
        return token_ids, self._weights[token_ids]

    def _read(self, text: str) -> list[int]:
        """Return the token ids of a text up to the limit, not always in their order."""
        if self._words is not None:
            ids = self._words.read(text)
            if ids is not None and (self._limit is None or len(ids) <= self._limit):
                return ids
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids[: self._limit]

    def adapted(self, idf: np.ndarray, share: float) -> StaticQueryEncoder:
        """Return an encoder with the weights ``w^(1 - share) x idf^share`` where ``w`` > 0.

        A model's weights say how rare a token is in its training data; ``idf`` (float32 ``[V]``,
        from ``compute_idf(..., unseen=None)``) says how rare it is in the collection to search.
        Raises ``ConfigError`` unless 0 <= share <= 1 and there is an IDF for each token.
        """
        if not 0 <= share <= 1:
            raise ConfigError(f"the collection's share of the IDF is {share}; it must be 0 to 1")
        size = id_limit(self._tokenizer)
        if len(idf) < size:
            raise ConfigError(f"there are {len(idf)} IDF values; there must be {size}")
        values = np.ones_like(self._weights)
        values[: len(idf)] = idf[: len(values)]
        blended = self._weights ** (1 - share) * values**share * (self._weights > 0)
        weights = blended.astype(np.float32)
        weights.flags.writeable = False
        adapted = copy.copy(self)
        adapted._weights = weights
        adapted._counts = _counting_tokens(weights)
        origin = dict(self.fingerprint.get("origin", {}))
        origin["collection_idf"] = share
        changes = {"weights_sha256": _array_hash(weights), "origin": origin}
        adapted.fingerprint = self.fingerprint | changes
        return adapted

    def find_terms(self, text: str) -> list[TermPlace]:
        """Return the terms in a text of any length, with the place of each."""
        return find_terms(self._tokenizer, self.vocabulary, text)

    def save(self, folder: Path) -> None:
        """Write tokenizer, weights and ``query.json`` (the fingerprint) into ``folder``."""
        from safetensors.numpy import save

        with files.atomic_writer(folder / _TOKENIZER_FILE) as stream:
            stream.write(self._tokenizer.to_str())
        with files.atomic_writer(folder / _WEIGHTS_FILE, "wb") as stream:
            stream.write(save({_WEIGHTS_NAME: self._weights}))
        files.write_json(folder / QUERY_FILE, {"format": FORMAT} | self.fingerprint)


def save_neural_pointer(folder: Path, fingerprint: Mapping[str, Any]) -> None:
    """Write the ``query.json`` of a neural query side: where its checkpoint is, and its hashes."""
    record = {"format": FORMAT} | dict(fingerprint) | {"kind": "neural"}
    files.write_json(folder / QUERY_FILE, record)


def from_idf_json(
    path: Path,
    tokenizer: Tokenizer,
    convention: Convention,
    *,
    max_length: int | None = None,
    vocabulary_size: int | None = None,
    name: str = "idf",
    prompt: str = "",
    allow_unknown: bool = False,
) -> StaticQueryEncoder:
    """Make a query encoder from ``{token: weight}``, read by one of the two conventions.

    A token that the file does not name weighs 0.0 ("sentence-transformers") or 1.0 ("opensearch").
    Both other libraries give a string that is not a token to the unknown token.

    Args:
        path: The file.
        tokenizer: The tokenizer of the model.
        convention: How the weights are read.
        max_length: Tokens read of a query.
        vocabulary_size: The width of the vectors, for an output layer wider than the tokenizer.
        name: What reports call this side.
        prompt: A text before each query.
        allow_unknown: Leave out strings that are not tokens, and count them in the fingerprint.

    Raises ``DataError`` for a broken file, or one with strings that are not tokens.
    """
    _check_options(convention, max_length)
    table = _read_weight_table(path)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    unknown = [token for token in table if token not in vocabulary]
    if unknown and not allow_unknown:
        raise DataError(
            f"{path}: {len(unknown)} of {len(table)} keys are not tokens of this tokenizer (first: "
            f"{unknown[:3]}); they must be token strings, or allow_unknown=True leaves them out"
        )
    weights = np.zeros(max(vocabulary_size or 0, id_limit(tokenizer)), dtype=np.float32)
    weights[list(vocabulary.values())] = _MISSING_WEIGHT[convention]
    for token, weight in table.items():
        if token in vocabulary:
            weights[vocabulary[token]] = weight
    origin = {
        "idf_sha256": files.sha256_of_file(path),
        "known_tokens": len(table) - len(unknown),
        "unknown_tokens": len(unknown),
    }
    return StaticQueryEncoder(
        tokenizer,
        weights,
        convention,
        max_length=max_length,
        name=name,
        prompt=prompt,
        origin=origin,
    )


def ones(
    tokenizer: Tokenizer,
    convention: Convention = "opensearch",
    *,
    max_length: int | None = None,
    vocabulary_size: int | None = None,
    name: str = "ones",
    prompt: str = "",
) -> StaticQueryEncoder:
    """Make a query encoder that gives each token of a query the weight 1.

    The convention decides on special tokens.
    """
    weights = np.zeros(max(vocabulary_size or 0, id_limit(tokenizer)), dtype=np.float32)
    weights[list(tokenizer.get_vocab(with_added_tokens=True).values())] = 1.0
    return StaticQueryEncoder(
        tokenizer, weights, convention, max_length=max_length, name=name, prompt=prompt
    )


def load_static_side(folder: Path, record: Mapping[str, Any]) -> StaticQueryEncoder:
    """Load what ``StaticQueryEncoder.save`` wrote; ``record`` is its ``query.json``.

    Raises ``DamagedError`` when a file is broken or was changed.
    """
    stored = reading.load_tensors(folder / _WEIGHTS_FILE)
    try:
        tokenizer = read_tokenizer(folder / _TOKENIZER_FILE)
        encoder = StaticQueryEncoder(
            tokenizer,
            stored[_WEIGHTS_NAME],
            record["convention"],
            max_length=record["max_length"],
            name=record["name"],
            prompt=record["prompt"],
            origin=record.get("origin"),
        )
    except (KeyError, DataError, ConfigError) as error:
        raise DamagedError(
            f"{folder}: the query encoder stored there cannot be read ({error})"
        ) from error
    for key in ("tokenizer_sha256", "weights_sha256"):
        if encoder.fingerprint[key] != record.get(key):
            raise DamagedError(
                f"{folder}: {key} is {encoder.fingerprint[key]}, but {QUERY_FILE} promises "
                f"{record.get(key)}; restore the folder or save the query encoder again"
            )
    return encoder


def _check_options(convention: str, max_length: int | None) -> None:
    if convention not in CONVENTIONS:
        choices = " or ".join(CONVENTIONS)
        raise ConfigError(f"convention is {convention!r}; it must be {choices}")
    if max_length is not None and max_length < 1:
        raise ConfigError(f"max_length is {max_length}; it must be at least 1, or None")


def _effective_weights(tokenizer: Tokenizer, weights: np.ndarray, convention: str) -> np.ndarray:
    """Return a read-only copy of the weights under a convention."""
    if weights.ndim != 1 or len(weights) < id_limit(tokenizer):
        raise ConfigError(
            f"weights have the shape {weights.shape}; there must be one value for each of "
            f"{id_limit(tokenizer)} token ids"
        )
    result = np.array(weights, dtype=np.float32)
    if not np.isfinite(result).all():
        first = int(np.argmin(np.isfinite(result)))
        raise ConfigError(f"the weight of token id {first} is {result[first]}; it must be finite")
    if convention == "opensearch":
        np.maximum(result, 0.0, out=result)
        result[special_token_ids(tokenizer)] = 0.0
    elif (result < 0).any():
        worst = int(result.argmin())
        raise ConfigError(
            f"{int((result < 0).sum())} weights are negative (token id {worst}: {result[worst]}), "
            "which an impact index cannot hold; they must be >= 0, or the convention must be "
            '"opensearch", which sets them to 0'
        )
    result.flags.writeable = False
    return result


def _counting_tokens(weights: np.ndarray) -> bytes:
    """Return 1 for each token with a weight; looking up a byte is faster than in numpy."""
    return (weights > 0).tobytes()


def _limit(tokenizer: Tokenizer, convention: str, max_length: int | None) -> int | None:
    """Return how many tokens of a query are read, special tokens not counted."""
    if max_length is None or convention == "sentence-transformers":
        return max_length
    frame = int(tokenizer.num_special_tokens_to_add(False))
    return max(max_length - frame, 0)


def _array_hash(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values, dtype="<f4").tobytes()).hexdigest()


def _read_weight_table(path: Path) -> dict[str, float]:
    with reading.reading(path, "JSON", DataError):
        table = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(table, dict) or not table:
        raise DataError(f"{path}: the top level must be a non-empty object {{token: weight}}")
    for token, weight in table.items():
        is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not is_number or not math.isfinite(weight):
            raise DataError(
                f"{path}: the weight of {token!r} is {weight!r}; it must be a finite number"
            )
    return table
