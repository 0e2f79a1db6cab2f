"""Figures that others have published: shown beside measured rows, never among them.

``resources/published.jsonl`` holds one record for each system, measure and source. All values are
fractions of 1, even if the source prints them times 100. The status says how a figure was read:
``primary`` in the named source, ``secondary`` in an abstract, a digest or a quotation,
``unverified`` not at all.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
from collections.abc import Sequence
from operator import attrgetter
from typing import Literal

from sparse_ir.errors import ConfigError

Status = Literal["primary", "secondary", "unverified"]
ALL = "all"
NONE = "none"
DEFAULT = "default"
DEFAULT_SYSTEMS = (
    "BM25 flat (Pyserini)",
    "BM25 multifield (Pyserini)",
    "SPLADE++ ED",
    "SPLADE++ ED (Pyserini)",
    "SPLADE-v3",
    "SPLADE-v3 (Anserini)",
    "SPLADE-v3-Doc",
    "IDF-aware doc-only (Geng et al.)",
    "OpenSearch doc-v1",
    "OpenSearch doc-v2-distill",
    "OpenSearch doc-v2-mini",
    "OpenSearch doc-v3-distill",
    "OpenSearch doc-v3-gte",
    "Echo-Mistral-SPLADE",
    "CSPLADE-Bi-1B",
    "CSPLADE-Bi-8B",
    "Contriever (Pyserini)",
    "Contriever-MSMARCO (Pyserini)",
    "BGE-base-en-v1.5 (Pyserini, Lucene)",
)


@dataclasses.dataclass(frozen=True)
class Published:
    """One measure of one system, as one source states it."""

    system: str
    kind: str  # lexical, inference-free, sparse, dense, late interaction
    measure: str
    values: dict[str, float]  # data set (or an average such as beir-13) -> value, a fraction of 1
    source: str
    status: Status
    note: str = ""
    mean: float | None = None  # over the data sets of a board

    @property
    def stated_in(self) -> str:
        """The source, with the note behind it."""
        return f"{self.source}; {self.note}" if self.note else self.source


def read_published() -> list[Published]:
    """All published figures, by system and measure.

    No system has two values of one measure on one data set.
    """
    path = importlib.resources.files("sparse_ir") / "resources" / "published.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Published(**json.loads(line)) for line in lines]


def select(systems: str = DEFAULT, datasets: Sequence[str] | None = None) -> list[Published]:
    """The figures of some systems on some data sets, without records that keep no figure.

    ``systems`` is ``default``, ``all``, ``none``, or names separated by semicolons (names contain
    commas). ``datasets`` None means all. Raises ``ConfigError`` for an unknown name.
    """
    records = read_published()
    names = _choose_names(systems, set(map(attrgetter("system"), records)))
    selected = []
    for record in records:
        if record.system not in names:
            continue
        if datasets is not None:
            values = {name: record.values[name] for name in datasets if name in record.values}
            record = dataclasses.replace(record, values=values)
        if record.values:
            selected.append(record)
    return selected


def _choose_names(systems: str, known: set[str]) -> set[str]:
    if systems == ALL:
        return known
    if systems == NONE:
        return set()
    if systems == DEFAULT:
        return set(DEFAULT_SYSTEMS)
    names = set(filter(None, map(str.strip, systems.split(";"))))
    unknown = sorted(names - known)
    if unknown:
        raise ConfigError(
            f"published system {unknown[0]!r} is unknown; it must be {DEFAULT}, {ALL}, {NONE}, or "
            f"names separated by semicolons: {'; '.join(sorted(known))}"
        )
    return names
