"""Teachers that read a query and a document together, one cached score for each pair."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparse_ir.errors import DataError, ModelError
from sparse_ir.models import model_files
from sparse_ir.training.teachers.base import CachedTeacher, Computed, shorten
from sparse_ir.training.teachers.cache import OnProgress, Prepared, key_of, key_of_pair
from sparse_ir.training.teachers.network_folder import NetworkFolder, NetworkOptions

_PAIRS_AT_ONCE = 100_000


class PairTeacher(CachedTeacher):
    """Base of teachers that score a pair at a time, and only the pairs asked for.

    A subclass describes its folder (``_describe``) and scores pairs (``_score_pairs``).
    """

    in_batch = False

    def __init__(
        self,
        model: str | Path,
        facts: dict[str, Any],
        *,
        revision: str | None = None,
        cache: Path | None = None,
        **options: Any,
    ) -> None:
        """Describe the model and open its cache; a pair without a cached score loads the network.

        Args:
            model: Folder or hub name.
            facts: What decides the scores besides the network.
            revision: Commit of a hub model.
            cache: Folder of the cache files; None keeps the scores in memory.
            options: Fields of ``NetworkOptions``; ``max_length`` is that of the pair.

        Raises:
            ModelError: The folder holds another kind of model.
            ConfigError: An option has a wrong value.
        """
        network_options = NetworkOptions(**options)
        folder, commit = model_files.resolve_folder(model, revision, network_options.allow_pickle)
        self._network = self._describe(folder, network_options)
        self.name = folder.name if commit is None else str(model)
        self.fingerprint = {"name": self.name} | self._network.provenance | facts
        self.fingerprint["revision"] = commit
        self._open_cache(cache, "pairs", self.fingerprint)

    def scores(
        self, queries: Sequence[str], documents: Sequence[str], wanted_QD: np.ndarray | None = None
    ) -> np.ndarray:
        """float32 ``[Q, D]``: scores of the wanted pairs, NaN elsewhere.

        ``wanted_QD`` is bool ``[Q, D]``; by default all pairs are wanted. Raises ``ModelError`` for
        a score that is not finite.
        """
        shape = (len(queries), len(documents))
        if wanted_QD is None:
            wanted_QD = np.ones(shape, dtype=bool)
        if wanted_QD.shape != shape or wanted_QD.dtype != bool:
            raise DataError(
                f"wanted_QD is {wanted_QD.dtype} of the shape {wanted_QD.shape} but must be bool "
                f"of {shape}"
            )
        places = np.argwhere(wanted_QD).tolist()
        pairs = [(queries[query], documents[document]) for query, document in places]
        values = self._fetch(self.keys(pairs), pairs)
        scores_QD = np.full(shape, np.nan, dtype=np.float32)
        scores_QD[wanted_QD] = np.frombuffer(b"".join(values), dtype="<f4")
        return scores_QD

    def keys(self, pairs: Iterable[tuple[str, str]]) -> list[bytes]:
        """The cache key of each (query, document) pair."""
        hashed = functools.lru_cache(maxsize=100_000)(key_of)
        return [
            key_of_pair(hashed(query, "query"), hashed(document, "document"))
            for query, document in pairs
        ]

    def prepare(
        self, queries: Sequence[str], documents: Sequence[str], progress: OnProgress | None = None
    ) -> Prepared:
        """Fill the cache for all pairs of the texts; ``prepare_pairs`` takes chosen pairs."""
        return self.prepare_pairs(itertools.product(queries, documents), progress)

    def prepare_pairs(
        self, pairs: Iterable[tuple[str, str]], progress: OnProgress | None = None
    ) -> Prepared:
        """Fill the cache for these pairs; ``progress(n)`` is called when n more pairs are done."""
        total = Prepared(0, 0)
        remaining = iter(pairs)
        while True:
            block = list(itertools.islice(remaining, _PAIRS_AT_ONCE))
            if not block:
                return total
            total = total.plus(self._fill(self.keys(block), block, progress=progress))

    def _describe(self, folder: Path, options: NetworkOptions) -> NetworkFolder:
        """Check and describe the folder without loading its weights."""
        raise NotImplementedError

    def _score_pairs(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        """float32 ``[len(pairs)]``: the scores of at most ``batch_size`` pairs."""
        raise NotImplementedError

    def _compute(self, pairs: Sequence[tuple[str, str]], role: str) -> Iterator[Computed]:
        size = self._network.batch_size
        for start in range(0, len(pairs), size):
            batch = list(pairs[start : start + size])
            scores = self._score_pairs(batch).astype("<f4")
            for (query, document), score in zip(batch, scores, strict=True):
                if not np.isfinite(score):
                    raise ModelError(
                        f"{self.name} gives the score {score} to the query {shorten(query)} with "
                        f"the document {shorten(document)}; it must be a finite number"
                    )
            yield range(start, start + len(batch)), [score.tobytes() for score in scores]
