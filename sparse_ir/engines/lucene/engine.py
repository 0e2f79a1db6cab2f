"""The engine ``lucene``: impacts in a Lucene index that Pyserini opens.

An impact is stored as a term frequency, and Anserini's ``ImpactSimilarity`` scores a term as
``frequency x boost``. A score is therefore the dot product of two integer vectors; Lucene adds it
up in float32, which is exact up to 2**24.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sparse_ir.engines.base import LARGEST_IMPACT, Capabilities, FindIds, ImpactBatch
from sparse_ir.engines.lucene import checking, writer
from sparse_ir.engines.lucene.impact_reader import ImpactReader
from sparse_ir.engines.lucene.terms import MAX_TERM_BYTES


class LuceneEngine:
    """The engine ``lucene``; see ``base.Engine``."""

    name = "lucene"
    capabilities = Capabilities(
        largest_impact=LARGEST_IMPACT,
        exact_below=2**24,
        longest_token_bytes=MAX_TERM_BYTES,
        longest_doc_id_bytes=MAX_TERM_BYTES,
        needs_java=True,
    )

    def version(self) -> str:
        """The version of Lucene in Pyserini's jar, for example ``9.9.1``."""
        return checking.lucene_version()

    def write(
        self,
        folder: Path,
        batches: Sequence[Callable[[], ImpactBatch]],
        vocabularies: Mapping[str, Sequence[str]],
        *,
        threads: int = 1,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Write a Lucene index with one segment per thread."""
        writer.write_impacts(folder, batches, vocabularies, threads=threads, progress=progress)

    def check(self, folder: Path) -> None:
        """Run Lucene's CheckIndex over every file."""
        checking.check_index(folder)

    def open(self, folder: Path, find_ids: FindIds | None = None) -> ImpactReader:
        """Open a Lucene impact index, one that Pyserini built included."""
        return ImpactReader(folder, find_ids)
