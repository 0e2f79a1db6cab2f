"""The model in training: the document network with gradients, its query side, warm start and
saving.

Texts go in as token ids, groups of like length through the network at a time, and ``[N, V]``
weights come out; ``heads.pool_with_gradient`` sees to it that ``[B, L, V]`` never exists. A
backbone without an output layer gets a tied one here (``start_network``), which the bag-of-words
objective then teaches its job.

N texts, B texts of a group, L tokens, H hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from tokenizers import Tokenizer
from torch import Tensor

from sparse_ir.errors import ConfigError, DamagedError, DataError, ModelError
from sparse_ir.models import (
    checkpoint,
    checkpoint_writer,
    idf,
    loading,
    model_files,
    static_queries,
    tokenization,
)
from sparse_ir.models.checkpoint import NeuralSide, StaticSide
from sparse_ir.models.pooling import keep_heaviest, pool_with_gradient
from sparse_ir.storage import files
from sparse_ir.training.config import ModelSettings

_TOKENS_PER_GROUP = {"cpu": 2048, "cuda": 32768}
TOKENS_AT_ONCE = 512
LARGEST_LOGIT = 10.0  # of a new output layer: that of a state which is its token's own vector
SPREAD, LIFT = 0.5, 4.0  # standard deviation and mean of what enters the GELU of a new transform
OFF = -20.0  # an output bias that no hidden state outweighs


@dataclass(frozen=True)
class Start:
    """Where a training run begins: network, tokenizer and what is known about them."""

    model: Any
    owner: Any
    side: NeuralSide
    grown: list[str]  # names of new weights: the output layer's, where the network had none
    query: StaticSide | NeuralSide | None
    fingerprint: dict[str, Any]


def start_network(settings: ModelSettings) -> Start:
    """The network that ``settings.start`` names; one without an output layer gets a tied one.

    Raises ``ModelError`` when the network lacks more than its output layer.
    """
    folder, commit = checkpoint.find_folder(
        settings.start, settings.revision, allow_pickle=settings.allow_pickle
    )
    side, query = NeuralSide(folder), None
    if checkpoint.is_sparse_encoder(folder):
        found = checkpoint.read_layout(folder, allow_pickle=settings.allow_pickle)
        side, query = found.document, found.query
    owner = tokenization.load_owner(side.folder)
    model, grown = loading.load_or_grow_masked_lm(side.folder, settings.allow_pickle)
    set_dropout(model, settings.dropout)
    fingerprint = {
        "start": Path(settings.start).name if commit is None else settings.start,
        "revision": commit,
        "files_sha256": model_files.files_hash(side.folder, allow_pickle=settings.allow_pickle),
        "output_layer_is_new": bool(grown),
    }
    if (
        isinstance(query, StaticSide)
        and settings.query in ("idf", "learned")
        and settings.idf is None
    ):
        fingerprint["query_weights_sha256"] = files.sha256_of_file(query.weights_path)
    return Start(model, owner, side, grown, query, fingerprint)


def _check_prompts(rules: Tokenizer, settings: ModelSettings) -> None:
    for side, limit in (("document", settings.max_length), ("query", settings.query_max_length)):
        prompt = getattr(settings, f"{side}_prompt")
        if prompt and len(rules.encode(prompt).ids) >= limit:
            raise ConfigError(
                f"model.{side}_prompt alone takes {len(rules.encode(prompt).ids)} "
                f"of {limit} tokens and "
                "leaves no room for a text; allowed: a shorter prompt or more "
                "tokens"
            )


class Student(torch.nn.Module):
    """The document network; ``forward`` gives differentiable weights. Queries pass it too when they
    are neural.
    """

    def __init__(self, start: Start, settings: ModelSettings) -> None:
        super().__init__()
        self.model = start.model
        self.owner = start.owner
        self.settings = settings
        self.side = start.side
        limit = loading.capacity_of(self.model)
        for name, length in (
            ("max_length", settings.max_length),
            ("query_max_length", settings.query_max_length),
        ):
            if limit is not None and length > limit:
                raise ConfigError(
                    f"model.{name} is {length}; this network reads at most {limit} tokens"
                )
        rules = tokenization.rules_of(self.owner, self.side.lowercase)
        if limit is not None and (settings.saved_max_length or 0) > limit:
            raise ConfigError(
                f"model.saved_max_length is {settings.saved_max_length}; this "
                "network reads at most "
                f"{limit} tokens"
            )
        self.saved_max_length = settings.saved_max_length or limit
        self._document_tokenizer = tokenization.cut_at(rules, settings.max_length)
        self._whole_tokenizer = tokenization.cut_at(rules, self.saved_max_length)
        self._query_tokenizer = tokenization.cut_at(rules, settings.query_max_length)
        _check_prompts(rules, settings)
        self.slot, self.output_layer = loading.detach_output_layer(
            self.model, rules, self.side.folder
        )
        self._prepare_weights()

    def _prepare_weights(self) -> None:
        """What trains."""
        self.model.requires_grad_(True)
        self.output_layer.requires_grad_(True)
        if self.output_layer.bias is None:
            self.output_layer.bias = torch.nn.Parameter(torch.zeros(self.output_layer.out_features))

    @property
    def size(self) -> int:
        """V, the rows of the output layer."""
        return self.output_layer.out_features

    def forward(self, ids: Sequence[np.ndarray], scores: bool = False) -> Tensor:
        """Weights ``[N, V]`` float32 of token ids; with ``scores`` the largest logits before the
        activation.
        """
        device = self.output_layer.weight.device
        lengths = [self.length_of(text) for text in ids]
        order = np.argsort([-length for length in lengths], kind="stable")
        parts = [
            self._pool([ids[row] for row in group]) for group in groups_of(order, lengths, device)
        ]
        pooled_NV = torch.cat(parts)[torch.from_numpy(np.argsort(order)).to(device)]
        return pooled_NV if scores else self.activate(pooled_NV)

    def activate(self, pooled_NV: Tensor) -> Tensor:
        """``log(1 + relu(x))``, or that logarithm twice."""
        weights_NV = torch.log1p(torch.relu(pooled_NV))
        return torch.log1p(weights_NV) if self.settings.activation == "log1p_relu" else weights_NV

    def length_of(self, text: Any) -> int:
        """Tokens of one tokenized text."""
        return len(text)

    def _pool(self, ids: Sequence[np.ndarray]) -> Tensor:
        """Largest logits ``[B, V]`` of texts that pass the network together."""
        hidden_BLH, lengths = self._states(ids)
        return pool_with_gradient(
            hidden_BLH, self.output_layer.weight, self.output_layer.bias, lengths
        )

    def _states(self, ids: Sequence[np.ndarray]) -> tuple[Tensor, np.ndarray]:
        """The states before the output layer ``[B, L, H]`` of token ids, and how many of each text
        are real.
        """
        device = self.output_layer.weight.device
        lengths = np.array([len(text) for text in ids])
        padded = np.full(
            (len(ids), int(lengths.max())), self.owner.pad_token_id or 0, dtype=np.int64
        )
        for row, text in zip(padded, ids, strict=True):
            row[: len(text)] = text
        mask = (np.arange(padded.shape[1]) < lengths[:, None]).astype(np.int64)
        hidden_BLH = self.model(
            input_ids=torch.from_numpy(padded).to(device),
            attention_mask=torch.from_numpy(mask).to(device),
        ).logits
        return hidden_BLH, lengths

    def tokenize_documents(self, texts: Sequence[str], *, whole: bool = False) -> list[np.ndarray]:
        """Token ids with special tokens, cut for training, or with ``whole`` as the saved model
        reads them.
        """
        tokenizer = self._whole_tokenizer if whole else self._document_tokenizer
        return _tokenize(tokenizer, [self.settings.document_prompt + text for text in texts])

    def tokenize_queries(self, texts: Sequence[str], *, whole: bool = False) -> list[np.ndarray]:
        """Token ids of queries: framed by special tokens for the network, bare and distinct for a
        static side.

        Cut for training, or with ``whole`` as the saved model reads them, whose static side cuts
        nothing.
        """
        if self.settings.query == "neural":
            tokenizer = self._whole_tokenizer if whole else self._query_tokenizer
            return _tokenize(tokenizer, [self.settings.query_prompt + text for text in texts])
        tokenizer, limit = (
            (self.rules, None) if whole else (self._query_tokenizer, self.settings.query_max_length)
        )
        found = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.unique(np.array(encoding.ids[:limit], dtype=np.int64)) for encoding in found]

    def vectors(
        self,
        texts: Sequence[str],
        *,
        neural_queries: bool = False,
        whole: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> sparse.csr_matrix:
        """CSR float32 ``(N, V)`` without gradients, as the saved model would encode ``texts``, or
        cut for training.
        """
        ids = (self.tokenize_queries if neural_queries else self.tokenize_documents)(
            texts, whole=whole
        )
        order = np.argsort([-self.length_of(text) for text in ids], kind="stable")
        rows: list[Any] = [None] * len(ids)
        was_training = self.training
        self.eval()
        with torch.no_grad():
            for start in range(0, len(order), 64):
                batch = order[start : start + 64]
                found = self.forward([ids[row] for row in batch]).cpu().numpy()
                for row, weights_V in zip(batch, found, strict=True):
                    rows[row] = self._keep_heaviest(weights_V)
                if progress is not None:
                    progress(len(batch))
        self.train(was_training)
        return (
            sparse.vstack(rows, format="csr")
            if rows
            else sparse.csr_matrix((0, self.size), dtype=np.float32)
        )

    def _keep_heaviest(self, weights_V: np.ndarray) -> sparse.csr_matrix:
        token_ids = np.flatnonzero(weights_V)
        token_ids, weights = keep_heaviest(
            token_ids, weights_V[token_ids], self.settings.top_k, 0.0
        )
        return sparse.csr_matrix(
            (weights, token_ids, [0, len(token_ids)]), shape=(1, len(weights_V))
        )

    def set_terms(self, texts: Sequence[str], active_terms: int, *, whole: bool = False) -> float:
        """``shift_to`` by the logits of these documents, cut as in training, or with ``whole`` as
        the saved model.
        """
        ids = self.tokenize_documents(texts, whole=whole)
        self.eval()
        with torch.no_grad():
            parts = [
                self.forward(ids[start : start + 16], scores=True)
                for start in range(0, len(ids), 16)
            ]
        return self.shift_to(torch.cat(parts), active_terms)

    def shift_to(self, pooled_NV: Tensor, active_terms: int) -> float:
        """Lower all output biases alike, so that texts with these largest logits have so many terms
        on average.
        """
        shift = float(threshold_of(pooled_NV, active_terms))
        self._lower(shift)
        return shift

    @torch.no_grad()
    def _lower(self, logits: float) -> None:
        self.output_layer.bias -= logits

    def lift(self, logits: float) -> None:
        """Add to all output biases, those of special tokens excepted, which stay off."""
        if logits:
            with torch.no_grad():
                self.output_layer.bias += logits * (self.output_layer.bias > OFF / 2)

    def set_phase(self, adapting: bool) -> None:
        """Called before each step; a decoder's attention may differ while it adapts."""

    def tensors(self) -> dict[str, Tensor]:
        """All that training changes, by name; of names for the same tensor the first."""
        found: dict[tuple[int, torch.Size], str] = {}
        state = self.state_dict()
        for name, tensor in state.items():
            found.setdefault((tensor.data_ptr(), tensor.shape), name)
        return {name: state[name] for name in found.values()}

    def write_weights(self, path: Path) -> None:
        """A safetensors file of ``tensors``, for ``read_weights``; equal
        weights give equal bytes.
        """
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in self.tensors().items()}, path)

    def read_weights(self, path: Path, device: torch.device) -> None:
        """Take back what ``write_weights`` wrote. Raises ``DamagedError`` when the file holds
        something else.
        """
        self.blend_with(path, 1.0, device)

    @torch.no_grad()
    def blend_with(self, path: Path, share: float, device: torch.device) -> None:
        """Replace this share of all weights by those that ``write_weights`` wrote."""
        from safetensors.torch import load_file

        own, read = self.tensors(), load_file(path, device=place_of(device))
        if {name: tensor.shape for name, tensor in own.items()} != {
            name: each.shape for name, each in read.items()
        }:
            raise DamagedError(f"{path} holds the weights of another network")
        for name, tensor in own.items():
            if share == 1.0:
                tensor.copy_(read[name])
            elif tensor.is_floating_point():
                tensor.lerp_(read[name], share)

    def save(
        self, folder: Path, query_weights: np.ndarray | None, dtype: torch.dtype = torch.float32
    ) -> None:
        """Write the SparseEncoder layout; with static ``query_weights`` (float32 ``[V]``) a router
        carries them.
        """
        parent, name = self.slot
        passed = getattr(parent, name)
        setattr(parent, name, self.output_layer)
        try:
            checkpoint_writer.write_sparse_encoder(
                folder,
                self.model,
                self.owner,
                activation=self.settings.activation,
                top_k=self.settings.top_k,
                max_length=self.saved_max_length,
                prompts=self._prompts(),
                dtype=dtype,
                query_weights=query_weights,
            )
        finally:
            setattr(parent, name, passed)

    def _prompts(self) -> dict[str, str] | None:
        found = {"query": self.settings.query_prompt, "document": self.settings.document_prompt}
        return found if any(found.values()) else None

    @property
    def rules(self) -> Tokenizer:
        """The tokenizer without truncation."""
        return tokenization.cut_at(self._whole_tokenizer, None)


def threshold_of(scores_NV: Tensor, active_terms: float) -> Tensor:
    """The score (scalar) above which texts have so many terms on average."""
    values = scores_NV.detach().float().flatten()
    return values.kthvalue(max(values.numel() - round(active_terms * len(scores_NV)), 1)).values


def place_of(device: torch.device) -> str:
    """A device as safetensors names it; of several processes on the CPU each has a number of its
    own.
    """
    return "cpu" if device.type == "cpu" else str(device)


def groups_of(
    order: np.ndarray, lengths: Sequence[int], device: torch.device
) -> Iterator[np.ndarray]:
    """Texts, longest first, in groups that pass the network together.

    A text less than half as long as the longest of its group opens the next one, so that queries
    are not padded to the length of documents.
    """
    start = 0
    while start < len(order):
        longest = max(lengths[order[start]], 1)
        end = min(start + max(_TOKENS_PER_GROUP[device.type] // longest, 1), len(order))
        short = (row for row in range(start + 1, end) if 2 * lengths[order[row]] < longest)
        end = next(short, end)
        yield order[start:end]
        start = end


class TokenWeights(torch.nn.Module):
    """A static query side: one weight per token, fixed or learned. Special tokens weigh nothing."""

    def __init__(self, student: Student, weights: np.ndarray, *, learned: bool) -> None:
        super().__init__()
        padded = np.pad(weights.astype(np.float32), (0, student.size - len(weights)))
        padded[tokenization.special_token_ids(student.rules)] = 0.0
        self.weights_V = torch.nn.Parameter(torch.from_numpy(padded), requires_grad=learned)
        self.clip()

    @torch.no_grad()
    def clip(self) -> None:
        """Learned weights that a step took below zero go back to it: an
        impact cannot be negative.
        """
        if self.weights_V.requires_grad:
            self.weights_V.clamp_(min=0.0)

    def forward(self, ids: Sequence[np.ndarray]) -> Tensor:
        """``[Q, V]`` of bare token ids: the weight of each token that occurs, once (binary presence
        times weight).
        """
        present_QV = torch.zeros((len(ids), len(self.weights_V)), device=self.weights_V.device)
        for row, tokens in enumerate(ids):
            present_QV[row, torch.from_numpy(tokens).to(present_QV.device)] = 1.0
        return present_QV * self.weights_V

    def numpy(self) -> np.ndarray:
        """float32 ``[V]``."""
        return self.weights_V.detach().float().cpu().numpy().clip(min=0.0)


def choose_query_weights(
    start: Start, settings: ModelSettings, texts: Callable[[], Iterable[str]], tokenizer: Tokenizer
) -> np.ndarray | None:
    """The token weights of the query side, float32 ``[V]``; None when queries are neural.

    IDF from ``settings.idf``, else from the starting checkpoint, else computed from ``texts``.
    """
    if settings.query == "neural":
        return None
    if settings.query == "ones":
        return np.ones(max(tokenizer.get_vocab().values()) + 1, dtype=np.float32)
    if settings.idf is not None:
        return static_queries.from_idf_json(Path(settings.idf), tokenizer, "opensearch").weights
    if isinstance(start.query, StaticSide):
        if start.query.weights_path.suffix == ".json":
            return static_queries.from_idf_json(
                start.query.weights_path, tokenizer, "opensearch"
            ).weights
        return checkpoint.read_static_weights(start.query, allow_pickle=settings.allow_pickle)
    return idf.compute_idf(texts(), tokenizer)


def _tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    found = [
        np.array(encoding.ids, dtype=np.int64)
        for encoding in tokenizer.encode_batch_fast(list(texts))
    ]
    for position, ids in enumerate(found):
        if len(ids) == 0:
            raise DataError(f"text {texts[position]!r:.60} has no token at all")
    return found


def has_dropout(model: Any) -> bool:
    """Whether anything in a network drops out in training."""
    return any(
        (isinstance(module, torch.nn.Dropout) and module.p > 0)
        or any(getattr(module, name) > 0 for name in _float_dropouts(module))
        for module in model.modules()
    )


def _float_dropouts(module: torch.nn.Module) -> list[str]:
    """Some families keep a probability as a plain number, for functions that drop out."""
    return [
        name
        for name, value in vars(module).items()
        if "dropout" in name and isinstance(value, float)
    ]


def set_dropout(model: Any, probability: float | None) -> None:
    """Set every dropout of a network; None leaves them as they are."""
    if probability is None:
        return
    for name in (
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "dropout",
        "attention_dropout",
    ):
        if hasattr(model.config, name):
            setattr(model.config, name, probability)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = probability
        for name in _float_dropouts(module):
            setattr(module, name, probability)
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError("an encoder-decoder cannot be a masked language model")
