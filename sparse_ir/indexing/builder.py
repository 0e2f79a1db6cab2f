"""Building an impact index: quantized, written by an engine, verified, and swapped in.

INDEX/manifest.json     kind, engine, encoder, query side, rule, counts, checksum of every file
INDEX/lucene/           the engine's files; Pyserini's searchers open those of Lucene
INDEX/query/            the query side (impact indexes that have one)
INDEX/forward/          the impacts document by document (on request, or if queries are boosted)
INDEX/documents/        ids, titles, texts and metadata (if the vectors have them)
INDEX/statistics.json   document frequencies and the rule, frozen with the index
INDEX/tuned.json        search options found by ``tune``; the only file that comes later
INDEX/doc_ids.txt       the doc_id of each document number; doc_ids.npy: where each begins
INDEX/unindexed.jsonl   documents without a posting, with the reason
INDEX/samples.jsonl     exact impacts of some documents, to verify the engine's scores
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparse_ir.engines.base import LARGEST_IMPACT, SPARSE
from sparse_ir.engines.catalog import DEFAULT_ENGINE, find_engine
from sparse_ir.errors import ConfigError, IndexMismatch
from sparse_ir.indexing import document_store, quantization
from sparse_ir.indexing.building import building, progress_bar
from sparse_ir.indexing.document_store import StoreWriter
from sparse_ir.indexing.forward import FOLDER, ForwardWriter
from sparse_ir.indexing.impact_source import ImpactSource
from sparse_ir.indexing.manifest import (
    IndexManifest,
    write_doc_ids,
    write_lines,
    write_manifest,
)
from sparse_ir.indexing.pruning import Pruning
from sparse_ir.indexing.quantization import Rule, rule_from_range
from sparse_ir.indexing.statistics import Statistics
from sparse_ir.indexing.vectors import Vectors
from sparse_ir.models.interfaces import QueryEncoder
from sparse_ir.models.static_queries import StaticQueryEncoder
from sparse_ir.storage import files

DEFAULT_BITS = 8


def choose_rule(
    vectors: Vectors,
    query_encoder: QueryEncoder | None,
    *,
    scale: float | None = None,
    bits: int | None = None,
    fold: bool | None = None,
) -> Rule:
    """The quantization rule for these vectors.

    ``scale`` multiplies the weights; ``bits`` limits the largest impact to ``2**bits - 1``. Without
    a scale, the weights of the collection are spread over ``bits`` bits (8), except that
    whole-number weights keep their numbers. ``fold`` multiplies static query weights into the
    impacts, so that queries need no boosts; it is the default wherever the query side is static.
    """
    static = isinstance(query_encoder, StaticQueryEncoder)
    if fold and not static:
        raise ConfigError(
            "only static query weights (IDF, learned weights, ones) can be folded into the "
            "impacts; this query side is neural or missing"
        )
    folded = static if fold is None else fold
    if bits is not None and not 2 <= bits <= 16:
        raise ConfigError(f"bits is {bits}; it must be 2 to 16")
    if scale is not None:
        largest = LARGEST_IMPACT if bits is None else 2**bits - 1
        return Rule(scale, largest, folded)
    if bits is None and vectors.manifest["integer_weights"] and not folded:
        return Rule(1.0)
    largest_weight = _largest_weight(vectors, query_encoder, folded)
    return rule_from_range(largest_weight, bits or DEFAULT_BITS, folded=folded)


def folded_weights(query_encoder: QueryEncoder | None, rule: Rule) -> np.ndarray | None:
    """The query weights ``(V,)`` that a folded rule multiplies in; None under a plain rule."""
    if rule.folded and isinstance(query_encoder, StaticQueryEncoder):
        return query_encoder.weights
    return None


def _largest_weight(vectors: Vectors, query_encoder: QueryEncoder | None, folded: bool) -> float:
    """The largest document weight, times its query weight if these are folded in."""
    factors = None
    if folded and isinstance(query_encoder, StaticQueryEncoder):
        factors = query_encoder.weights
    largest = 0.0
    for number in range(vectors.num_shards):
        weights = vectors.read_shard(number)[1]
        values = weights.data
        if factors is not None:
            values = values * factors[weights.indices]
        largest = max(largest, float(values.max(initial=0.0)))
    return largest


def build_impact_index(
    vectors: Vectors,
    output: Path,
    rule: Rule,
    query_encoder: QueryEncoder | None,
    *,
    engine: str = DEFAULT_ENGINE,
    threads: int = 1,
    pruning: Pruning | None = None,
    forward_index: bool | None = None,
    store: bool | None = None,
    progress: bool = False,
) -> IndexManifest:
    """Build, verify and swap in an impact index; returns its manifest.

    ``forward_index`` also keeps the impacts document by document, for two-phase search; by default
    wherever queries are boosted, that is, the rule is not folded. ``store`` also keeps the
    documents themselves, by default wherever the vectors have them. Documents are accounted for:
    documents = indexed + empty + rounded to nothing + pruned to nothing. Raises ``IndexMismatch``
    when the query side has another vocabulary, ``ConfigError`` when the documents are to be kept
    and the vectors have none, ``LockedError`` when another process builds the same index; a failed
    build leaves the index at ``output`` as it was.
    """
    if query_encoder is not None:
        check_vocabulary(vectors.vocabulary, query_encoder, str(vectors.folder))
    pruning = pruning or Pruning()
    chosen = find_engine(engine)
    keeps_forward = not rule.folded if forward_index is None else forward_index
    if store and not vectors.has_documents:
        raise ConfigError(
            f"{vectors.folder} keeps no documents to store; run the encode command again, without "
            "--no-store, to add them"
        )
    with building(output) as folder:
        forward_writer = ForwardWriter(folder / FOLDER) if keeps_forward else None
        query_weights = folded_weights(query_encoder, rule)
        source = ImpactSource(vectors, rule, query_weights, pruning, forward_writer)
        with progress_bar("indexing", len(vectors), progress) as bar:
            chosen.write(
                folder / chosen.name,
                source.batches(),
                {SPARSE: vectors.vocabulary},
                threads=threads,
                progress=bar.update,
            )
        if forward_writer is not None:
            forward_writer.finish(vectors.vocabulary)
        if vectors.has_documents and store is not False:
            _copy_documents(vectors, folder / document_store.FOLDER)
        if query_encoder is not None:
            query_encoder.save(folder / "query")
        counts = source.counts()
        Statistics(counts["indexed"], rule, source.frequencies()).save(folder)
        write_lines(folder / "unindexed.jsonl", source.unindexed())
        write_lines(folder / "samples.jsonl", source.samples())
        write_doc_ids(folder, source.doc_ids())
        facts = {
            "engine": chosen.name,
            "encoder": vectors.manifest["encoder"],
            "query": query_encoder.fingerprint if query_encoder else None,
            "vocabulary_sha256": files.sha256_of_json(vectors.vocabulary),
            "rule": rule.to_json(),
            "counts": counts,
        }
        if pruning:
            facts["pruning"] = pruning.to_json()
        return write_manifest(folder, "impact", facts, {chosen.name: chosen.version()})


def _copy_documents(vectors: Vectors, folder: Path) -> None:
    with StoreWriter(folder) as writer:
        for number in range(vectors.num_shards):
            writer.add_blocks(vectors.read_blocks(number))


def check_vocabulary(vocabulary: Sequence[str], query_encoder: QueryEncoder, place: str) -> None:
    """Raise ``IndexMismatch`` unless the query side numbers the same tokens in the same way."""
    if list(query_encoder.vocabulary) != list(vocabulary):
        raise IndexMismatch(
            f"{place}: the query side has another vocabulary "
            f"({len(query_encoder.vocabulary)} tokens) than the documents "
            f"({len(vocabulary)} tokens)"
        )


def check_index_options(scale: float | None, bits: int | None, threads: int) -> None:
    """Refuse options that no index can be built with before hours are spent on encoding."""
    if threads < 1:
        raise ConfigError(f"threads is {threads}; it must be at least 1")
    if scale is not None:
        Rule(scale)
    if bits is not None:
        quantization.rule_from_range(1.0, bits)
