"""Documents (and neural queries) through a masked language model or a decoder into sparse vectors.

``w_t = f(max over tokens of logit_t)`` with ``f = log1p(relu)`` (SPLADE v2, arXiv 2109.10086) or
its double logarithm. The network's output layer is taken off and left to ``heads``, so that ``[B,
L, V]`` never exists. Only non-zeros leave this module.

B texts of a batch, L tokens of a text, T tokens of a product, H hidden width, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from scipy import sparse
from tokenizers import Tokenizer
from torch import Tensor

from sparse_ir.errors import ConfigError, IndexMismatch, ModelError
from sparse_ir.models import (
    attention,
    checkpoint_writer,
    decoders,
    loading,
    static_queries,
    tokenization,
)
from sparse_ir.models.checkpoint import (
    Checkpoint,
    Layout,
    NeuralSide,
    StaticSide,
    open_checkpoint,
    read_static_weights,
    side_hash,
)
from sparse_ir.models.checkpoint_writer import ClassNames
from sparse_ir.models.decoder_settings import DecoderSettings
from sparse_ir.models.interfaces import QueryEncoder
from sparse_ir.models.loading import Bend
from sparse_ir.models.network import (
    SCREENED,
    TRUNK_DTYPE,
    Network,
    Options,
    Precision,
    device_kind,
    fastest_precision,
    load_model,
    make_head,
    reading_fields,
    usable_max_length,
)
from sparse_ir.models.pooling import TOKEN_BLOCK, Row, group_sizes, keep_heaviest
from sparse_ir.models.static_queries import CONVENTIONS, Convention, StaticQueryEncoder
from sparse_ir.models.tokenization import Tokens

_TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 32768}


class Encoder:
    """A language model as a learned-sparse encoder. Made by ``Encoder.load``, not by its
    constructor.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        side: NeuralSide,
        prompt: str,
        network: Network,
        options: Options,
    ) -> None:
        self._checkpoint = checkpoint
        self._side = side
        self._prompt = prompt
        self._network = network
        self._options = options
        self.vocabulary: list[str]
        self._terms: Tensor | None = None
        if side.decoder is not None and side.decoder.fold_tokens:
            self.vocabulary, terms_V = decoders.fold_vocabulary(
                network.tokenizer, network.head.size
            )
            self._terms = torch.from_numpy(terms_V).to(options.device)
        else:
            self.vocabulary = tokenization.vocabulary_of(network.tokenizer, network.head.size)
        self._dropped = torch.tensor(
            tokenization.special_token_ids(network.tokenizer)
            if options.convention == "opensearch"
            else [],
            dtype=torch.long,
            device=options.device,
        )
        self.fingerprint: dict[str, Any] = _fingerprint(checkpoint, side, prompt, network, options)

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
        """The document side of a local folder or of a hub model.

        * ``precision``: ``"float32"`` and ``"bfloat16"`` name network and output product.
            ``"int8"`` runs the network
          in bfloat16, finds by an 8-bit product the few terms that can be active at all, and
              computes those in
          float32; ``"float32-int8"`` does so with the network in float32 and gives the vectors of
              ``"float32"``.
          Screening never changes a vector (bound: ``heads``); it pays on CPUs with 8-bit dot
              products (VNNI, AMX),
          and sum pooling does without it. ``"8bit"`` and ``"4bit"`` keep a decoder's weights so
              (bitsandbytes).
          ``"auto"`` is what ``fastest_precision`` says, and the fingerprint names what it was.
        * ``device``: ``"cpu"``, ``"cuda"`` ...; default: the accelerator when there is one.
        * ``max_length``: tokens read of a text, special tokens included; default: what the
            checkpoint states.
        * ``top_k``: at most so many terms per text, the heaviest (equal weights: the smaller token
            id); default: the
          checkpoint's ``max_active_dims``, else all. ``min_weight``: smaller weights are left out.
        * ``tokens_per_batch``: memory against speed; it does not change the vectors beyond
            rounding.
        * ``convention``: ``"opensearch"`` leaves special tokens out of the vectors, as that
            project's code does.
        * ``allow_pickle``: read an older ``pytorch_model.bin`` when there is no safetensors file.
        * ``decoder``: how a decoder is read, in the place of its ``sparse_ir.json``; needed where
            there is none. What
          it leaves unsaid of prompts and ``top_k`` is what a folder of sentence-transformers
              states.

        Raises ``ModelError`` for a checkpoint that cannot be used, ``ConfigError`` for an option.
        """
        device = device or (
            "cuda" if torch.cuda.is_available() and precision not in SCREENED else "cpu"
        )
        chosen = fastest_precision(device) if precision == "auto" else precision
        options = Options(
            chosen,
            device,
            max_length,
            top_k,
            min_weight,
            tokens_per_batch or _TOKENS_PER_BATCH[device_kind(device)],
            convention,
            allow_pickle,
            decoder,
        )
        _check_options(options)
        checkpoint = open_checkpoint(
            model, revision=revision, allow_pickle=allow_pickle, decoder=decoder
        )
        return _load_side(checkpoint, checkpoint.document, checkpoint.document_prompt, options)

    def encode(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> sparse.csr_matrix:
        """CSR float32 ``(N, V)`` of the texts: weights > 0 only, sorted int32 indices; row =
        position in ``texts``.

        An empty text gives what the model gives to its special tokens alone; where these are not
        pooled, nothing. ``progress(n)`` is called with the number of texts just done. The longest
        texts come first, so that memory peaks at the start. Raises ``DataError`` when a text is no
        string.
        """
        rows: list[Row] = [_EMPTY_ROW] * len(texts)
        tokens = self._network.tokenize(texts, self._prompt)
        lengths = np.array(
            [len(text.ids) if _is_pooled(text) else 0 for text in tokens], dtype=np.int64
        )
        with torch.inference_mode():
            for batch in _batches(lengths, self._options.tokens_per_batch):
                for position, row in zip(
                    batch, self._encode_batch([tokens[i] for i in batch]), strict=True
                ):
                    rows[position] = row
                if progress is not None:
                    progress(len(batch))
        if progress is not None and (without := int((lengths == 0).sum())):
            progress(without)
        return _stack(rows, len(self.vocabulary))

    def find_terms(self, text: str) -> list[tuple[str, int, int]]:
        """The terms that stand in a text, of whatever length, each with its first character and the
        one after it.
        """
        terms = range(len(self.vocabulary)) if self._terms is None else self._terms.tolist()
        return tokenization.find_terms(
            self._network.tokenizer, [self.vocabulary[term] for term in terms], text
        )

    def token_scores(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """What each pooled token of a text says alone: its column (int32 ``[L]``), and scores
        (float32 ``[L, V]``).

        Scores are those before the activation (``activate`` gives weights), under sum pooling those
        after it; the vector of the text is their maximum or sum over tokens.
        """
        tokens = self._network.tokenize([text], self._prompt)[0]
        if not _is_pooled(tokens):
            return np.empty(0, dtype=np.int32), np.empty(
                (0, len(self.vocabulary)), dtype=np.float32
            )
        with torch.inference_mode():
            hidden_BLH, lengths = self._network.forward([tokens])
            scores_LV = self._scores(
                hidden_BLH[0, : lengths[0], None], np.ones(lengths[0], dtype=np.int64)
            )
        ids = tokens.ids if tokens.pooled is None else tokens.ids[tokens.pooled]
        columns = ids if self._terms is None else self._terms.cpu().numpy()[ids].astype(np.int32)
        return columns, scores_LV.cpu().numpy()

    def activate(self, scores: np.ndarray) -> np.ndarray:
        """Weights (float32) of the scores of ``token_scores``."""
        return self._network.head.activate_pooled(torch.from_numpy(scores)).numpy()

    def weights_of(self, hidden_BLH: Tensor, lengths: np.ndarray) -> np.ndarray:
        """float32 ``(B, V)``: the vectors of pooled states, before ``top_k`` and ``min_weight``."""
        return self._network.head.activate_pooled(self._scores(hidden_BLH, lengths)).cpu().numpy()

    def with_prompt(self, prompt: str) -> Encoder:
        """The same encoder with another prompt before each text; the network is shared."""
        return Encoder(self._checkpoint, self._side, prompt, self._network, self._options)

    def query_encoder(
        self,
        kind: Literal["neural", "static", "ones"] | None = None,
        *,
        idf: Path | None = None,
        allow_unknown: bool = False,
    ) -> QueryEncoder:
        """The query side: the checkpoint's own by default, or another kind for the same vocabulary.

        ``"neural"`` reads queries with a network, ``"static"`` with the checkpoint's token weights
        or ``idf.json`` by this encoder's ``convention``, ``"ones"`` counts presence. ``idf``: a
        file that gives the token weights instead of the checkpoint. Raises ``ModelError`` when the
        checkpoint has no such side.
        """
        side = self._checkpoint.query
        if kind is None:
            kind = "static" if isinstance(side, StaticSide) or idf is not None else "neural"
        if kind != "neural" and self._terms is not None:
            raise ConfigError(
                f"a query side of kind {kind!r} does not fold tokens, and this "
                "model does (fold_tokens); "
                "use the kind 'neural'"
            )
        if idf is not None:
            if kind != "static":
                raise ConfigError(
                    f"a query side of kind {kind!r} takes no idf; drop one of the two"
                )
            return static_queries.from_idf_json(
                idf,
                self._network.owner.backend_tokenizer,
                self._options.convention,
                max_length=tokenization.stated_length(self._network.owner),
                vocabulary_size=len(self.vocabulary),
                name=f"{self._checkpoint.name} {idf.name}",
                prompt=self._checkpoint.query_prompt,
                allow_unknown=allow_unknown,
            )
        if kind == "neural":
            neural = side if isinstance(side, NeuralSide) else self._side
            return NeuralQueryEncoder(self._with_side(neural, self._checkpoint.query_prompt))
        if kind == "static":
            return self._static_query_encoder(allow_unknown)
        if kind != "ones":
            raise ConfigError(f"query side {kind!r} is unknown; allowed: neural, static, ones")
        return static_queries.ones(
            self._network.tokenizer,
            self._options.convention,
            max_length=self._network.max_length,
            vocabulary_size=len(self.vocabulary),
            name=f"{self._checkpoint.name} ones",
            prompt=self._checkpoint.query_prompt,
        )

    def save(
        self,
        folder: str | Path,
        *,
        layout: Layout | None = None,
        query_weights: np.ndarray | None = None,
        class_names: ClassNames = "6",
    ) -> None:
        """Write the model as ``"sparse-encoder"``, ``"router"`` (static query side) or plain
        ``"masked-lm"``.

        A decoder is written as ``"causal-lm"``, its settings beside it and an adapter merged.
        Default: a router when there are token weights for queries, given as ``query_weights``
        (float32 ``[V]``) or the checkpoint's own; else a sparse-encoder. Raises ``ConfigError``
        when the network is not in float32 any more.
        """
        if TRUNK_DTYPE[self._options.precision] != torch.float32:
            raise ConfigError(
                f"precision {self._options.precision!r} has rounded the network; "
                "load it with 'float32'"
            )
        if layout not in (None, *get_args(Layout)):
            raise ConfigError(
                f"layout {layout!r} is unknown; allowed: {', '.join(get_args(Layout))}"
            )
        folder = Path(folder)
        if self._side.decoder is not None:
            self._save_decoder(folder, layout, query_weights)
            return
        static = isinstance(self._checkpoint.query, StaticSide)
        layout = layout or ("router" if static or query_weights is not None else "sparse-encoder")
        if layout == "causal-lm":
            raise ConfigError(
                "the layout 'causal-lm' is that of a decoder, and this is a masked language model"
            )
        if layout == "router" and query_weights is None:
            if not static:
                raise ConfigError("the layout 'router' needs query_weights, one per token")
            query_weights = self._static_query_encoder(allow_unknown=False).weights
        with self._network.whole() as model:
            if layout == "masked-lm":
                checkpoint_writer.write_masked_lm(
                    folder, model, self._network.owner, max_length=self._network.max_length
                )
                return
            checkpoint_writer.write_sparse_encoder(
                folder,
                model,
                self._network.owner,
                pooling=self._side.pooling,
                activation=self._side.activation,
                max_length=self._network.max_length,
                prompts=self._checkpoint.prompts,
                top_k=self._options.top_k,
                query_weights=query_weights if layout == "router" else None,
                class_names=class_names,
            )

    def _save_decoder(
        self, folder: Path, layout: Layout | None, query_weights: np.ndarray | None
    ) -> None:
        if layout not in (None, "causal-lm") or query_weights is not None:
            raise ConfigError(
                "a decoder is saved in the layout 'causal-lm' only, without "
                "query_weights: other "
                "libraries' layouts cannot say how it reads a text"
            )
        checkpoint, settings = self._checkpoint, self._side.decoder
        assert settings is not None
        settings = replace(
            settings,
            document_prompt=checkpoint.document_prompt,
            query_prompt=checkpoint.query_prompt,
            top_k=self._options.top_k,
            max_length=self._network.max_length or settings.max_length,
        )
        with self._network.whole() as model:
            checkpoint_writer.write_causal_lm(folder, model, self._network.owner, settings)

    @property
    def network(self) -> Network:
        """The opened network, for those who examine it."""
        return self._network

    @property
    def checkpoint(self) -> Checkpoint:
        """Where the model came from and what its folder holds."""
        return self._checkpoint

    @property
    def options(self) -> Options:
        """The options in force, defaults filled in."""
        return self._options

    def _encode_batch(self, tokens: Sequence[Tokens]) -> Iterator[Row]:
        hidden_BLH, lengths = self._network.forward(tokens)
        start = 0
        for size in group_sizes(lengths, TOKEN_BLOCK[device_kind(self._options.device)]):
            group = lengths[start : start + size]
            yield from self._rows(
                self._scores(hidden_BLH[start : start + size, : int(group.max())], group)
            )
            start += size

    def _scores(self, hidden_BLH: Tensor, lengths: np.ndarray) -> Tensor:
        scores_BV = self._network.head.pool(hidden_BLH, lengths)
        if len(self._dropped):
            scores_BV[:, self._dropped] = 0.0
        return (
            scores_BV
            if self._terms is None
            else decoders.fold(scores_BV, self._terms, len(self.vocabulary))
        )

    def _rows(self, scores_BV: Tensor) -> Iterator[Row]:
        """Only what is above zero is activated, and leaves the device."""
        texts, token_ids = torch.nonzero(scores_BV > 0, as_tuple=True)
        weights = self._network.head.activate_pooled(scores_BV[texts, token_ids])
        ends = torch.cumsum(torch.bincount(texts, minlength=len(scores_BV)), 0).tolist()
        ids, values = token_ids.to(torch.int32).cpu().numpy(), weights.float().cpu().numpy()
        for start, end in zip([0, *ends], ends, strict=False):
            yield keep_heaviest(
                ids[start:end], values[start:end], self._options.top_k, self._options.min_weight
            )

    def _static_query_encoder(self, allow_unknown: bool) -> StaticQueryEncoder:
        side, convention = self._checkpoint.query, self._options.convention
        idf_path = (
            side.weights_path
            if isinstance(side, StaticSide) and side.weights_path.suffix == ".json"
            else self._checkpoint.idf_path
        )
        tensor = isinstance(side, StaticSide) and side.weights_path.suffix != ".json"
        if not tensor and idf_path is None:
            raise ModelError(
                f"{self._checkpoint.name} has no token weights for queries "
                "(SparseStaticEmbedding or "
                "idf.json); use the kind 'neural' or 'ones'"
            )
        owner = (
            tokenization.load_owner(side.folder)
            if isinstance(side, StaticSide)
            else self._network.owner
        )
        size, name, prompt = (
            len(self.vocabulary),
            self._checkpoint.name,
            self._checkpoint.query_prompt,
        )
        limit = tokenization.stated_length(owner)
        if idf_path is not None and not (tensor and convention == "sentence-transformers"):
            return static_queries.from_idf_json(
                idf_path,
                owner.backend_tokenizer,
                convention,
                max_length=limit,
                vocabulary_size=size,
                name=name,
                prompt=prompt,
                allow_unknown=allow_unknown,
            )
        assert isinstance(side, StaticSide)
        weights = read_static_weights(side, allow_pickle=self._options.allow_pickle)
        weights = np.pad(weights, (0, max(size - len(weights), 0)))
        return StaticQueryEncoder(
            owner.backend_tokenizer, weights, convention, max_length=limit, name=name, prompt=prompt
        )

    def _with_side(self, side: NeuralSide, prompt: str) -> Encoder:
        options = replace(self._options, max_length=self.fingerprint["max_length_asked"])
        if replace(side, max_length=None, template="") != replace(
            self._side, max_length=None, template=""
        ):
            return _load_side(self._checkpoint, side, prompt, options)
        limit = usable_max_length(
            side, self._network.owner, self._network.capacity, options.max_length
        )
        network = self._network.with_side(side, limit)
        return Encoder(self._checkpoint, side, prompt, network, options)


class NeuralQueryEncoder:
    """Queries read by a network: one text at a time, as the duck type of ``queries`` asks."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.vocabulary: list[str] = encoder.vocabulary
        self.fingerprint: dict[str, Any] = {**encoder.fingerprint, "side": "query"}

    def encode(self, text: str) -> Row:
        """Token ids (int32, ascending) and weights (float32, > 0)."""
        row = self._encoder.encode([text])
        return row.indices, row.data

    def encode_batch(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """CSR float32 ``(N, V)``: the vectors of ``encode`` for many queries at a time."""
        return self._encoder.encode(texts)

    def find_terms(self, text: str) -> list[tuple[str, int, int]]:
        """The terms that stand in a text, of whatever length, each with its first character and the
        one after it.
        """
        return self._encoder.find_terms(text)

    @property
    def encoder(self) -> Encoder:
        """What reads the queries."""
        return self._encoder

    def save(self, folder: Path) -> None:
        """Write a pointer to the checkpoint: its place, its hashes and the options; not the
        weights.
        """
        checkpoint, options = self._encoder.checkpoint, self._encoder.options
        place = checkpoint.name if checkpoint.revision else str(checkpoint.folder)
        static_queries.save_neural_pointer(
            folder,
            {
                **self.fingerprint,
                "model": place,
                "tokens_per_batch": options.tokens_per_batch,
                "allow_pickle": options.allow_pickle,
            },
        )


def load_tokenizer(model: str | Path, *, revision: str | None = None) -> Tokenizer:
    """The tokenizer of a model's document side, without the network."""
    side = open_checkpoint(model, revision=revision, allow_pickle=True).document
    return tokenization.rules_of(tokenization.load_owner(side.tokenizer_folder), side.lowercase)


def load_neural_query_encoder(
    record: Mapping[str, Any], *, model: str | Path | None = None
) -> NeuralQueryEncoder:
    """The query encoder that a pointer describes; ``model`` is another place of the same
    checkpoint.

    Raises ``IndexMismatch`` when the checkpoint found there is not the recorded one.
    """
    place = model if model is not None else record["model"]
    revision = record["revision"] if not Path(place).is_dir() else None
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
    found = encoder.query_encoder("neural")
    assert isinstance(found, NeuralQueryEncoder)
    for key in (
        "files_sha256",
        "tokenizer_sha256",
        "pooling",
        "activation",
        "max_length",
        "prompt",
    ):
        if record.get(key) != found.fingerprint[key]:
            raise IndexMismatch(
                f"{place} is not the query model that was recorded: {key} is "
                f"{found.fingerprint[key]!r}, recorded is "
                f"{record.get(key)!r}; give the right model or revision"
            )
    return found


_EMPTY_ROW: Row = (np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32))


def _check_options(options: Options) -> None:
    if options.precision not in get_args(Precision):
        raise ConfigError(
            f"precision {options.precision!r} is unknown; allowed: auto, "
            f"{', '.join(get_args(Precision))}"
        )
    if options.convention not in CONVENTIONS:
        raise ConfigError(
            f"convention {options.convention!r} is unknown; allowed: {', '.join(CONVENTIONS)}"
        )
    if options.precision in SCREENED and device_kind(options.device) != "cpu":
        raise ConfigError(
            f"precision {options.precision!r} is for the CPU; on {options.device} use 'bfloat16'"
        )
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"device {options.device!r} was asked for, and torch finds no CUDA device; use 'cpu'"
        )
    for name, value in (
        ("max_length", options.max_length),
        ("top_k", options.top_k),
        ("tokens_per_batch", options.tokens_per_batch),
    ):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; allowed: 1 or more")
    if not (math.isfinite(options.min_weight) and options.min_weight >= 0):
        raise ConfigError(f"min_weight is {options.min_weight}; allowed: 0 or more")


def _load_side(checkpoint: Checkpoint, side: NeuralSide, prompt: str, options: Options) -> Encoder:
    owner = tokenization.load_owner(side.tokenizer_folder)
    model = load_model(side, options)
    capacity = loading.capacity_of(model)
    limit = usable_max_length(side, owner, capacity, options.max_length)
    rules = tokenization.cut_at(tokenization.rules_of(owner, side.lowercase), None)
    config, bend = copy.deepcopy(model.config), Bend()
    if side.decoder is not None:
        bend = loading.straighten(model, rules, side.folder)
        attention.set_attention(model, rules, side.decoder, side.folder)
    slot, layer = loading.detach_output_layer(model, rules, side.folder)
    if side.decoder is None:
        model.to(device=options.device, dtype=TRUNK_DTYPE[options.precision])
    head, scale = make_head(layer, side, options, bend, config)
    network = Network(
        model,
        config,
        owner,
        head=head,
        scale=scale,
        slot=slot,
        output_layer=layer,
        capacity=capacity,
        device=options.device,
        **reading_fields(rules, side, limit),
    )
    network.tokenize(["a"], prompt)  # a template that leaves no room for a text is told at once
    if options.top_k is None:
        options = replace(options, top_k=checkpoint.top_k)
    return Encoder(checkpoint, side, prompt, network, options)


def _is_pooled(text: Tokens) -> bool:
    return len(text.ids) > 0 and (text.pooled is None or len(text.pooled) > 0)


def _fingerprint(
    checkpoint: Checkpoint, side: NeuralSide, prompt: str, network: Network, options: Options
) -> dict[str, Any]:
    return {
        "kind": "neural",
        "side": "document",
        "name": checkpoint.name,
        "revision": checkpoint.revision,
        "layout": checkpoint.layout,
        "files_sha256": side_hash(side, allow_pickle=options.allow_pickle),
        "tokenizer_sha256": tokenization.tokenizer_hash(network.tokenizer),
        "vocabulary_size": network.head.size,
        "pooling": side.pooling,
        "activation": side.activation,
        "prompt": prompt,
        "max_length": network.max_length,
        "max_length_asked": options.max_length,
        "precision": options.precision,
        "convention": options.convention,
        "top_k": options.top_k,
        "min_weight": options.min_weight,
        **(
            {}
            if side.decoder is None
            else {"decoder": asdict(side.decoder), "template": side.template}
        ),
    }


def _batches(lengths: np.ndarray, tokens_per_batch: int) -> Iterator[list[int]]:
    """Positions of texts of like length, longest first, at most ``tokens_per_batch`` padded tokens
    (or one text).
    """
    batch: list[int] = []
    for position in np.argsort(-lengths, kind="stable").tolist():
        if lengths[position] == 0:  # a text without any token has an empty vector
            break
        if batch and lengths[batch[0]] * (len(batch) + 1) > tokens_per_batch:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch


def _stack(rows: Sequence[Row], width: int) -> sparse.csr_matrix:
    ends = np.cumsum([0, *(len(ids) for ids, _ in rows)])
    ids, weights = zip(*(rows or [_EMPTY_ROW]), strict=True)
    return sparse.csr_matrix(
        (np.concatenate(weights), np.concatenate(ids), ends), shape=(len(rows), width)
    )
