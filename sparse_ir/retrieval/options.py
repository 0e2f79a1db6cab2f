"""What a search may leave out: one record of options, and the query terms that they choose.

The chosen terms form the first phase. Without ``candidates`` its ranking is the answer. With them
it only proposes documents, whose exact scores under the whole query come from the forward index
(two phases). Sources: two-phase search and its pruning types max_ratio, alpha_mass and top_k in
OpenSearch's neural sparse search; Two-Step SPLADE, arXiv 2404.13357.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from sparse_ir.engines.base import SPARSE
from sparse_ir.errors import ConfigError, DamagedError, IndexMismatch
from sparse_ir.storage import files, sealed

_FORMAT = 1
_REMOVED = {"stop_share"}  # options of earlier versions that saved no time


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search; the default is exact search.

    They look at a query in this order:

    ``min_ratio``: only terms of at least this share of the heaviest weight.
    ``mass``: the heaviest terms that together hold this share of the sum of all weights.
    ``top_terms``: at most this number of terms, the heaviest.
    ``postings``: the heaviest terms whose postings together are at most this number per document of
    the collection.
    ``candidates``: rescore the first ``candidates x k`` documents with all terms; 0 means no second
    phase.

    "Heaviest" goes by the weight that the query encoder gave, under a folded rule too; equal
    weights are ordered by ascending document frequency. The heaviest term always stays.
    """

    min_ratio: float = 0.0
    mass: float = 1.0
    top_terms: int | None = None
    postings: float | None = None
    candidates: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is None and name in ("top_terms", "postings"):
                continue
            wanted = int if name == "top_terms" else (int, float)
            if isinstance(value, bool) or not isinstance(value, wanted):
                kind = "a whole number" if name == "top_terms" else "a number"
                raise ConfigError(f"{name} is {value!r}; it must be {kind}")
        self._check("min_ratio", 0 <= self.min_ratio <= 1, "a share of 0 to 1")
        self._check("mass", 0 < self.mass <= 1, "a share above 0 and up to 1")
        self._check("top_terms", self.top_terms is None or self.top_terms >= 1, "at least 1")
        self._check("postings", self.postings is None or self.postings > 0, "above 0")
        is_candidates = self.candidates == 0 or 1 <= self.candidates < float("inf")
        self._check("candidates", is_candidates, "0 (no second phase), or at least 1 for each hit")

    def _check(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ConfigError(f"{name} is {getattr(self, name)}; it must be {rule}")

    @functools.cached_property
    def leaves_out(self) -> bool:
        """True when a query may lose terms in the first phase; otherwise the search is exact."""
        return self != SearchOptions(candidates=self.candidates)

    def to_json(self) -> dict[str, Any]:
        """The options that differ from exact search."""
        standard = asdict(EXACT)
        changed = {}
        for name, value in asdict(self).items():
            if value != standard[name]:
                changed[name] = value
        return changed

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> SearchOptions:
        """The options that ``to_json`` wrote; options that were removed since are left out.

        Raises ``ConfigError`` for an option that this version does not know.
        """
        known = {field.name for field in fields(cls)}
        removed = sorted(_REMOVED & set(value))
        if removed:
            warnings.warn(
                f"search option {', '.join(removed)} was removed and is ignored; run "
                "sparse-ir tune again",
                stacklevel=2,
            )
        unknown = sorted(set(value) - known - _REMOVED)
        if unknown:
            raise ConfigError(f"search options {', '.join(unknown)} are unknown to this version")
        return cls(**{name: setting for name, setting in value.items() if name in known})

    def __str__(self) -> str:
        """Short enough for a row of a table: ``mass=0.6 candidates=5``, or ``exact``."""
        return " ".join(f"{name}={value:g}" for name, value in self.to_json().items()) or "exact"


EXACT = SearchOptions()


def choose_terms(
    options: SearchOptions, weights: np.ndarray, frequencies: np.ndarray, num_documents: int
) -> np.ndarray:
    """Positions of the query terms of the first phase, ascending.

    ``weights`` float ``(T,)``, each above 0; ``frequencies`` int ``(T,)``: documents that hold each
    term. Terms that no document holds are left out; at least one term stays if any is held.
    """
    held = np.flatnonzero(frequencies)
    if not len(held):
        return held
    order = held[np.lexsort((frequencies[held], -weights[held]))]
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
    path: Path,
    index_sha256: str,
    options: SearchOptions,
    facts: dict[str, Any],
    ranking: str = SPARSE,
) -> None:
    """Keep options for one version of an index and one ranking, with what was measured for them."""
    record = {"format": _FORMAT, "index_sha256": index_sha256, "options": options.to_json()}
    if ranking != SPARSE:
        record["ranking"] = ranking
    files.write_json(path, sealed.seal(record | facts))


def read_tuned(path: Path, index_sha256: str, ranking: str = SPARSE) -> SearchOptions:
    """The options that ``write_tuned`` kept for this version of the index.

    Raises ``ConfigError`` when there are none, ``DamagedError`` when the file was changed, and
    ``IndexMismatch`` when they were measured on another version or with another ranking.
    """
    if not path.exists():
        raise ConfigError(f"{path.parent} has no tuned options; run sparse-ir tune first")
    record = files.read_json(path)
    is_record = isinstance(record, dict) and record.get("format") == _FORMAT
    if not is_record or not sealed.is_intact(record):
        raise DamagedError(f"{path} is damaged or of another version; run sparse-ir tune again")
    if record["index_sha256"] != index_sha256:
        raise IndexMismatch(
            f"{path} was measured on another version of this index; run sparse-ir tune again"
        )
    measured_with = record.get("ranking", SPARSE)
    if measured_with != ranking:
        raise IndexMismatch(
            f"{path} was measured with the ranking {measured_with}, not with {ranking}; run "
            "sparse-ir tune again"
        )
    return SearchOptions.from_json(record["options"])
