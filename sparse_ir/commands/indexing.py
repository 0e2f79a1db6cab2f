"""The commands ``encode``, ``index``, ``build``, ``bm25``, ``verify``, ``export`` and ``idf``."""

from __future__ import annotations

import functools
import tempfile
import time
from pathlib import Path
from typing import Unpack

from sparse_ir import extras
from sparse_ir.data import readers
from sparse_ir.engines.catalog import DEFAULT_ENGINE, EngineName
from sparse_ir.engines.lucene.bm25 import Bm25
from sparse_ir.errors import ConfigError
from sparse_ir.indexing import builder, json_vectors, verification
from sparse_ir.indexing.bm25_builder import build_bm25_index
from sparse_ir.indexing.builder import check_index_options
from sparse_ir.indexing.manifest import IndexManifest
from sparse_ir.indexing.pruning import Pruning
from sparse_ir.indexing.vectors import Vectors, write_vectors
from sparse_ir.models.catalog import EncodeOptions, load_encoder
from sparse_ir.models.idf import compute_idf, write_idf_json
from sparse_ir.reports import Report
from sparse_ir.storage import files


def encode(
    model: str,
    input: str,
    output: Path,
    *,
    progress: bool = False,
    **options: Unpack[EncodeOptions],
) -> Report:
    """Encode a corpus into a folder of vectors; run again after a kill, it does only what is
    missing.

    Several processes, also on several machines that share the folder, may run the same command at
    once.

    Args:
        model: Hub name or folder of a model, "lexical", or "default", the one inside this package.
        input: BEIR folder, corpus.jsonl[.gz], collection.tsv[.gz], or a hub data set such as
            BeIR/scifact.
        output: Folder for the vectors.
        progress: Show a progress bar.
    """
    started = time.perf_counter()
    read = functools.partial(readers.read_documents, input)
    encoder, query_encoder = load_encoder(model, read, options)
    made = write_vectors(
        Path(output),
        read,
        encoder,
        query_encoder=query_encoder,
        shard_size=options.get("shard_size", 1024),
        progress=progress,
    )
    return _vectors_report(made, started)


def index(
    vectors: Path,
    output: Path,
    *,
    scale: float | None = None,
    bits: int | None = None,
    fold: bool | None = None,
    prune_terms: int | None = None,
    prune_impact: int | None = None,
    prune_mass: float | None = None,
    forward: bool | None = None,
    engine: EngineName = DEFAULT_ENGINE,
    threads: int = 1,
    progress: bool = False,
) -> Report:
    """Build a verified Lucene impact index from vectors.

    Args:
        vectors: Folder that encode wrote, or an Anserini JsonVectorCollection.
        output: Folder for the index; an index that stands there is replaced when the new one is
            verified.
        scale: impact = round(weight x scale); default: spread the collection's weights over the
            bits.
        bits: Bits per impact, 2 to 16; default 8 (with a scale: 16).
        fold: Multiply static query weights into the impacts; default: wherever the query side is
            static.
        prune_terms: Keep at most so many terms of a document, those of the largest impacts.
        prune_impact: Keep only impacts of at least this.
        prune_mass: Keep a document's largest impacts that together hold this share of its sum, such
            as 0.9.
        forward: Also keep impacts by document (3 bytes each) for two-phase search; default: where
            queries are boosted.
        engine: Search engine that holds the impacts: lucene, or exact (no Java; small collections).
        threads: Threads that write.
        progress: Show a progress bar.
    """
    check_index_options(scale, bits, threads)
    pruning = _pruning(prune_terms, prune_impact, prune_mass)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        opened = json_vectors.open_vectors(Path(vectors), Path(scratch))
        query_encoder = opened.query_encoder()
        rule = builder.choose_rule(opened, query_encoder, scale=scale, bits=bits, fold=fold)
        manifest = builder.build_impact_index(
            opened,
            Path(output),
            rule,
            query_encoder,
            threads=threads,
            pruning=pruning,
            forward_index=forward,
            engine=engine,
            progress=progress,
        )
    return _index_report(Path(output), manifest, started)


def build(
    model: str,
    input: str,
    output: Path,
    *,
    vectors: Path | None = None,
    scale: float | None = None,
    bits: int | None = None,
    fold: bool | None = None,
    prune_terms: int | None = None,
    prune_impact: int | None = None,
    prune_mass: float | None = None,
    forward: bool | None = None,
    engine: EngineName = DEFAULT_ENGINE,
    threads: int = 1,
    progress: bool = False,
    **options: Unpack[EncodeOptions],
) -> Report:
    """Encode a corpus and index it: encode, then index, in one command; a killed run goes on where
    it stopped.

    Args:
        model: Hub name or folder of a model, "lexical", or "default", the one inside this package.
        input: BEIR folder, corpus.jsonl[.gz], collection.tsv[.gz], or a hub data set such as
            BeIR/scifact.
        output: Folder for the index; an index that stands there is replaced when the new one is
            verified.
        vectors: Folder for the vectors, which are kept; default: OUTPUT.vectors.
        scale: impact = round(weight x scale); default: spread the collection's weights over the
            bits.
        bits: Bits per impact, 2 to 16; default 8 (with a scale: 16).
        fold: Multiply static query weights into the impacts; default: wherever the query side is
            static.
        prune_terms: Keep at most so many terms of a document, those of the largest impacts.
        prune_impact: Keep only impacts of at least this.
        prune_mass: Keep a document's largest impacts that together hold this share of its sum, such
            as 0.9.
        forward: Also keep impacts by document (3 bytes each) for two-phase search; default: where
            queries are boosted.
        engine: Search engine that holds the impacts: lucene, or exact (no Java; small collections).
        threads: Threads that write the index.
        progress: Show a progress bar.
    """
    check_index_options(scale, bits, threads)
    _pruning(prune_terms, prune_impact, prune_mass)
    output = Path(output)
    folder = Path(vectors) if vectors else output.with_name(output.name + ".vectors")
    encoded = encode(model, input, folder, progress=progress, **options)
    report = index(
        folder,
        output,
        scale=scale,
        bits=bits,
        fold=fold,
        prune_terms=prune_terms,
        prune_impact=prune_impact,
        prune_mass=prune_mass,
        forward=forward,
        engine=engine,
        threads=threads,
        progress=progress,
    )
    return {**report, "vectors": str(folder), "encode_seconds": encoded["seconds"]}


def bm25(
    input: str, output: Path, *, k1: float = 0.9, b: float = 0.4, progress: bool = False
) -> Report:
    """Build a BM25 index of the same corpus: title and text in one field, Anserini's English
    analysis.

    Args:
        input: BEIR folder, corpus.jsonl[.gz], collection.tsv[.gz], or a hub data set such as
            BeIR/scifact.
        output: Folder for the index.
        k1: Saturation of the term frequency.
        b: Share of the length normalisation, 0 to 1.
        progress: Show a progress bar.
    """
    if not (k1 >= 0 and 0 <= b <= 1):
        raise ConfigError(
            f"BM25 with k1={k1}, b={b} is not allowed; k1 must be at least 0 and b in 0..1"
        )
    started = time.perf_counter()
    manifest = build_bm25_index(
        functools.partial(readers.read_documents, input),
        Path(output),
        Bm25(k1, b),
        progress=progress,
    )
    return _index_report(Path(output), manifest, started)


def verify(index: Path) -> Report:
    """Check an index: checksums, Lucene's CheckIndex, counts, and sampled scores against the exact
    vectors.

    Args:
        index: Folder of an index.
    """
    return verification.verify_index(Path(index))


def export(
    vectors: Path,
    output: Path,
    *,
    scale: float | None = None,
    bits: int | None = None,
    fold: bool | None = None,
) -> Report:
    """Write vectors as an Anserini JsonVectorCollection of integer impacts.

    Args:
        vectors: Folder that encode wrote.
        output: Folder for the JSON files.
        scale: impact = round(weight x scale); default: spread the collection's weights over the
            bits.
        bits: Bits per impact, 2 to 16; default 8 (with a scale: 16).
        fold: Multiply static query weights into the impacts; default: wherever the query side is
            static.
    """
    opened = Vectors(Path(vectors))
    query_encoder = opened.query_encoder()
    rule = builder.choose_rule(opened, query_encoder, scale=scale, bits=bits, fold=fold)
    lines = json_vectors.export_json_vectors(
        opened, Path(output), rule, builder.folded_weights(query_encoder, rule)
    )
    return {"output": str(output), "documents": lines, "rule": rule.to_json()}


def idf(model: str, input: str, output: Path, *, revision: str | None = None) -> Report:
    """Compute an idf.json for a model's tokenizer from any corpus: ln(1 + (N - df + .5) / (df +
    .5)).

    Args:
        model: Hub name or folder of a model.
        input: BEIR folder, corpus.jsonl[.gz], collection.tsv[.gz], or a hub data set such as
            BeIR/scifact.
        output: File for the JSON object {token: idf}.
        revision: Commit of a hub model.
    """
    with extras.importing():
        from sparse_ir.models.encoder import load_tokenizer

    tokenizer = load_tokenizer(model, revision=revision)
    values = compute_idf(
        (document.contents for document in readers.read_documents(input)), tokenizer
    )
    write_idf_json(Path(output), values, tokenizer)
    return {"output": str(output), "tokens": len(values)}


def _pruning(terms: int | None, impact: int | None, mass: float | None) -> Pruning:
    return Pruning(terms, 1 if impact is None else impact, 1.0 if mass is None else mass)


def _vectors_report(made: Vectors, started: float) -> Report:
    facts = made.manifest
    return {
        "vectors": str(made.folder),
        "encoder": facts["encoder"].get("name", facts["encoder"]["kind"]),
        **{
            key: facts[key]
            for key in ("documents", "empty_documents", "without_weights", "weights")
        },
        "mean_terms": round(facts["weights"] / max(facts["documents"], 1), 1),
        "seconds": round(time.perf_counter() - started, 2),
    }


def _index_report(output: Path, manifest: IndexManifest, started: float) -> Report:
    report: Report = {"index": str(output), "kind": manifest["kind"], **manifest["counts"]}
    if "engine" in manifest:
        report["engine"] = manifest["engine"]
    if "rule" in manifest:
        report["rule"] = manifest["rule"]
    if "pruning" in manifest:
        report["pruning"] = manifest["pruning"]
    report["megabytes"] = round(files.folder_size(output) / 1e6, 2)
    report["seconds"] = round(time.perf_counter() - started, 2)
    return report
