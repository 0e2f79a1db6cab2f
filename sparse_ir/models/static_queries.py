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
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from sparse_ir.errors import ConfigError, DamagedError, DataError
from sparse_ir.models.tokenization import (
    find_terms,
    id_limit,
    read_tokenizer,
    special_token_ids,
    tokenizer_hash,
    vocabulary_of,
    without_state,
)
from sparse_ir.storage import files

Convention = Literal["sentence-transformers", "opensearch"]
CONVENTIONS: tuple[str, ...] = get_args(Convention)
_MISSING_WEIGHT = {"sentence-transformers": 0.0, "opensearch": 1.0}
FORMAT = 1
_TOKENIZER_FILE = "tokenizer.json"
_WEIGHTS_FILE = "weights.safetensors"
QUERY_FILE = "query.json"
_WEIGHTS_NAME = "weight"
_PLAIN_TEXT = re.compile(r"[A-Za-z0-9 !\"'(),\-./:;?]*")
_PLAIN_WORD = re.compile(r"[a-z0-9]+|[^a-z0-9 ]")


class StaticQueryEncoder:
    """Query vectors by table look-up: each token that occurs in the query gets its fixed weight,
    once.

    ``weights`` is float32 ``[V]``, position = token id, every value finite. The conventions:

    * ``"sentence-transformers"``: as ``SparseStaticEmbedding`` does. Weights as they are, the
        unknown token and a
      special token written in the query included; ``max_length`` tokens of the query are read. A
          negative weight is
      refused, because an impact cannot be negative.
    * ``"opensearch"``: special tokens, the unknown token among them, weigh 0; other weights pass a
        ReLU. The special
      tokens that frame a text count in ``max_length``.

    Raises ``ConfigError`` for weights or options that do not fit the tokenizer.
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
        _check_options(convention, max_length)
        self._tokenizer = without_state(tokenizer)
        self._weights = _effective_weights(self._tokenizer, weights, convention)
        # 1 for a token that counts; one look-up needs no numpy
        self._counts = (self._weights > 0).tobytes()
        self._words = _whole_words(self._tokenizer)
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
            **({"origin": dict(origin)} if origin else {}),
        }

    @property
    def weights(self) -> np.ndarray:
        """The weights after the convention was applied: float32 ``[V]``, all >= 0, read-only."""
        return self._weights

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (int32, ascending, distinct) and weights (float32, > 0); two empty arrays for
        an empty query.
        """
        counts = self._counts
        token_ids = np.array(
            sorted({token_id for token_id in self._read(self._prompt + text) if counts[token_id]}),
            dtype=np.int32,
        )
        return token_ids, self._weights[token_ids]

    def _read(self, text: str) -> list[int]:
        """The token ids of a text up to the limit; those of a plain English one in no particular
        order.

        Most words of such a text are tokens themselves: they are looked up, and the tokenizer is
        asked for the others only. That takes a third of its time, and a search for 10 hits is so
        short that it can be felt.
        """
        if self._words is not None and _PLAIN_TEXT.fullmatch(text):
            words = _PLAIN_WORD.findall(text.lower())
            found = [self._words[word] for word in words if word in self._words]
            if len(found) < len(words):
                others = " ".join([word for word in words if word not in self._words])
                found += self._tokenizer.encode(others, add_special_tokens=False).ids
            if self._limit is None or len(found) <= self._limit:
                return found
        return self._tokenizer.encode(text, add_special_tokens=False).ids[: self._limit]

    def adapted(self, idf: np.ndarray, share: float) -> StaticQueryEncoder:
        """The same encoder with the weights ``w^(1 - share) x idf^share``, where ``w`` > 0.

        A model's weights tell how rare a token is in its training data; ``idf`` (float32 ``[V]``,
        from ``compute_idf(..., unseen=None)``) how rare it is in the collection that is searched.
        Raises ``ConfigError`` unless 0 <= share <= 1 and there is an IDF for each token.
        """
        if not 0 <= share <= 1:
            raise ConfigError(
                f"a share of {share} is not allowed for the collection's IDF; use 0 to 1"
            )
        if len(idf) < id_limit(self._tokenizer):
            raise ConfigError(
                f"{len(idf)} IDF values are too few for {id_limit(self._tokenizer)} token ids"
            )
        found = copy.copy(self)
        values = np.ones_like(self._weights)
        values[: len(idf)] = idf[: len(values)]
        found._weights = (
            self._weights ** (1 - share) * values**share * (self._weights > 0)
        ).astype(np.float32)
        found._weights.flags.writeable = False
        found._counts = (found._weights > 0).tobytes()
        found.fingerprint = {
            **self.fingerprint,
            "weights_sha256": _array_hash(found._weights),
            "origin": {**self.fingerprint.get("origin", {}), "collection_idf": share},
        }
        return found

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer's rules, without truncation and padding."""
        return self._tokenizer

    def find_terms(self, text: str) -> list[tuple[str, int, int]]:
        """The terms that stand in a text, of whatever length, each with its first character and the
        one after it.
        """
        return find_terms(self._tokenizer, self.vocabulary, text)

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json``, ``weights.safetensors`` and ``query.json`` (the fingerprint)
        into ``folder``.
        """
        from safetensors.numpy import save

        with files.atomic_writer(folder / _TOKENIZER_FILE) as stream:
            stream.write(self._tokenizer.to_str())
        with files.atomic_writer(folder / _WEIGHTS_FILE, "wb") as stream:
            stream.write(save({_WEIGHTS_NAME: self._weights}))
        files.write_json(folder / QUERY_FILE, {"format": FORMAT, **self.fingerprint})


def save_neural_pointer(folder: Path, fingerprint: Mapping[str, Any]) -> None:
    """Write the ``query.json`` of a neural query side: where its checkpoint is, and what it must
    be.
    """
    files.write_json(folder / QUERY_FILE, {"format": FORMAT, **fingerprint, "kind": "neural"})


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
    """A query encoder from ``{token: weight}``, read by one of the two conventions.

    A token of the tokenizer that the file does not name weighs 0.0 (``"sentence-transformers"``) or
    1.0 (``"opensearch"``). A string that is no token of the tokenizer would fall on the unknown
    token in both other libraries; here it raises ``DataError``, or with ``allow_unknown`` is left
    out and counted in ``fingerprint``. ``vocabulary_size`` widens the vector to a document side
    whose head is wider than its tokenizer.
    """
    _check_options(convention, max_length)
    table = _read_weight_table(path)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    unknown = [token for token in table if token not in vocabulary]
    if unknown and not allow_unknown:
        raise DataError(
            f"{path}: {len(unknown)} of {len(table)} keys are no tokens of this tokenizer (first: "
            f"{unknown[:3]}); "
            "allowed: token strings of the tokenizer, or allow_unknown=True to leave them out"
        )
    weights = np.zeros(max(vocabulary_size or 0, id_limit(tokenizer)), dtype=np.float32)
    weights[list(vocabulary.values())] = _MISSING_WEIGHT[convention]
    known = [(vocabulary[token], weight) for token, weight in table.items() if token in vocabulary]
    for token_id, weight in known:
        weights[token_id] = weight
    origin = {
        "idf_sha256": files.sha256_of_file(path),
        "known_tokens": len(known),
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
    """A query encoder that gives every token that occurs the weight 1 (special tokens by the
    convention).
    """
    weights = np.zeros(max(vocabulary_size or 0, id_limit(tokenizer)), dtype=np.float32)
    weights[list(tokenizer.get_vocab(with_added_tokens=True).values())] = 1.0
    return StaticQueryEncoder(
        tokenizer, weights, convention, max_length=max_length, name=name, prompt=prompt
    )


def _whole_words(tokenizer: Tokenizer) -> dict[str, int] | None:
    """Token id of each plain word that is a token, for a tokenizer of which this is known to be all
    that it does.

    That is BERT's for lower case: letters and digits are a word, any other sign is one by itself,
    and word pieces takes a word whole where the vocabulary has it. ``None`` for all others, and
    where an added token could stand in a plain text.
    """
    model, normalizer, added = (
        tokenizer.model,
        tokenizer.normalizer,
        tokenizer.get_added_tokens_decoder(),
    )
    if not (
        isinstance(model, WordPiece)
        and isinstance(normalizer, BertNormalizer)
        and normalizer.lowercase
        and isinstance(tokenizer.pre_tokenizer, BertPreTokenizer)
    ):
        return None
    if any(token.normalized or _PLAIN_TEXT.fullmatch(token.content) for token in added.values()):
        return None
    longest = model.max_input_chars_per_word
    return {
        token: token_id
        for token, token_id in tokenizer.get_vocab(with_added_tokens=False).items()
        if len(token) <= longest and _PLAIN_WORD.fullmatch(token)
    }


def load_static_side(folder: Path, record: Mapping[str, Any]) -> StaticQueryEncoder:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tokenizer = read_tokenizer(folder / _TOKENIZER_FILE)
        weights = load_file(folder / _WEIGHTS_FILE)[_WEIGHTS_NAME]
        encoder = StaticQueryEncoder(
            tokenizer,
            weights,
            record["convention"],
            max_length=record["max_length"],
            name=record["name"],
            prompt=record["prompt"],
            origin=record.get("origin"),
        )
    except (OSError, SafetensorError, KeyError, DataError, ConfigError) as error:
        raise DamagedError(
            f"{folder}: the query encoder stored there cannot be read ({error})"
        ) from error
    for key in ("tokenizer_sha256", "weights_sha256"):
        if encoder.fingerprint[key] != record.get(key):
            raise DamagedError(
                f"{folder}: {key} is {encoder.fingerprint[key]}, but {QUERY_FILE} "
                "promises "
                f"{record.get(key)}; restore the folder or save the query encoder "
                "again"
            )
    return encoder


def _check_options(convention: str, max_length: int | None) -> None:
    if convention not in CONVENTIONS:
        raise ConfigError(
            f"convention {convention!r} is unknown; allowed: {', '.join(CONVENTIONS)}"
        )
    if max_length is not None and max_length < 1:
        raise ConfigError(f"max_length is {max_length}; allowed: 1 or more, or None for no limit")


def _effective_weights(tokenizer: Tokenizer, weights: np.ndarray, convention: str) -> np.ndarray:
    if weights.ndim != 1 or len(weights) < id_limit(tokenizer):
        raise ConfigError(
            f"weights have the shape {weights.shape}; allowed: one value for each of "
            f"{id_limit(tokenizer)} token ids"
        )
    result = np.array(weights, dtype=np.float32)
    if not np.isfinite(result).all():
        raise ConfigError(f"weight of token id {int(np.argmin(np.isfinite(result)))} is not finite")
    if convention == "opensearch":
        np.maximum(result, 0.0, out=result)
        result[special_token_ids(tokenizer)] = 0.0
    elif (result < 0).any():
        worst = int(result.argmin())
        raise ConfigError(
            f"{int((result < 0).sum())} weights are negative (token id {worst}: {result[worst]}), "
            "which an impact "
            'index cannot hold; allowed: weights >= 0, or the convention "opensearch", which sets '
            "them to 0"
        )
    result.flags.writeable = False
    return result


def _limit(tokenizer: Tokenizer, convention: str, max_length: int | None) -> int | None:
    if max_length is None or convention == "sentence-transformers":
        return max_length
    return max(max_length - tokenizer.num_special_tokens_to_add(False), 0)


def _array_hash(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values, dtype="<f4").tobytes()).hexdigest()


def _read_weight_table(path: Path) -> dict[str, float]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error})") from error
    if not isinstance(table, dict) or not table:
        raise DataError(f"{path}: the top level is no filled object; allowed: {{token: weight}}")
    for token, weight in table.items():
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight):
            raise DataError(
                f"{path}: the weight of {token!r} is {weight!r}; allowed: a finite number"
            )
    return table
