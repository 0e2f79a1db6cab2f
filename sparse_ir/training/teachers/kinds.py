"""All kinds of teachers: a new one is a new file and one line here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from sparse_ir.errors import ConfigError
from sparse_ir.training.fields import SECTION
from sparse_ir.training.markdown import Markdown
from sparse_ir.training.sources.training_source import TrainingSource
from sparse_ir.training.teachers.base import TeacherSettings
from sparse_ir.training.teachers.bm25 import Bm25Settings
from sparse_ir.training.teachers.cross_encoder import CrossEncoderSettings
from sparse_ir.training.teachers.dense import DenseSettings
from sparse_ir.training.teachers.monot5 import MonoT5Settings
from sparse_ir.training.teachers.sparse import SparseSettings


@dataclass(frozen=True, config=SECTION, kw_only=True)
class FileSettings(TeacherSettings):
    """The scores of a query's own documents in a JSONL training file."""

    kind: Literal["file"] = "file"
    scores_own_documents_only: ClassVar[bool] = True

    def open(self, sources: Sequence[TrainingSource], cache: Path) -> None:
        """Check that every source has scores; the batches bring them."""
        for source in sources:
            if source.scores is None:
                raise ConfigError(
                    f"teacher of kind 'file': the source {source.name!r} has no scores; it must "
                    "be a JSONL file with scores in each line"
                )

    def sentence(self) -> Markdown:
        """The model card's words, without the weight."""
        return Markdown("the scores in the training file")


# value of the key ``kind`` -> settings, which open the teacher and describe it in the model card
TEACHERS: dict[str, type[TeacherSettings]] = {
    "dense": DenseSettings,
    "sparse": SparseSettings,
    "cross-encoder": CrossEncoderSettings,
    "monot5": MonoT5Settings,
    "bm25": Bm25Settings,
    "file": FileSettings,
}
