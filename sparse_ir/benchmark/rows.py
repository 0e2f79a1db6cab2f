"""A row of the leaderboard as typed records: what one system achieved on one data set.

The records mirror ``result.json`` and ``timing.json``. They are checked when they are made, so a
stored file with a wrong type or an impossible number never becomes a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue

FORMAT = 1
HASHES = ("corpus_sha256", "queries_sha256", "qrels_sha256")
COUNTS = ("documents", "queries", "judgements", "absent_documents", "absent_queries")

Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Value = Annotated[float, Field(allow_inf_nan=False)]


class Record(BaseModel):
    """An immutable record that converts no types; fields that it does not know are kept."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")


class DatasetFacts(Record):
    """The data set of a row: its counts, its rules, and the SHA-256 of its three files."""

    model_config = ConfigDict(extra="forbid")

    name: str
    split: str
    source: str  # the name under which it is found and fetched
    documents: Count
    queries: Count  # with judgements
    judgements: Count
    absent_documents: Count  # judged, but not in the corpus
    absent_queries: Count
    remove_identical: bool
    relevance_level: Count
    corpus_sha256: str
    queries_sha256: str
    qrels_sha256: str


class SystemFacts(Record):
    """The system of a row; its parts (encoder, query side, rule ...) are kept as they were."""

    name: str
    kind: str
    model: str | None
    revision: str | None
    hash: str  # over everything that decides its scores


class Efficiency(Record):
    """What a search costs, counted without a clock."""

    mean_query_terms: Amount
    mean_document_terms: Amount
    flops: Amount
    index_bytes: Count


class RunFacts(Record):
    """The stored run: how deep the search went, and the checksum and the counts of the file."""

    hits_per_query: Count
    sha256: str | None = None  # None before the run is written, and for a merged row
    queries: Count | None = None
    queries_without_hits: Count | None = None
    hits: Count | None = None


class Result(Record):
    """``result.json``: everything that a second computation repeats."""

    format: int = FORMAT
    dataset: DatasetFacts
    system: SystemFacts
    measures: dict[str, Amount]  # column -> mean over all judged queries
    measured_as: dict[str, str] = {}
    efficiency: Efficiency
    run: RunFacts
    versions: dict[str, JsonValue]
    commit: str | None = None
    command: str | None = None
    identity: dict[str, JsonValue]
    per_query: dict[str, dict[str, Value]]  # column -> query_id -> value


class Hardware(Record):
    """The machine that the times were measured on."""

    processor: str | None = None


class Timing(Record):
    """``timing.json``: everything that a clock measured, with the machine and the date."""

    encode_documents_per_second: Amount | None = None
    search_latency_ms: dict[str, Amount] | None = None  # mean, p50, p95, p99
    query_encode_ms: dict[str, Amount] | None = None
    hardware: Hardware = Hardware()
    date: str | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """One system on one data set."""

    result: Result
    timing: Timing = dataclasses.field(default_factory=Timing)
    merged_from: tuple[Row, ...] = ()  # the rows of the forums, for a row that was made from them

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return self.result.dataset.name

    @property
    def system(self) -> str:
        """Name of the system."""
        return self.result.system.name

    @property
    def parts(self) -> Mapping[str, Row]:
        """Prefix of the query ids -> the row of these queries; a plain row is its only part."""
        if not self.merged_from:
            return {"": self}
        prefix = f"{self.dataset}-"
        return {f"{row.dataset.removeprefix(prefix)}/": row for row in self.merged_from}

    @property
    def measures(self) -> Mapping[str, float]:
        """Column -> mean over all judged queries."""
        return self.result.measures

    @property
    def per_query(self) -> Mapping[str, Mapping[str, float]]:
        """Column -> query_id -> value, for all judged queries."""
        return self.result.per_query

    @property
    def processors(self) -> str | None:
        """The processors on which the times were measured."""
        known = {part.timing.hardware.processor or "" for part in self.parts.values()} - {""}
        return "; ".join(sorted(known)) or None

    @property
    def latest_date(self) -> str | None:
        """When the times were measured."""
        return max(part.timing.date or "" for part in self.parts.values()) or None

    def shown_measure(self, column: str) -> float | None:
        """The mean; None if the row lacks the column or its run is too shallow for the cutoff."""
        cutoff = int(column.partition("@")[2])
        needed = min(cutoff, self.result.dataset.documents)
        if self.result.run.hits_per_query < needed:
            return None
        return self.measures.get(column)
