"""What every teacher offers, and the part of its settings that every teacher has.

A teacher is one file: its settings class, which a ``[[teacher]]`` section becomes and which opens
the teacher and describes it in the model card, and its own class. ``kinds`` lists all of them.

Q queries, D documents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from sparse_ir.environment import package_versions
from sparse_ir.training import markdown
from sparse_ir.training.fields import SECTION, Flag, Length, Positive, Text
from sparse_ir.training.markdown import Markdown
from sparse_ir.training.sources.training_source import TrainingSource
from sparse_ir.training.teachers.cache import Cache, OnProgress, Prepared, key_of

_SHOWN = 80  # characters of a text in a message
_ITEMS_PER_WINDOW = 4096
Item = Any  # a text, or a (query, document) pair of texts
Computed = tuple[Sequence[int], list[bytes]]  # positions of items, and their values


class Teacher:
    """Base of all teachers: scores of (query, document) pairs, each computed once."""

    name: str  # in reports and of the cache file
    fingerprint: dict[str, Any]  # JSON-able facts that decide the scores
    in_batch = True  # all pairs of a batch are cheap; if False, only wanted pairs are scored
    forward_passes = 0  # texts or pairs that went through a network since this teacher was made

    def scores(
        self, queries: Sequence[str], documents: Sequence[str], wanted_QD: np.ndarray | None = None
    ) -> np.ndarray:
        """float32 ``[Q, D]``; NaN for a pair that a teacher without ``in_batch`` did not score."""
        raise NotImplementedError

    def prepare(
        self, queries: Sequence[str], documents: Sequence[str], progress: OnProgress | None = None
    ) -> Prepared:
        """Compute and keep what ``scores`` will need; ``progress(n)``: n more texts are done."""
        raise NotImplementedError


class CachedTeacher(Teacher):
    """A teacher whose values, of texts or of pairs, are kept in a cache."""

    cache: Cache

    def _open_cache(self, folder: Path | None, kind: str, facts: Mapping[str, Any]) -> None:
        """Open the cache of the values that ``facts`` decide; without a folder, in memory."""
        # versions change values only by rounding, so they are kept and not compared
        versions = package_versions(("torch", "transformers", "tokenizers", "numpy"))
        self.cache = Cache(folder, self.name, kind, facts, versions)

    def _compute(self, items: Sequence[Item], role: str) -> Iterator[Computed]:
        raise NotImplementedError

    def _fetch(self, keys: Sequence[bytes], items: Sequence[Item], role: str = "") -> list[bytes]:
        """The value of every key."""
        values = self.cache.get(keys)
        absent = {key: item for key, item in zip(keys, items, strict=True) if key not in values}
        if absent:
            self._fill(list(absent), list(absent.values()), role)
            values |= self.cache.get(list(absent))
        return [values[key] for key in keys]

    def _fill(
        self,
        keys: Sequence[bytes],
        items: Sequence[Item],
        role: str = "",
        progress: OnProgress | None = None,
    ) -> Prepared:
        """Compute what is missing, the longest items first, in windows of similar lengths."""
        distinct = dict(zip(keys, items, strict=True))
        missing = self.cache.missing(list(distinct))
        missing.sort(key=lambda key: -len("".join(distinct[key])))
        if progress is not None:
            progress(len(distinct) - len(missing))
        for start in range(0, len(missing), _ITEMS_PER_WINDOW):
            window = missing[start : start + _ITEMS_PER_WINDOW]
            for positions, values in self._compute([distinct[key] for key in window], role):
                window_keys = [window[position] for position in positions]
                self.cache.put(zip(window_keys, values, strict=True))
                self.forward_passes += len(values)
                if progress is not None:
                    progress(len(values))
        return Prepared(len(distinct), len(missing))


class TextTeacher(CachedTeacher):
    """A teacher that keeps one vector for each text."""

    def keys(self, texts: Sequence[str], role: str) -> list[bytes]:
        """The cache key of each text."""
        return [key_of(text, role) for text in texts]

    def prepare(
        self, queries: Sequence[str], documents: Sequence[str], progress: OnProgress | None = None
    ) -> Prepared:
        """Fill the cache; ``progress(n)`` is called when n more texts are done."""
        first = self._fill(self.keys(queries, "query"), queries, "query", progress)
        second = self._fill(self.keys(documents, "document"), documents, "document", progress)
        return first.plus(second)


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

    teacher: ClassVar[Callable[..., Teacher]]
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

    def options(self) -> dict[str, Any]:
        """The options of the teacher."""
        own = dataclasses.asdict(self)
        for key in ("kind", "weight", "model"):
            del own[key]
        return own

    def open(self, sources: Sequence[TrainingSource], cache: Path) -> Teacher:
        """The teacher with its cache in the folder ``cache``."""
        return type(self).teacher(self.model, cache=cache, **self.options())

    def sentence(self) -> Markdown:
        """The model card's words, without the weight."""
        model = markdown.code(markdown.hide_path(self.model))
        sentence = f"the {self.kind} model {model} in {self.dtype}"
        if self.revision:
            sentence += f", revision {markdown.code(self.revision)}"
        if self.max_length:
            sentence += f", {self.max_length} tokens"
        return Markdown(sentence)


def shorten(text: str) -> str:
    """The beginning of a text, quoted for a message."""
    if len(text) > _SHOWN:
        text = text[:_SHOWN] + "..."
    return repr(text)
