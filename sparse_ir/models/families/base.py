"""What a family of checkpoints decides, and the records that describe a checkpoint.

A family says which folders it recognizes, how its networks are loaded, how a text becomes token
ids, what happens to the logits, and how a model is saved. Everything else is the same for all
families: ``network.SparseNetwork`` is the forward pass, ``encoder.Encoder`` encodes with it, and
``training.trainable_encoder`` trains it.

Nothing here loads torch. Methods that need torch import it when they are called.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from sparse_ir.models import tokenization
from sparse_ir.models.decoder_settings import TEXT_PLACEHOLDER, Activation, DecoderSettings, Pooling
from sparse_ir.models.reading import TextReader

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from sparse_ir.models.encoder_options import EncoderOptions
    from sparse_ir.models.logits import LogitTransform

Layout = Literal["sparse-encoder", "router", "masked-lm", "causal-lm"]
BasePrecision = Literal["float32", "bfloat16", "8bit", "4bit"]


class Vocabulary(NamedTuple):
    """The names of the columns of a vector, and the column of each token if they differ."""

    names: list[str]
    column_of_token: np.ndarray | None = None  # int64 [V]


class OpenedLogits(NamedTuple):
    """A network's logits, made plain: what the network or the settings do to them is named."""

    config: PretrainedConfig  # for saving, as it was before anything was switched off
    transform: LogitTransform
    shift: float


@dataclass(frozen=True)
class FolderRequest:
    """A model folder to be described, and what its user says about it."""

    folder: Path
    name: str
    revision: str | None
    decoder: DecoderSettings | None
    allow_pickle: bool

    @property
    def idf_path(self) -> Path | None:
        """The ``idf.json`` beside the model, None if there is none."""
        path = self.folder / "idf.json"
        return path if path.is_file() else None


@dataclass(frozen=True)
class SaveRequest:
    """A network and everything that its folder shall say."""

    model: PreTrainedModel
    hf_tokenizer: PreTrainedTokenizerBase
    side: NeuralSide
    layout: Layout
    max_length: int | None
    prompts: Mapping[str, str] | None
    top_k: int | None
    query_weights: np.ndarray | None = None  # float32 [V]
    dtype: torch.dtype | None = None  # of the stored weights; None keeps that of the network


class Family(ABC):
    """A family of checkpoints, with the settings of one checkpoint."""

    transformer_task: ClassVar[str]  # the name of sentence-transformers for these networks

    @property
    @abstractmethod
    def kind(self) -> str:
        """What reports call such a model."""

    @property
    @abstractmethod
    def remedy_for_special_tokens(self) -> str:
        """What helps when special tokens give all texts the same terms."""

    @classmethod
    def read_folder(cls, request: FolderRequest) -> Checkpoint | None:
        """Describe a folder that this family recognizes by files of its own, else return None."""
        return None

    @classmethod
    @abstractmethod
    def from_transformer_config(
        cls, path: Path, config: Mapping[str, Any], pooling: Pooling, activation: Activation
    ) -> Family:
        """Read the ``sentence_bert_config.json`` at ``path``, whose content is ``config``.

        Raises ``ModelError`` for settings that would change the vectors and are not supported.
        """

    @abstractmethod
    def fingerprint(self, side: NeuralSide) -> dict[str, Any]:
        """Facts of this family that decide the vectors, as JSON."""

    @abstractmethod
    def make_reader(
        self,
        tokenizer: Tokenizer,
        side: NeuralSide,
        max_length: int | None,
        limit_name: str = "max_length",
    ) -> TextReader:
        """Return what turns texts into token ids; ``tokenizer`` must not truncate."""

    def vocabulary(self, tokenizer: Tokenizer, size: int) -> Vocabulary:
        """Return the columns of a vector for an output layer of ``size`` rows."""
        return Vocabulary(tokenization.vocabulary_of(tokenizer, size))

    @abstractmethod
    def load(self, side: NeuralSide, options: EncoderOptions) -> PreTrainedModel:
        """Load the network for encoding."""

    @abstractmethod
    def place(self, model: PreTrainedModel, options: EncoderOptions) -> None:
        """Move a network whose output layer was taken off to its device and type."""

    @abstractmethod
    def load_for_training(
        self, side: NeuralSide, *, allow_pickle: bool, base: BasePrecision
    ) -> tuple[PreTrainedModel, list[str]]:
        """Load the network for training; return it and the names of weights that are new.

        ``base`` is the precision of a network that stays fixed under adapters.
        """

    @abstractmethod
    def open_logits(
        self, model: PreTrainedModel, tokenizer: Tokenizer, side: NeuralSide
    ) -> OpenedLogits:
        """Prepare attention and logits of a loaded network. Raises ``ModelError``."""

    @property
    def forward_options(self) -> Mapping[str, bool]:
        """Further arguments of each call of the network."""
        return {}

    @abstractmethod
    def choose_layout(
        self, layout: Layout | None, *, weights_given: bool, weights_stored: bool
    ) -> Layout:
        """Return the layout to save in, by default the fullest one.

        Args:
            layout: What the user asks for.
            weights_given: Whether the user gives token weights for queries.
            weights_stored: Whether the checkpoint brings token weights for queries.

        Raises ``ConfigError`` for a layout that this family cannot be saved in.
        """

    @abstractmethod
    def save(self, folder: Path, request: SaveRequest) -> None:
        """Write a model folder; ``folder`` appears whole or stays as it was."""


@dataclass(frozen=True)
class NeuralSide:
    """One side of a checkpoint that a network reads.

    Attributes:
        folder: Where the network lies.
        family: The family of the network, with its settings.
        pooling: How the scores of tokens become one score per term.
        activation: What turns a score into a weight.
        max_length: The limit that the layout states, None if it states nothing.
        lowercase: Whether the layout asks for lower case before the tokenizer.
        template: What is read, with ``{text}`` for the text.
        adapter: The folder of a peft adapter to the network.
    """

    folder: Path
    family: Family
    pooling: Pooling = "max"
    activation: Activation = "relu"
    max_length: int | None = None
    lowercase: bool = False
    template: str = TEXT_PLACEHOLDER
    adapter: Path | None = None

    @property
    def tokenizer_folder(self) -> Path:
        """The folder of the tokenizer, which an adapter may bring along."""
        if self.adapter is not None and (self.adapter / "tokenizer_config.json").is_file():
            return self.adapter
        return self.folder


@dataclass(frozen=True)
class StaticSide:
    """One weight per token; the tokenizer is in ``folder``.

    ``weights_path`` is a tensor file (``weight``, ``[V]``) or an ``idf.json``.
    """

    folder: Path
    weights_path: Path


@dataclass(frozen=True)
class Checkpoint:
    """A model folder, understood.

    ``revision`` is the commit of a hub model, ``None`` for a local folder.
    """

    name: str
    folder: Path
    revision: str | None
    layout: Layout
    document: NeuralSide
    query: NeuralSide | StaticSide
    document_prompt: str = ""
    query_prompt: str = ""
    top_k: int | None = None
    idf_path: Path | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
