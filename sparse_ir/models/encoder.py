"""Documents and neural queries through a network into sparse vectors.

``w_t = f(max over tokens of score_t)`` with ``f = log1p(relu)`` (SPLADE v2, arXiv 2109.10086) or
its double logarithm. The network's output layer is joined with the pooling (``pooling.Head``), so
that ``[B, L, V]`` never exists. Only non-zeros leave this module.

B texts of a batch, L tokens of a text, P of them pooled, H hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from scipy import sparse
from tokenizers import Tokenizer
from torch import Tensor

from sparse_ir.errors import ConfigError, IndexMismatch
from sparse_ir.models import network as networks
from sparse_ir.models import static_queries, tokenization
from sparse_ir.models.batching import SparseVector, by_length, rows_to_csr
from sparse_ir.models.checkpoint import (
    Checkpoint,
    Layout,
    NeuralSide,
    StaticSide,
    open_checkpoint,
    side_hash,
)
from sparse_ir.models.checkpoint_queries import StaticSideRequest, load_static_queries
from sparse_ir.models.decoder_settings import DecoderSettings
from sparse_ir.models.encoder_options import (
    SCREENED,
    EncoderOptions,
    Precision,
    device_kind,
    make_options,
)
from sparse_ir.models.families.base import SaveRequest, Vocabulary
from sparse_ir.models.interfaces import QueryEncoder
from sparse_ir.models.network import SparseNetwork
from sparse_ir.models.pooling import TOKEN_BLOCK, Head, fold, group_sizes, keep_heaviest
from sparse_ir.models.reading import TextReader
from sparse_ir.models.static_queries import Convention
from sparse_ir.models.tokenization import TermPlace, Tokens

QueryKind = Literal["neural", "static", "ones"]
_EMPTY: SparseVector = (np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32))
_CHECKED_FACTS = (
    "files_sha256",
    "tokenizer_sha256",
    "pooling",
    "activation",
    "max_length",
    "prompt",
)


@dataclass(frozen=True)
class _Parts:
    """What all encoders of one loaded network share, and how one side reads texts with it."""

    checkpoint: Checkpoint
    side: NeuralSide
    network: SparseNetwork
    head: Head
    vocabulary: Vocabulary
    options: EncoderOptions
    reader: TextReader
    max_length: int | None

    def for_side(self, side: NeuralSide) -> _Parts:
        """Return the parts for another template and limit; the network is shared."""
        limit = networks.usable_max_length(side, self.network, self.options.max_length)
        reader = side.family.make_reader(self.network.tokenizer, side, limit)
        return replace(self, side=side, reader=reader, max_length=limit)


class Encoder:
    """A language model as a learned-sparse encoder, made by ``Encoder.load``."""

    def __init__(self, parts: _Parts, prompt: str) -> None:
        self._parts = parts
        self._prompt = prompt
        self._network = parts.network
        self._head = parts.head
        self._options = parts.options
        self.vocabulary: list[str] = parts.vocabulary.names
        device = parts.options.device
        self._column_of_token_V: Tensor | None = None
        if parts.vocabulary.column_of_token is not None:
            self._column_of_token_V = torch.from_numpy(parts.vocabulary.column_of_token).to(device)
        dropped: list[int] = []
        if parts.options.convention == "opensearch":
            dropped = tokenization.special_token_ids(parts.network.tokenizer)
        self._dropped = torch.tensor(dropped, dtype=torch.long, device=device)
        self.fingerprint: dict[str, Any] = _fingerprint(parts, prompt)

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        precision: Precision | Literal["auto"] = "float32",
        device: str | None = None,
        max_length: int | None = None,
        top_k: int | None = None,
        min_weight: float = 0.0,
        tokens_per_batch: int | None = None,
        convention: Convention = "sentence-transformers",
        allow_pickle: bool = False,
        decoder: DecoderSettings | None = None,
    ) -> Encoder:
        """Load the document side of a local folder or of a hub model.

        Args:
            model: A folder, or a name on the hub.
            revision: The commit, branch or tag of a hub model.
            precision: "float32" and "bfloat16" name the type of the network and of the product with
                the output layer. "int8" runs the network in bfloat16, finds the few terms that can
                be active by an 8-bit product, and computes those in float32. "float32-int8" does
                the same with the network in float32 and gives the vectors of "float32". Screening
                never changes a vector (``screening.Screen`` has the bound). It pays on CPUs with
                8-bit dot products (VNNI, AMX); sum pooling ignores it. "8bit" and "4bit" store a
                decoder's weights in that many bits (bitsandbytes). "auto" is
                ``encoder_options.fastest_precision``; the fingerprint names what it chose.
            device: "cpu", "cuda" ...; by default an accelerator if there is one.
            max_length: Tokens read of a text, special tokens included; by default what the
                checkpoint states.
            top_k: The largest number of terms per text, by default the checkpoint's
                ``max_active_dims``, else all. The heaviest stay; among equal weights the smaller
                token id.
            min_weight: Smaller weights are left out.
            tokens_per_batch: Memory against speed; vectors change by rounding only.
            convention: "opensearch" leaves special tokens out of the vectors, as that project does.
            allow_pickle: Read an older ``pytorch_model.bin`` if there is no safetensors file.
            decoder: How a decoder is read, instead of its ``sparse_ir.json``. Prompts and ``top_k``
                that it leaves out come from a folder of sentence-transformers.

        Raises ``ModelError`` for a checkpoint that cannot be used, ``ConfigError`` for an option.
        """
        options = make_options(
            precision,
            device,
            max_length=max_length,
            top_k=top_k,
            min_weight=min_weight,
            tokens_per_batch=tokens_per_batch,
            convention=convention,
            allow_pickle=allow_pickle,
            decoder=decoder,
        )
        checkpoint = open_checkpoint(
            model, revision=revision, allow_pickle=allow_pickle, decoder=decoder
        )
        parts = _load_parts(checkpoint, checkpoint.document, options)
        return _make_encoder(parts, checkpoint.document_prompt)

    def encode(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> sparse.csr_matrix:
        """Return the vectors of texts, CSR float32 ``[N, V]`` with sorted int32 indices.

        All weights are above 0; row = position in ``texts``. An empty text has what the model gives
        to its special tokens alone, or nothing where these are not pooled. ``progress(n)`` is
        called with the number of texts just done. Raises ``DataError`` for an item that is not a
        string.
        """
        rows = [_EMPTY] * len(texts)
        tokens = self.tokenize(texts)
        lengths = np.array([_network_length(text) for text in tokens], dtype=np.int64)
        readable = np.flatnonzero(lengths)
        with torch.inference_mode():
            for batch in by_length(lengths[readable], self._options.tokens_per_batch):
                positions = readable[batch]
                vectors = self._encode_batch([tokens[position] for position in positions])
                for position, vector in zip(positions, vectors, strict=True):
                    rows[position] = vector
                if progress is not None:
                    progress(len(positions))
        if progress is not None and len(readable) < len(texts):
            progress(len(texts) - len(readable))
        return rows_to_csr(rows, len(self.vocabulary))

    def tokenize(self, texts: Sequence[str], *, whole: bool = False) -> list[Tokens]:
        """Return the tokens of each text, with the prompt before it.

        Texts are cut to ``max_length``, or not at all if ``whole``.
        """
        reader = self._parts.reader
        if whole:
            side = self._parts.side
            reader = side.family.make_reader(self._network.tokenizer, side, None)
        return networks.read_texts(reader, texts, self._prompt)

    def find_terms(self, text: str) -> list[TermPlace]:
        """Return the terms in a text of any length, with the place of each."""
        names = self.vocabulary
        if self._column_of_token_V is not None:
            names = [names[column] for column in self._column_of_token_V.tolist()]
        return tokenization.find_terms(self._network.tokenizer, names, text)

    def token_scores(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Return what each pooled token of a text says alone.

        The first array has the column of each token, int32 ``[P]``; the second the scores, float32
        ``[P, V]``. Scores are taken before the activation (``activate`` gives weights), under sum
        pooling after it. The vector of the text is their maximum or sum over tokens.
        """
        tokens = self.tokenize([text])[0]
        if not _network_length(tokens):
            no_scores = np.empty((0, len(self.vocabulary)), dtype=np.float32)
            return np.empty(0, dtype=np.int32), no_scores
        with torch.inference_mode():
            hidden_BPH, lengths = self._network.pooled_states([tokens])
            one_each = np.ones(lengths[0], dtype=np.int64)
            scores_PV = self._scores(hidden_BPH[0, : lengths[0], None], one_each)
        columns = tokens.pooled_ids
        if self._column_of_token_V is not None:
            columns = self._column_of_token_V.cpu().numpy()[columns].astype(np.int32)
        return columns, scores_PV.cpu().numpy()

    def activate(self, scores: np.ndarray) -> np.ndarray:
        """Return the float32 weights of the scores of ``token_scores``."""
        weights: np.ndarray = self._head.activate_pooled(torch.from_numpy(scores)).numpy()
        return weights

    def weights_of(self, hidden_BPH: Tensor, lengths: np.ndarray) -> np.ndarray:
        """Return the vectors of pooled states, float32 ``[B, V]``, uncut."""
        scores_BV = self._scores(hidden_BPH, lengths)
        weights: np.ndarray = self._head.activate_pooled(scores_BV).cpu().numpy()
        return weights

    def with_prompt(self, prompt: str) -> Encoder:
        """Return an encoder with another prompt before each text; the network is shared."""
        return Encoder(self._parts, prompt)

    def query_encoder(
        self,
        kind: QueryKind | None = None,
        *,
        idf: Path | None = None,
        allow_unknown: bool = False,
    ) -> QueryEncoder:
        """Return the query side: by default the checkpoint's own, else another of its vocabulary.

        Args:
            kind: "neural" reads queries with a network; "static" looks up the checkpoint's token
                weights or ``idf.json`` by this encoder's ``convention``; "ones" counts presence.
            idf: A file that gives the token weights instead of the checkpoint.
            allow_unknown: Ignore strings in ``idf.json`` that are not tokens of the model.

        Raises ``ModelError`` when the checkpoint has no such side, ``ConfigError`` for options that
        do not fit each other.
        """
        checkpoint = self._parts.checkpoint
        side = checkpoint.query
        if kind is None:
            is_static = isinstance(side, StaticSide) or idf is not None
            kind = "static" if is_static else "neural"
        self._check_query_kind(kind, idf)
        if kind == "neural":
            neural = side if isinstance(side, NeuralSide) else self._parts.side
            return NeuralQueryEncoder(self._with_side(neural, checkpoint.query_prompt))
        if kind == "ones":
            return static_queries.ones(
                self._network.tokenizer,
                self._options.convention,
                max_length=self._parts.max_length,
                vocabulary_size=len(self.vocabulary),
                name=f"{checkpoint.name} ones",
                prompt=checkpoint.query_prompt,
            )
        return load_static_queries(self._static_request(allow_unknown), idf)

    def _check_query_kind(self, kind: str, idf: Path | None) -> None:
        if kind not in get_args(QueryKind):
            choices = ", ".join(get_args(QueryKind))
            raise ConfigError(f"query side {kind!r} is unknown; it must be {choices}")
        if kind != "neural" and self._column_of_token_V is not None:
            raise ConfigError(
                f"a query side of kind {kind!r} does not fold tokens, and this model does "
                "(fold_tokens); the kind must be 'neural'"
            )
        if kind != "static" and idf is not None:
            raise ConfigError(f"a query side of kind {kind!r} takes no idf; drop one of the two")

    def _static_request(self, allow_unknown: bool) -> StaticSideRequest:
        return StaticSideRequest(
            self._parts.checkpoint,
            self._network.hf_tokenizer,
            self._options.convention,
            len(self.vocabulary),
            allow_unknown,
            self._options.allow_pickle,
        )

    def save(
        self,
        folder: str | Path,
        *,
        layout: Layout | None = None,
        query_weights: np.ndarray | None = None,
    ) -> None:
        """Write the model in one of its family's layouts.

        Args:
            folder: Appears whole or stays as it was.
            layout: "sparse-encoder", "router" (with a static query side) or "masked-lm" (network
                and tokenizer only) for a masked language model; "causal-lm" for a decoder, with its
                settings beside it and an adapter merged. By default a router when there are token
                weights for queries, else a sparse-encoder.
            query_weights: Token weights for queries, float32 ``[V]``; by default the checkpoint's.

        Raises ``ConfigError`` for a layout that the family does not have, or when the network is
        not in float32 any more.
        """
        if self._options.trunk_dtype != torch.float32:
            raise ConfigError(
                f"precision {self._options.precision!r} has rounded the network; to be saved it "
                "must be loaded with 'float32'"
            )
        if layout not in (None, *get_args(Layout)):
            choices = ", ".join(get_args(Layout))
            raise ConfigError(f"layout {layout!r} is unknown; it must be {choices}")
        parts = self._parts
        chosen = parts.side.family.choose_layout(
            layout,
            weights_given=query_weights is not None,
            weights_stored=isinstance(parts.checkpoint.query, StaticSide),
        )
        if chosen != "router":
            query_weights = None
        elif query_weights is None:
            query_weights = load_static_queries(self._static_request(False)).weights
        with self._network.whole() as model:
            request = SaveRequest(
                model=model,
                hf_tokenizer=self._network.hf_tokenizer,
                side=parts.side,
                layout=chosen,
                max_length=parts.max_length,
                prompts=parts.checkpoint.prompts,
                top_k=self._options.top_k,
                query_weights=query_weights,
            )
            parts.side.family.save(Path(folder), request)

    @property
    def network(self) -> SparseNetwork:
        """The opened network, for those who examine it."""
        return self._network

    @property
    def checkpoint(self) -> Checkpoint:
        """Where the model came from, and what its folder holds."""
        return self._parts.checkpoint

    @property
    def options(self) -> EncoderOptions:
        """The options in force, defaults filled in."""
        return self._options

    def _encode_batch(self, tokens: Sequence[Tokens]) -> Iterator[SparseVector]:
        hidden_BPH, lengths = self._network.pooled_states(tokens)
        start = 0
        for size in group_sizes(lengths, TOKEN_BLOCK[device_kind(self._options.device)]):
            group = lengths[start : start + size]
            states_BPH = hidden_BPH[start : start + size, : int(group.max())]
            yield from self._vectors(self._scores(states_BPH, group))
            start += size

    def _scores(self, hidden_BPH: Tensor, lengths: np.ndarray) -> Tensor:
        scores_BV = self._head.pool(hidden_BPH, lengths)
        if len(self._dropped):
            scores_BV[:, self._dropped] = 0.0
        if self._column_of_token_V is None:
            return scores_BV
        return fold(scores_BV, self._column_of_token_V, len(self.vocabulary))

    def _vectors(self, scores_BV: Tensor) -> Iterator[SparseVector]:
        """Yield the vector of each text; only scores above zero leave the device."""
        texts, token_ids = torch.nonzero(scores_BV > 0, as_tuple=True)
        weights = self._head.activate_pooled(scores_BV[texts, token_ids]).float().cpu().numpy()
        ids = token_ids.to(torch.int32).cpu().numpy()
        start = 0
        for count in torch.bincount(texts, minlength=len(scores_BV)).tolist():
            end = start + count
            yield keep_heaviest(
                ids[start:end], weights[start:end], self._options.top_k, self._options.min_weight
            )
            start = end

    def _with_side(self, side: NeuralSide, prompt: str) -> Encoder:
        """Return the encoder of another side, which shares the network if it is the same."""
        if _same_network(side, self._parts.side):
            return _make_encoder(self._parts.for_side(side), prompt)
        return _make_encoder(_load_parts(self._parts.checkpoint, side, self._options), prompt)


class NeuralQueryEncoder:
    """Queries read by a network, one text at a time: a ``QueryEncoder``."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.vocabulary: list[str] = encoder.vocabulary
        self.fingerprint: dict[str, Any] = encoder.fingerprint | {"side": "query"}

    def encode(self, text: str) -> SparseVector:
        """Return ascending int32 token ids and their float32 weights > 0."""
        row = self._encoder.encode([text])
        return row.indices, row.data

    def encode_batch(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """Return the vectors of many queries, CSR float32 ``[N, V]``."""
        return self._encoder.encode(texts)

    def find_terms(self, text: str) -> list[TermPlace]:
        """Return the terms in a text of any length, with the place of each."""
        return self._encoder.find_terms(text)

    @property
    def encoder(self) -> Encoder:
        """The encoder that reads the queries."""
        return self._encoder

    def save(self, folder: Path) -> None:
        """Write a pointer to the checkpoint: place, hashes and options, but not the weights."""
        checkpoint = self._encoder.checkpoint
        options = self._encoder.options
        place = str(checkpoint.folder)
        if checkpoint.revision:
            place = checkpoint.name
        pointer = {
            "model": place,
            "tokens_per_batch": options.tokens_per_batch,
            "allow_pickle": options.allow_pickle,
        }
        static_queries.save_neural_pointer(folder, self.fingerprint | pointer)


def load_tokenizer(model: str | Path, *, revision: str | None = None) -> Tokenizer:
    """Return the tokenizer of a model's document side, without loading the network."""
    side = open_checkpoint(model, revision=revision, allow_pickle=True).document
    hf_tokenizer = tokenization.load_hf_tokenizer(side.tokenizer_folder, side.folder)
    return tokenization.rules_of(hf_tokenizer, side.lowercase)


def load_neural_query_encoder(
    record: Mapping[str, Any], *, model: str | Path | None = None
) -> NeuralQueryEncoder:
    """Return the query encoder that a pointer describes.

    ``model`` is another place of the same checkpoint. Raises ``IndexMismatch`` when the checkpoint
    there is not the recorded one.
    """
    place = record["model"] if model is None else model
    revision = record["revision"]
    if Path(place).is_dir():
        revision = None
    encoder = Encoder.load(
        place,
        revision=revision,
        precision=record["precision"],
        max_length=record["max_length_asked"],
        top_k=record["top_k"],
        min_weight=record["min_weight"],
        tokens_per_batch=record["tokens_per_batch"],
        convention=record["convention"],
        allow_pickle=record["allow_pickle"],
        decoder=DecoderSettings(**record["decoder"]) if "decoder" in record else None,
    )
    query_encoder = encoder.query_encoder("neural")
    assert isinstance(query_encoder, NeuralQueryEncoder)
    for key in _CHECKED_FACTS:
        actual = query_encoder.fingerprint[key]
        if record.get(key) != actual:
            raise IndexMismatch(
                f"{place} is not the query model that was recorded: {key} is {actual!r}, but it "
                f"must be {record.get(key)!r}; give the right model or revision"
            )
    return query_encoder


def _load_parts(checkpoint: Checkpoint, side: NeuralSide, options: EncoderOptions) -> _Parts:
    """Load a network for encoding."""
    hf_tokenizer = tokenization.load_hf_tokenizer(side.tokenizer_folder, side.folder)
    family = side.family
    network = networks.open_network(side, family.load(side, options), hf_tokenizer)
    limit = networks.usable_max_length(side, network, options.max_length)
    family.place(network.model, options)
    with torch.no_grad():
        output = network.output(network.shift, device=options.device, dtype=options.head_dtype)
    head = Head(
        output,
        pooling=side.pooling,
        activation=side.activation,
        min_weight=options.min_weight,
        screened=options.precision in SCREENED,
    )
    if options.top_k is None:
        options = replace(options, top_k=checkpoint.top_k)
    return _Parts(
        checkpoint,
        side,
        network,
        head,
        family.vocabulary(network.tokenizer, head.size),
        options,
        family.make_reader(network.tokenizer, side, limit),
        limit,
    )


def _make_encoder(parts: _Parts, prompt: str) -> Encoder:
    """Make an encoder, and find out at once whether a prompt leaves room for a text."""
    parts.reader.read(["a"], prompt)
    return Encoder(parts, prompt)


def _same_network(one: NeuralSide, other: NeuralSide) -> bool:
    """Return whether two sides differ at most in template and limit."""
    return replace(one, max_length=None, template="") == replace(
        other, max_length=None, template=""
    )


def _network_length(text: Tokens) -> int:
    """Return how many tokens the network reads of a text, 0 when none of them is pooled."""
    return len(text.ids) if len(text.pooled_ids) else 0


def _fingerprint(parts: _Parts, prompt: str) -> dict[str, Any]:
    checkpoint = parts.checkpoint
    side = parts.side
    options = parts.options
    facts = {
        "kind": "neural",
        "side": "document",
        "name": checkpoint.name,
        "revision": checkpoint.revision,
        "layout": checkpoint.layout,
        "files_sha256": side_hash(side, allow_pickle=options.allow_pickle),
        "tokenizer_sha256": tokenization.tokenizer_hash(parts.network.tokenizer),
        "vocabulary_size": parts.head.size,
        "pooling": side.pooling,
        "activation": side.activation,
        "prompt": prompt,
        "max_length": parts.max_length,
        "max_length_asked": options.max_length,
        "precision": options.precision,
        "convention": options.convention,
        "top_k": options.top_k,
        "min_weight": options.min_weight,
    }
    return facts | side.family.fingerprint(side)
