"""Figures that others have published, as data: to stand beside measured rows, never among them.

``resources/published.jsonl`` holds one record for each system, measure and source. All values are
fractions of 1, also where the source prints them times 100. A status says how a figure was read:
``primary`` in the source that is named, ``secondary`` in an abstract, a digest or another's
quotation, ``unverified`` not at all. It computes nothing.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Sequence
from typing import Literal, NamedTuple

from sparse_ir.errors import ConfigError

Status = Literal["primary", "secondary", "unverified"]
# another set of judgements than webis-touche2020, under the same name in old papers
TOUCHE_V1 = "webis-touche2020-v1"
ALL, NONE, DEFAULT = "all", "none", "default"
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


class Published(NamedTuple):
    """One measure of one system, as one source states it."""

    system: str
    kind: str  # lexical, inference-free, sparse, dense, late interaction
    measure: str
    values: dict[str, float]  # data set (or an average such as beir-13) -> value, a fraction of 1
    source: str
    status: Status
    note: str = ""


def read_published() -> list[Published]:
    """All published figures, by system and measure; no system has two values of one measure on one
    data set.
    """
    text = (
        importlib.resources.files("sparse_ir")
        .joinpath("resources/published.jsonl")
        .read_text(encoding="utf-8")
    )
    return [Published(**json.loads(line)) for line in text.splitlines()]


def select(systems: str = DEFAULT, datasets: Sequence[str] | None = None) -> list[Published]:
    """The figures of some systems on some data sets; records that are left without a figure are
    left out.

    ``systems`` is ``default``, ``all``, ``none``, or names separated by semicolons (they have
    commas of their own); ``datasets`` None means every one. Raises ``ConfigError`` for an unknown
    name.
    """
    records = read_published()
    names = _names(systems, {record.system for record in records})
    found = [record for record in records if record.system in names]
    if datasets is None:
        return found
    cut = [
        record._replace(
            values={name: record.values[name] for name in datasets if name in record.values}
        )
        for record in found
    ]
    return [record for record in cut if record.values]


def _names(systems: str, known: set[str]) -> set[str]:
    if systems in (ALL, NONE, DEFAULT):
        return {ALL: known, NONE: set(), DEFAULT: set(DEFAULT_SYSTEMS)}[systems]
    names = {name.strip() for name in systems.split(";") if name.strip()}
    if unknown := sorted(names - known):
        raise ConfigError(
            f"published system {unknown[0]!r} is unknown, allowed: {DEFAULT}, "
            f"{ALL}, {NONE}, or names "
            f"separated by semicolons: {'; '.join(sorted(known))}"
        )
    return names
