"""What a search may leave out: one record of settings, and the choice of the query terms that it
makes.

The terms that are left form the first phase. Without ``candidates`` its ranking is the answer; with
them it only proposes documents, whose exact scores under the whole query then come from the forward
index (two phases). Sources: two-phase search and its pruning types max_ratio, alpha_mass, top_k in
OpenSearch's neural sparse search; Two-Step SPLADE, arXiv 2404.13357. It knows neither queries' text
nor Lucene.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from sparse_ir.errors import ConfigError, DamagedError, IndexMismatch
from sparse_ir.storage import files, sealed

_FORMAT = 1


@dataclass(frozen=True)
class SearchOptions:
    """Settings of a search; the default is exact search. In the order in which they look at a
    query:

    ``stop_share``: leave out terms that more than this share of the documents hold (a stop list by
    posting cost). ``min_ratio``: of what is left, only weights of at least this share of the
    heaviest. ``mass``: the heaviest that together hold this share of the sum of all weights of the
    query. ``top_terms``: at most so many, the heaviest. ``postings``: the heaviest whose postings
    together are at most so many per document of the collection. ``candidates``: rescore the first
    ``candidates x k`` documents with all terms; 0: no second phase.

    "Heaviest" is by the query encoder's weight, under a folded rule too; equal weights by ascending
    document frequency. The heaviest term that ``stop_share`` leaves always stays, and when it
    leaves none, the rarest.
    """

    stop_share: float = 1.0
    min_ratio: float = 0.0
    mass: float = 1.0
    top_terms: int | None = None
    postings: float | None = None
    candidates: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is None and name in ("top_terms", "postings"):
                continue
            if not isinstance(value, int if name == "top_terms" else (int, float)) or isinstance(
                value, bool
            ):
                raise ConfigError(
                    f"{name} {value!r} is not allowed; use a "
                    f"{'whole ' * (name == 'top_terms')}number"
                )
        for name in ("stop_share", "mass"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(
                    f"{name} {getattr(self, name)} is not allowed; use a share above 0 and up to 1"
                )
        if not 0 <= self.min_ratio <= 1:
            raise ConfigError(f"min_ratio {self.min_ratio} is not allowed; use a share of 0 to 1")
        if self.top_terms is not None and self.top_terms < 1:
            raise ConfigError(f"top_terms {self.top_terms} is not allowed; keep at least 1 term")
        if self.postings is not None and not self.postings > 0:
            raise ConfigError(f"postings {self.postings} is not allowed; use a number above 0")
        if not (self.candidates == 0 or 1 <= self.candidates < float("inf")):
            raise ConfigError(
                f"candidates {self.candidates} is not allowed; use 0 (no second "
                "phase), or at least 1 "
                "candidate for each hit"
            )

    @functools.cached_property
    def leaves_out(self) -> bool:
        """True when a query may lose terms in the first phase; otherwise the search is exact."""
        return self != SearchOptions(candidates=self.candidates)

    def to_json(self) -> dict[str, Any]:
        """The settings that differ from exact search."""
        standard = asdict(EXACT)
        return {name: value for name, value in asdict(self).items() if value != standard[name]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> SearchOptions:
        """What ``to_json`` wrote; raises ``ConfigError`` for a setting this
        version does not know.
        """
        if unknown := sorted(set(value) - {field.name for field in fields(cls)}):
            raise ConfigError(f"search options {', '.join(unknown)} are unknown to this version")
        return cls(**value)

    def __str__(self) -> str:
        """Short enough for a row of a table: ``mass=0.6 candidates=5``, or ``exact``."""
        return " ".join(f"{name}={value:g}" for name, value in self.to_json().items()) or "exact"


EXACT = SearchOptions()


def choose_terms(
    options: SearchOptions,
    weights: np.ndarray,
    frequencies: np.ndarray,
    num_documents: int,
) -> np.ndarray:
    """Positions of the query terms of the first phase, ascending; at least one, if any document
    holds any term.

    ``weights`` float ``(T,)``, all > 0; ``frequencies`` int ``(T,)``: documents that hold each
    term. Terms that no document holds are none of the query's.
    """
    held = np.flatnonzero(frequencies)
    rare = held[frequencies[held] <= options.stop_share * num_documents]
    if not len(rare):
        return held[np.argsort(frequencies[held], kind="stable")[:1]]
    order = rare[np.lexsort((frequencies[rare], -weights[rare]))]
    heaviest_first = weights[order].astype(np.float64)
    before = np.cumsum(heaviest_first) - heaviest_first
    kept = heaviest_first >= options.min_ratio * heaviest_first[0]
    kept &= before < options.mass * float(weights[held].sum(dtype=np.float64))
    if options.postings is not None:
        kept &= np.cumsum(frequencies[order]) <= options.postings * num_documents
    if options.top_terms is not None:
        kept[options.top_terms :] = False
    kept[0] = True
    return np.sort(order[kept])


def write_tuned(
    path: Path, index_sha256: str, options: SearchOptions, facts: dict[str, Any]
) -> None:
    """Keep options for one version of an index, with what was measured when they were chosen."""
    record = {
        "format": _FORMAT,
        "index_sha256": index_sha256,
        "options": options.to_json(),
        **facts,
    }
    files.write_json(path, sealed.seal(record))


def read_tuned(path: Path, index_sha256: str) -> SearchOptions:
    """The options that ``write_tuned`` kept for this version of the index.

    Raises ``ConfigError`` when there are none, ``DamagedError`` when the file was changed, and
    ``IndexMismatch`` when they were measured on another version.
    """
    if not path.exists():
        raise ConfigError(f"{path.parent} has no tuned options; run sparse-ir tune first")
    record = files.read_json(path)
    if (
        not isinstance(record, dict)
        or record.get("format") != _FORMAT
        or not sealed.is_intact(record)
    ):
        raise DamagedError(f"{path} is damaged or of another version; run sparse-ir tune again")
    if record["index_sha256"] != index_sha256:
        raise IndexMismatch(
            f"{path} was measured on another version of this index; run sparse-ir tune again"
        )
    return SearchOptions.from_json(record["options"])
