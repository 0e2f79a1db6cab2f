"""Building an impact index: quantized, written by an engine, verified, and swapped in.

INDEX/manifest.json     kind, engine, encoder, query side, rule, counts, checksum of every file
INDEX/lucene/           the engine's files; Pyserini's searchers open those of Lucene
INDEX/query/            the query side (impact indexes that have one)
INDEX/forward/          the impacts document by document (on request, or if queries are boosted)
INDEX/documents/        ids, titles, texts and metadata (if the vectors have them)
INDEX/statistics.json   document frequencies and the rule, frozen with the index
INDEX/statistics.bm25.json   the terms of the field bm25 (indexes that have it)
INDEX/tuned.json        search options found by ``tune``; the only file that comes later
INDEX/doc_ids.txt       the doc_id of each document number; doc_ids.npy: where each begins
INDEX/unindexed.jsonl   documents without a posting, with the reason
INDEX/samples.jsonl     exact impacts of some documents, to verify the engine's scores
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparse_ir.console import progress_bar
from sparse_ir.engines.base import BM25, LARGEST_IMPACT, SPARSE
from sparse_ir.engines.catalog import DEFAULT_ENGINE, find_engine
from sparse_ir.errors import ConfigError, IndexMismatch
from sparse_ir.indexing import document_store, quantization, statistics
from sparse_ir.indexing.bm25_field import Bm25Weights
from sparse_ir.indexing.building import building
from sparse_ir.indexing.document_store import StoreWriter
from sparse_ir.indexing.forward import FOLDER, ForwardWriter
from sparse_ir.indexing.impact_source import FieldSource, ImpactSource
from sparse_ir.indexing.manifest import (
    IndexManifest,
    write_doc_ids,
    write_lines,
    write_manifest,
)
from sparse_ir.indexing.pruning import Pruning
from sparse_ir.indexing.quantization import Rule, rule_from_range
from sparse_ir.indexing.statistics import Statistics, TextStatistics
from sparse_ir.indexing.vectors import Vectors
from sparse_ir.models.interfaces import QueryEncoder
from sparse_ir.models.static_queries import StaticQueryEncoder
from sparse_ir.storage import files

DEFAULT_BITS = 8
HYBRID_BITS = 9  # of both fields; eight would cost the ranking by BM25 a percent of its hits


def choose_rule(
    vectors: Vectors | None,
    query_encoder: QueryEncoder | None,
    *,
    scale: float | None = None,
    bits: int | None = None,
    fold: bool | None = None,
    bm25: Bm25Weights | None = None,
) -> Rule:
    """The quantization rule for these weights, one for all fields.

    ``scale`` multiplies the weights; ``bits`` limits the largest impact to ``2**bits - 1``. Without
    a scale, the weights of the collection are spread over ``bits`` bits (8, or 9 with a field
    ``bm25``), except that whole-number weights keep their numbers. ``fold`` multiplies static query
    weights into the impacts, so that queries need no boosts; it is the default wherever the query
    side is static, and for the field ``bm25`` alone.
    """
    static = vectors is None or isinstance(query_encoder, StaticQueryEncoder)
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
    if bits is None and vectors is not None and vectors.manifest["integer_weights"] and not folded:
        if bm25 is not None:
            raise ConfigError(
                f"{vectors.folder} holds whole numbers, whose scale is not known, so BM25 cannot "
                "be brought to it; name a scale, or build the sparse field alone"
            )
        return Rule(1.0)
    largest_weight = 0.0
    if vectors is not None:
        largest_weight = _largest_weight(vectors, query_encoder, folded)
    default_bits = DEFAULT_BITS
    if bm25 is not None:
        largest_weight = max(largest_weight, bm25.largest_weight())
        default_bits = HYBRID_BITS
    return rule_from_range(largest_weight, bits or default_bits, folded=folded)


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
    vectors: Vectors | None,
    output: Path,
    rule: Rule,
    query_encoder: QueryEncoder | None,
    *,
    bm25: Bm25Weights | None = None,
    engine: str = DEFAULT_ENGINE,
    threads: int = 1,
    pruning: Pruning | None = None,
    forward_index: bool | None = None,
    store: bool | None = None,
    progress: bool = False,
) -> IndexManifest:
    """Build, verify and swap in an impact index; returns its manifest.

    ``bm25``: the weights of a field ``bm25``, of the same documents in the same shards; without
    ``vectors`` it is the only field. Pruning concerns the sparse field. ``forward_index`` also
    keeps the impacts document by document, for two-phase search; by default wherever queries are
    boosted, that is, the rule is not folded. ``store`` also keeps the documents themselves, by
    default wherever the vectors have them. Documents are accounted for: documents = indexed +
    empty + rounded to nothing + pruned to nothing. Raises ``IndexMismatch`` when the query side has
    another vocabulary, ``ConfigError`` when the documents are to be kept and the vectors have none,
    ``LockedError`` when another process builds the same index; a failed build leaves the index at
    ``output`` as it was.
    """
    if query_encoder is not None and vectors is not None:
        check_vocabulary(vectors.vocabulary, query_encoder, str(vectors.folder))
    pruning = pruning or Pruning()
    chosen = find_engine(engine)
    keeps_forward = not rule.folded if forward_index is None else forward_index
    has_documents = vectors is not None and vectors.has_documents
    if store and not has_documents:
        place = "the corpus" if vectors is None else str(vectors.folder)
        raise ConfigError(
            f"{place} keeps no documents to store; run the encode command again, without "
            "--no-store, to add them"
        )
    fields = _make_fields(vectors, bm25, rule, query_encoder, pruning)
    with building(output) as folder:
        forward_writer = ForwardWriter(folder / FOLDER) if keeps_forward else None
        source = ImpactSource(fields, forward_writer)
        total = len(next(iter(fields.values())).weights)
        with progress_bar(total, progress, desc="indexing", unit=" documents") as bar:
            chosen.write(
                folder / chosen.name,
                source.batches(),
                source.vocabularies(),
                threads=threads,
                progress=bar.update,
            )
        if forward_writer is not None:
            forward_writer.finish(source.vocabularies())
        schema = None
        if vectors is not None and has_documents and store is not False:
            schema = vectors.manifest.get("metadata_schema")
            _copy_documents(vectors, folder / document_store.FOLDER)
        if query_encoder is not None:
            query_encoder.save(folder / "query")
        _write_records(folder, source, fields, rule, bm25)
        facts = _describe(vectors, bm25, rule, query_encoder)
        facts |= {"engine": chosen.name, "counts": source.counts()}
        if bm25 is not None:
            facts["fields"] = {field: source.field_counts(field) for field in fields}
        if pruning:
            facts["pruning"] = pruning.to_json()
        if schema is not None:
            facts["metadata_schema"] = schema
        return write_manifest(folder, "impact", facts, {chosen.name: chosen.version()})


def _copy_documents(vectors: Vectors, folder: Path) -> None:
    with StoreWriter(folder) as writer:
        for number in range(vectors.num_shards):
            writer.add_blocks(vectors.read_blocks(number))


def _make_fields(
    vectors: Vectors | None,
    bm25: Bm25Weights | None,
    rule: Rule,
    query_encoder: QueryEncoder | None,
    pruning: Pruning,
) -> dict[str, FieldSource]:
    """Where the impacts of each field come from."""
    fields = {}
    if vectors is not None:
        query_weights = folded_weights(query_encoder, rule)
        fields[SPARSE] = FieldSource(vectors, rule, query_weights, pruning)
    if bm25 is not None:
        # its query weights are counts, and nothing is to be multiplied in
        plain = dataclasses.replace(rule, folded=False)
        fields[BM25] = FieldSource(bm25, plain)
    if not fields:
        raise ConfigError("an index must have a field; name vectors or texts")
    return fields


def _write_records(
    folder: Path,
    source: ImpactSource,
    fields: Iterable[str],
    rule: Rule,
    bm25: Bm25Weights | None,
) -> None:
    """Write the statistics, the lists of documents, and the samples."""
    texts = None
    if bm25 is not None:
        texts = TextStatistics(bm25.counts.documents, bm25.counts.tokens)
        files.write_json(folder / statistics.BM25_TERMS, bm25.vocabulary)
    frequencies = {field: source.frequencies(field) for field in fields}
    Statistics(source.counts()["indexed"], rule, frequencies, texts).save(folder)
    write_lines(folder / "unindexed.jsonl", source.unindexed())
    write_lines(folder / "samples.jsonl", source.samples())
    write_doc_ids(folder, source.doc_ids())


def _describe(
    vectors: Vectors | None,
    bm25: Bm25Weights | None,
    rule: Rule,
    query_encoder: QueryEncoder | None,
) -> dict[str, Any]:
    """What the manifest says of the origin of the impacts."""
    facts: dict[str, Any] = {"query": query_encoder.fingerprint if query_encoder else None}
    if vectors is not None:
        facts["encoder"] = vectors.manifest["encoder"]
        facts["vocabulary_sha256"] = files.sha256_of_json(vectors.vocabulary)
    facts["rule"] = rule.to_json()
    if bm25 is not None:
        facts["bm25"] = bm25.settings.to_json()
    return facts


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
