"""What every teacher offers, and the part of its settings that every teacher has.

A teacher is one file: its settings class, which a ``[[teacher]]`` section becomes and which opens
the teacher and describes it in the model card, and its own class. ``kinds`` lists all of them.

Q queries, D documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic.dataclasses import dataclass

from sparse_ir import environment
from sparse_ir.training import markdown
from sparse_ir.training.fields import SECTION, Flag, Length, Positive, Text
from sparse_ir.training.markdown import Markdown
from sparse_ir.training.teachers.cache import OnProgress, Prepared
from sparse_ir.training.training_source import TrainingSource

_SHOWN = 80  # characters of a text in a message


class Teacher(Protocol):
    """Scores of (query, document) pairs, each computed once."""

    @property
    def name(self) -> str:
        """Name in reports and of the cache file."""

    @property
    def fingerprint(self) -> dict[str, Any]:
        """JSON-able facts that decide the scores."""

    @property
    def in_batch(self) -> bool:
        """Whether all pairs of a batch are cheap; if not, only wanted pairs are scored."""

    @property
    def forward_passes(self) -> int:
        """Texts or pairs that went through a network since this teacher was made."""

    def scores(
        self, queries: Sequence[str], documents: Sequence[str], wanted_QD: np.ndarray | None = None
    ) -> np.ndarray:
        """float32 ``[Q, D]``; NaN for a pair that a teacher without ``in_batch`` did not score."""

    def prepare(
        self, queries: Sequence[str], documents: Sequence[str], progress: OnProgress | None = None
    ) -> Prepared:
        """Compute and keep what ``scores`` will need for these texts."""


@dataclass(frozen=True, config=SECTION, kw_only=True)
class TeacherSettings:
    """``[[teacher]]``: a teacher whose scores are distilled."""

    kind: str
    """Which teacher."""
    weight: Positive = 1.0
    """Weight in the mean of all teachers."""
    # whether the teacher scores only a query's own positive and negatives
    scores_own_documents_only: ClassVar[bool] = False

    def open(self, sources: Sequence[TrainingSource], cache: Path) -> Teacher | None:
        """The teacher with its cache in the folder ``cache``; None for scores in training files."""
        raise NotImplementedError

    def sentence(self) -> Markdown:
        """The model card's words, without the weight."""
        raise NotImplementedError


@dataclass(frozen=True, config=SECTION, kw_only=True)
class NetworkSettings(TeacherSettings):
    """The settings of every teacher that runs a network."""

    model: Text
    """Folder or hub name."""
    revision: Text | None = None
    """Commit of a hub model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the network."""
    max_length: Length | None = None
    """Tokens that the network reads; by default what the model states."""
    allow_pickle: Flag = False
    """Read the weights in a pytorch_model.bin if there is no safetensors file."""

    def network_options(self) -> dict[str, Any]:
        """The fields of ``NetworkOptions``."""
        return {
            "dtype": self.dtype,
            "max_length": self.max_length,
            "allow_pickle": self.allow_pickle,
        }

    def sentence(self) -> Markdown:
        """The model card's words, without the weight."""
        model = markdown.code(markdown.hide_path(self.model))
        sentence = f"the {self.kind} model {model} in {self.dtype}"
        if self.revision:
            sentence += f", revision {markdown.code(self.revision)}"
        if self.max_length:
            sentence += f", {self.max_length} tokens"
        return Markdown(sentence)


def package_versions() -> dict[str, str]:
    """Information for a cache file; versions change scores only by rounding."""
    return environment.package_versions(("torch", "transformers", "tokenizers", "numpy"))


def shorten(text: str) -> str:
    """The beginning of a text, quoted for a message."""
    if len(text) > _SHOWN:
        text = text[:_SHOWN] + "..."
    return repr(text)
