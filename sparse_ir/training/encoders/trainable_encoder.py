"""The encoder in training: the document network with gradients, its query side, and saving.

Texts go in as tokens, groups of similar length pass the network together, and ``[N, V]`` weights
come out; ``[B, L, V]`` never exists. The forward pass is ``models.network.SparseNetwork``, the one
that encodes. A backbone without an output layer gets a tied one (``start_network``), which the
bag-of-words objective then teaches its job.

N texts, B texts of a group, L tokens, H hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse
from tokenizers import Tokenizer
from torch import Tensor

from sparse_ir.errors import ConfigError, DamagedError, DataError, ModelError
from sparse_ir.models import checkpoint, idf, network, pooling, static_queries, tokenization
from sparse_ir.models.batching import SparseVector, by_length, rows_to_csr
from sparse_ir.models.decoder_settings import Task
from sparse_ir.models.families.base import NeuralSide, SaveRequest, StaticSide
from sparse_ir.models.network import SparseNetwork
from sparse_ir.models.reading import TextReader
from sparse_ir.models.tokenization import Tokens
from sparse_ir.storage import files, reading
from sparse_ir.training.configuration.config import ModelSettings, TrainConfig
from sparse_ir.training.sources.training_source import pick

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOKENS_PER_GROUP = {"cpu": 2048, "cuda": 32768}
_SHORTEST = 0.5  # of the longest text of a group, so that queries are not padded like documents
_TEXTS_AT_ONCE = 64
_SAMPLE_AT_ONCE = 16
_EMPTY: SparseVector = (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))
OFF = -20.0  # an output bias that no hidden state outweighs


@dataclass(frozen=True)
class Start:
    """Where a training run begins.

    Attributes:
        network: The opened network.
        side: How the network reads and pools texts.
        grown: The names of new weights, those of an output layer that the network did not have.
        query: The query side of the starting checkpoint, if it has one.
        fingerprint: The facts that decide the start, as JSON.
    """

    network: SparseNetwork
    side: NeuralSide
    grown: list[str]
    query: StaticSide | NeuralSide | None
    fingerprint: dict[str, Any]


def start_network(config: TrainConfig) -> Start:
    """Load the network that ``model.start`` names; one without an output layer gets a tied one.

    Raises ``ModelError`` when the network lacks more than its output layer, or when it cannot be
    read as the configuration says.
    """
    settings = config.model
    folder, commit = checkpoint.find_folder(
        settings.start, settings.revision, allow_pickle=settings.allow_pickle
    )
    reading = None if config.decoder is None else config.decoder.settings(settings)
    side, query = checkpoint.find_start(folder, reading, allow_pickle=settings.allow_pickle)
    if side.adapter is not None and config.lora is not None:
        raise ConfigError(
            f"{side.adapter} is an adapter, and an adapter to it could not name its base; merge it "
            "first (Encoder.save), or train without [lora]"
        )
    hf_tokenizer = tokenization.load_hf_tokenizer(side.tokenizer_folder, side.folder)
    model, grown = side.family.load_for_training(
        side,
        allow_pickle=settings.allow_pickle,
        base="float32" if config.lora is None else config.lora.base,
    )
    opened = network.open_network(side, model, hf_tokenizer)
    set_dropout(model, settings.dropout)
    fingerprint = {
        "start": Path(settings.start).name if commit is None else settings.start,
        "revision": commit,
        "files_sha256": checkpoint.side_hash(side, allow_pickle=settings.allow_pickle),
        "output_layer_is_new": bool(grown),
    }
    takes_weights = settings.query in ("idf", "learned") and settings.idf is None
    if isinstance(query, StaticSide) and takes_weights:
        fingerprint["query_weights_sha256"] = files.sha256_of_file(query.weights_path)
    return Start(opened, side, grown, query, fingerprint)


class TrainableEncoder(torch.nn.Module):
    """The document network; ``forward`` gives differentiable weights.

    Queries pass it, too, when they are neural.
    """

    def __init__(self, start: Start, config: TrainConfig) -> None:
        super().__init__()
        self.config = config
        self.settings = config.model
        self.network = start.network
        # registered under the names that training checkpoints have
        self.model = start.network.model
        self.output_layer = start.network.output_layer
        self.hf_tokenizer = start.network.hf_tokenizer
        self.rules: Tokenizer = start.network.tokenizer
        self._check_limits()
        self.saved_max_length = self._choose_saved_length()
        self.side = self._trained_side(start.side)
        self._prepare_weights()
        self._readers = self._make_readers()

    def _check_limits(self) -> None:
        """Raise ``ConfigError`` for a length that the network cannot read."""
        capacity = self.network.capacity
        for name in ("max_length", "query_max_length", "saved_max_length"):
            length = getattr(self.settings, name) or 0
            if capacity is not None and length > capacity:
                raise ConfigError(
                    f"model.{name} is {length}; for this network it must be at most {capacity}"
                )

    def _choose_saved_length(self) -> int | None:
        """Return how many tokens the saved model reads of a text."""
        return self.settings.saved_max_length or self.network.capacity

    def _trained_side(self, side: NeuralSide) -> NeuralSide:
        """Return how the saved model reads and pools documents."""
        return replace(side, pooling="max", activation=self.settings.activation)

    def _side_of(self, task: Task) -> NeuralSide:
        """Return how texts of a task are read."""
        return self.side

    def _prepare_weights(self) -> None:
        """Switch on the gradients of what trains."""
        self.model.requires_grad_(True)
        self.output_layer.requires_grad_(True)
        if self.output_layer.bias is None:
            self.output_layer.bias = torch.nn.Parameter(torch.zeros(self.size))

    def _make_readers(self) -> Mapping[str, TextReader]:
        """Return the readers of documents and queries, cut for training and whole."""
        settings = self.settings
        readers: dict[str, TextReader] = {}
        sides: list[tuple[Task, str, int, str]] = [
            ("document", "max_length", settings.max_length, settings.document_prompt),
            ("query", "query_max_length", settings.query_max_length, settings.query_prompt),
        ]
        for task, name, limit, prompt in sides:
            length = len(self.rules.encode(prompt).ids)
            if prompt and length >= limit:
                raise ConfigError(
                    f"model.{task}_prompt alone takes {length} of {limit} tokens and leaves no "
                    "room for a text; it must be shorter, or the limit larger"
                )
            side = self._side_of(task)
            make_reader = side.family.make_reader
            readers[task] = make_reader(self.rules, side, limit, f"model.{name}")
            readers[f"whole {task}"] = make_reader(
                self.rules, side, self.saved_max_length, "model.saved_max_length"
            )
            readers[task].read(["a"], prompt)  # finds prompts and templates that leave no room
            readers[f"whole {task}"].read(["a"], prompt)
        return readers

    @property
    def size(self) -> int:
        """V, the rows of the output layer."""
        return self.output_layer.out_features

    @property
    def score_shift(self) -> float | Tensor:
        """What is subtracted from scores; the biases of an output layer make it needless."""
        return self.network.shift

    def forward(self, tokens: Sequence[Tokens], scores: bool = False) -> Tensor:
        """Return weights, float32 ``[N, V]``; with ``scores`` the scores before the activation."""
        device = self.output_layer.weight.device
        order = []
        parts = []
        for group in self.groups(_lengths(tokens)):
            parts.append(self.network.pooled_scores(pick(tokens, group), self.score_shift))
            order.append(group)
        back = torch.from_numpy(np.argsort(np.concatenate(order))).to(device)
        pooled_NV = torch.cat(parts)[back]
        return pooled_NV if scores else pooling.activate(pooled_NV, self.settings.activation)

    def groups(self, lengths: np.ndarray) -> Iterable[np.ndarray]:
        """Return the positions of texts in groups that pass the network together."""
        budget = _TOKENS_PER_GROUP[self.output_layer.weight.device.type]
        return by_length(lengths, budget, shortest=_SHORTEST)

    def tokenize_documents(self, texts: Sequence[str], *, whole: bool = False) -> list[Tokens]:
        """Return the tokens of documents, cut for training or ``whole`` as the saved model reads.

        Raises ``DataError`` for a text without any token.
        """
        reader = self._readers["whole document" if whole else "document"]
        return self._read(reader, texts, self.settings.document_prompt)

    def tokenize_queries(self, texts: Sequence[str], *, whole: bool = False) -> list[Tokens]:
        """Return the tokens of queries, cut for training or ``whole`` as the saved model reads.

        A static query side gets bare, distinct, ascending ids; a whole one is not cut at all.
        """
        if self.settings.query == "neural":
            reader = self._readers["whole query" if whole else "query"]
            return self._read(reader, texts, self.settings.query_prompt)
        limit = None if whole else self.settings.query_max_length
        encodings = self.rules.encode_batch_fast(list(texts), add_special_tokens=False)
        return [Tokens(np.unique(np.array(each.ids[:limit], dtype=np.int64))) for each in encodings]

    def _read(self, reader: TextReader, texts: Sequence[str], prompt: str) -> list[Tokens]:
        tokens = reader.read(texts, prompt)
        for text, read in zip(texts, tokens, strict=True):
            if len(read.ids) == 0:
                raise DataError(f"text {text!r:.60} has no token at all")
        return tokens

    def vectors(
        self,
        texts: Sequence[str],
        *,
        neural_queries: bool = False,
        whole: bool = True,
    ) -> sparse.csr_matrix:
        """Return the vectors of texts without gradients, CSR float32 ``[N, V]``.

        Texts are read ``whole`` as the saved model reads them, or cut for training.
        """
        tokenize = self.tokenize_queries if neural_queries else self.tokenize_documents
        tokens = tokenize(texts, whole=whole)
        order = np.argsort(-_lengths(tokens), kind="stable")
        rows = [_EMPTY] * len(tokens)
        was_training = self.training
        self.eval()
        with torch.no_grad():
            for start in range(0, len(order), _TEXTS_AT_ONCE):
                batch = order[start : start + _TEXTS_AT_ONCE]
                weights_BV = self.forward(pick(tokens, batch)).cpu().numpy()
                for row, weights_V in zip(batch, weights_BV, strict=True):
                    ids = np.flatnonzero(weights_V)
                    rows[row] = pooling.keep_heaviest(ids, weights_V[ids], self.settings.top_k, 0.0)
        self.train(was_training)
        return rows_to_csr(rows, self.size)

    def set_terms(self, texts: Sequence[str], active_terms: int, *, whole: bool = False) -> float:
        """Lower all scores alike, so that these documents have this many terms on average.

        Returns by how much scores were lowered.
        """
        tokens = self.tokenize_documents(texts, whole=whole)
        parts = []
        self.eval()
        with torch.no_grad():
            for start in range(0, len(tokens), _SAMPLE_AT_ONCE):
                parts.append(self.forward(tokens[start : start + _SAMPLE_AT_ONCE], scores=True))
        shift = float(threshold_of(torch.cat(parts), active_terms))
        self._lower(shift)
        return shift

    @torch.no_grad()
    def _lower(self, scores: float) -> None:
        self.output_layer.bias.sub_(scores)

    def lift(self, scores: float) -> None:
        """Raise all scores, except those of special tokens, which stay off."""
        if scores:
            with torch.no_grad():
                bias_V = self.output_layer.bias
                bias_V.add_(scores * (bias_V > OFF / 2))

    def set_phase(self, adapting: bool) -> None:
        """Prepare the next step; a decoder's attention may differ while it adapts."""

    def tensors(self) -> dict[str, Tensor]:
        """Return all that training changes, by name; a shared tensor has its first name."""
        state = self.state_dict()
        names: dict[tuple[int, torch.Size], str] = {}
        for name, tensor in state.items():
            names.setdefault((tensor.data_ptr(), tensor.shape), name)
        return {name: state[name] for name in names.values()}

    def write_weights(self, path: Path) -> None:
        """Write a safetensors file of ``tensors``; equal weights give equal bytes."""
        save_tensors(path, self.tensors())

    def read_weights(self, path: Path, device: torch.device) -> None:
        """Take back what ``write_weights`` wrote.

        Raises ``DamagedError`` when the file holds something else.
        """
        self.blend_with(path, 1.0, device)

    @torch.no_grad()
    def blend_with(self, path: Path, share: float, device: torch.device) -> None:
        """Replace this share of all weights by those of a file of ``write_weights``."""
        from safetensors.torch import load_file

        own = self.tensors()
        with reading.reading(path, "safetensors"):
            stored = load_file(path, device=safetensors_device(device))
        if _shapes(own) != _shapes(stored):
            raise DamagedError(f"{path} holds the weights of another network")
        for name, tensor in own.items():
            if share == 1.0:
                tensor.copy_(stored[name])
            elif tensor.is_floating_point():
                tensor.lerp_(stored[name], share)

    def save(
        self, folder: Path, query_weights: np.ndarray | None, dtype: torch.dtype = torch.float32
    ) -> None:
        """Write the model; static ``query_weights`` (float32 ``[V]``) make its query side."""
        self._save_whole(folder, self.side, query_weights, dtype)

    def _save_whole(
        self,
        folder: Path,
        side: NeuralSide,
        query_weights: np.ndarray | None,
        dtype: torch.dtype,
    ) -> None:
        with self.network.whole() as model:
            request = self._save_request(model, side, query_weights, dtype)
            side.family.save(folder, request)

    def _save_request(
        self,
        model: PreTrainedModel,
        side: NeuralSide,
        query_weights: np.ndarray | None,
        dtype: torch.dtype,
    ) -> SaveRequest:
        settings = self.settings
        prompts = {"query": settings.query_prompt, "document": settings.document_prompt}
        layout = side.family.choose_layout(
            None, weights_given=query_weights is not None, weights_stored=False
        )
        return SaveRequest(
            model=model,
            hf_tokenizer=self.hf_tokenizer,
            side=side,
            layout=layout,
            max_length=self.saved_max_length,
            prompts=prompts if any(prompts.values()) else None,
            top_k=settings.top_k,
            query_weights=query_weights,
            dtype=dtype,
        )


def threshold_of(scores_NV: Tensor, active_terms: float) -> Tensor:
    """Return the score (a scalar) above which texts have ``active_terms`` terms on average."""
    values = scores_NV.detach().float().flatten()
    return values.kthvalue(max(values.numel() - round(active_terms * len(scores_NV)), 1)).values


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file; equal tensors give equal bytes."""
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def safetensors_device(device: torch.device) -> str:
    """Return the name of a device for safetensors.

    With several processes on the CPU each has a device number, which safetensors does not know.
    """
    return "cpu" if device.type == "cpu" else str(device)


def _lengths(tokens: Sequence[Tokens]) -> np.ndarray:
    return np.array([len(text.ids) for text in tokens], dtype=np.int64)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


class TokenWeights(torch.nn.Module):
    """A static query side: one weight per token, fixed or learned. Special tokens weigh nothing."""

    def __init__(self, encoder: TrainableEncoder, weights: np.ndarray, *, learned: bool) -> None:
        super().__init__()
        padded = np.pad(weights.astype(np.float32), (0, encoder.size - len(weights)))
        padded[tokenization.special_token_ids(encoder.rules)] = 0.0
        self.weights_V = torch.nn.Parameter(torch.from_numpy(padded), requires_grad=learned)
        self.clip()

    @torch.no_grad()
    def clip(self) -> None:
        """Raise learned weights below zero to zero, because an impact cannot be negative."""
        if self.weights_V.requires_grad:
            self.weights_V.clamp_(min=0.0)

    def forward(self, tokens: Sequence[Tokens]) -> Tensor:
        """Return the vectors ``[Q, V]`` of bare token ids: the weight of each token, once."""
        present_QV = torch.zeros((len(tokens), len(self.weights_V)), device=self.weights_V.device)
        for row, query in enumerate(tokens):
            ids = torch.from_numpy(query.ids.astype(np.int64))
            present_QV[row, ids.to(present_QV.device)] = 1.0
        return present_QV * self.weights_V

    def numpy(self) -> np.ndarray:
        """Return the weights, float32 ``[V]``."""
        weights_V: np.ndarray = self.weights_V.detach().float().cpu().numpy().clip(min=0.0)
        return weights_V


def choose_query_weights(
    start: Start, settings: ModelSettings, texts: Callable[[], Iterable[str]], tokenizer: Tokenizer
) -> np.ndarray | None:
    """Return the token weights of the query side, float32 ``[V]``; None for neural queries.

    IDF comes from ``settings.idf``, else from the starting checkpoint, else from ``texts``.
    """
    if settings.query == "neural":
        return None
    if settings.query == "ones":
        return np.ones(tokenization.id_limit(tokenizer), dtype=np.float32)
    if settings.idf is not None:
        return static_queries.from_idf_json(Path(settings.idf), tokenizer, "opensearch").weights
    if not isinstance(start.query, StaticSide):
        return idf.compute_idf(texts(), tokenizer)
    path = start.query.weights_path
    if path.suffix == ".json":
        return static_queries.from_idf_json(path, tokenizer, "opensearch").weights
    return checkpoint.read_static_weights(start.query, allow_pickle=settings.allow_pickle)


def has_dropout(model: torch.nn.Module) -> bool:
    """Return whether anything in a network drops out in training."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and module.p > 0:
            return True
        if any(getattr(module, name) > 0 for name in _float_dropouts(module)):
            return True
    return False


def _float_dropouts(module: torch.nn.Module) -> list[str]:
    """Return the names of probabilities that a module keeps as plain numbers."""
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
