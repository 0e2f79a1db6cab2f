"""What the commands return: plain dictionaries with known keys, ready for ``json.dumps``.

A key with a comment is missing where the comment does not apply.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

Report = dict[str, Any]  # a report whose keys depend on the arguments


class VectorsReport(TypedDict):
    """The report of ``encode``."""

    vectors: str
    encoder: str
    documents: int
    empty_documents: int  # without a text
    without_weights: int  # with a text, but no term
    weights: int
    document_megabytes: float  # of titles, texts and metadata; 0 where they are not kept
    mean_terms: float
    seconds: float


class IndexReport(TypedDict):
    """The report of ``index`` and ``bm25``."""

    index: str
    kind: str  # impact or bm25
    documents: int
    indexed: int
    empty: int
    rounded_to_nothing: NotRequired[int]  # of impact indexes, like the next six
    postings: NotRequired[int]
    sum_impacts: NotRequired[int]
    postings_pruned: NotRequired[int]
    sum_impacts_pruned: NotRequired[int]
    engine: NotRequired[str]
    rule: NotRequired[dict[str, Any]]
    fields: NotRequired[dict[str, dict[str, int]]]  # if there is a field bm25
    bm25: NotRequired[dict[str, Any]]  # its settings
    note: NotRequired[str]  # why there is no field bm25
    pruning: NotRequired[dict[str, Any]]
    megabytes: float
    document_megabytes: float  # part of it: titles, texts and metadata
    seconds: float


class BuildReport(IndexReport):
    """The report of ``build``: that of ``index``, the vectors, and the time of encoding."""

    vectors: NotRequired[str]  # missing where nothing was encoded, like the next
    encode_seconds: NotRequired[float]


class ExportReport(TypedDict):
    """The report of ``export``."""

    output: str
    documents: int
    rule: dict[str, Any]


class IdfReport(TypedDict):
    """The report of ``idf``."""

    output: str
    tokens: int


class ExplainReport(TypedDict):
    """The report of ``explain``."""

    index: str
    kind: str
    ranking: str  # sparse, bm25 or hybrid
    query: str
    query_terms: dict[str, Any]
    lost_in_query: dict[str, float]  # terms that round to 0
    documents: list[dict[str, Any]]
    comparisons: list[dict[str, Any]]  # of each document with the next
    page: NotRequired[str]  # if a page was written


class FindingReport(TypedDict):
    """A finding of ``doctor``."""

    name: str
    severity: str  # fault or warning
    evidence: dict[str, Any]
    remedy: str


class ExaminationReport(TypedDict):
    """What ``diagnosis`` reports of a model."""

    kind: str
    healthy: bool  # no fault
    faults: int
    warnings: int
    findings: list[FindingReport]  # faults first
    measured: dict[str, dict[str, Any]]  # the evidence of every check


class DoctorReport(ExaminationReport):
    """The report of ``doctor``."""

    model: str


class LeaderboardReport(TypedDict):
    """The report of ``leaderboard``."""

    output: str
    files: int
    mean_over: Any
    systems: dict[str, dict[str, Any]]
    published: int
    verified_rows: NotRequired[int]  # if rows were verified
    not_shown: NotRequired[Any]  # if rows are left out


class DemoAnswer(TypedDict):
    """A question of ``demo`` with its first hits."""

    question: str
    hits: list[dict[str, Any]]


class DemoReport(TypedDict):
    """The report of ``demo``."""

    collection: str
    packages: dict[str, str]
    judged_documents_not_installed: int
    systems: dict[str, dict[str, Any]]
    answers: list[DemoAnswer]
    ask: str  # the command to ask a question of one's own
