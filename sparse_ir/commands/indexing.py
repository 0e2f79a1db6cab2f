"""The commands ``encode``, ``index``, ``build``, ``bm25``, ``verify``, ``export`` and ``idf``.

Numeric libraries are imported inside the functions, so that a help text appears at once.
"""

from __future__ import annotations

import functools
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, cast

from sparse_ir.commands.arguments import (
    CorpusEncodeOptions,
    Source,
    StrPath,
    command,
    split_options,
)
from sparse_ir.console import progress_bar
from sparse_ir.data.options import CorpusSource, InputOptions
from sparse_ir.engines.catalog import DEFAULT_ENGINE, EngineName
from sparse_ir.errors import ConfigError
from sparse_ir.reports import BuildReport, ExportReport, IdfReport, IndexReport, VectorsReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sparse_ir.data.corpus import Corpus
    from sparse_ir.data.records import Document
    from sparse_ir.indexing.bm25_field import Bm25Settings
    from sparse_ir.indexing.manifest import IndexManifest
    from sparse_ir.indexing.pruning import Pruning
    from sparse_ir.indexing.vectors import Vectors

DEFAULT_SHARD_SIZE = 1024
AnalyzerName = Literal["language", "standard", "whitespace"]
SPARSE = "sparse"
BM25 = "bm25"


@command
def encode(
    model: Source,
    input: CorpusSource,
    output: StrPath,
    *,
    store: bool | None = None,
    progress: bool = False,
    **options: Unpack[CorpusEncodeOptions],
) -> VectorsReport:
    """Encode a corpus into a folder of sparse vectors.

    A killed command can be repeated: it encodes only what is missing. Several processes, also on
    machines that share the folder, may run the same command at once.

    Args:
        model: Hub name or folder of a model, "default" (the model inside this package), or
            "lexical".
        input: BEIR folder; a file .jsonl, .json, .csv, .tsv (each also .gz or .zst) or .parquet; a
            folder of .txt, .md and .html files; a hub data set such as BeIR/scifact; or - for the
            standard input. In Python also dicts, documents or a table.
        output: Folder for the vectors.
        store: Keep the documents (titles, texts, metadata) beside their vectors, so that an index
            can show them. By default, this is done.
        progress: Show a progress bar.
    """

    from sparse_ir.data.corpus import open_corpus
    from sparse_ir.indexing.encoding import write_vectors
    from sparse_ir.models.catalog import load_encoder

    started = time.perf_counter()
    reading, encoding = split_options(options)
    corpus = open_corpus(input, reading)
    schema = None
    if store is not False:
        schema = corpus.metadata_schema()
    read_texts = functools.partial(corpus.read, with_metadata=False)
    encoder, query_encoder = load_encoder(str(model), read_texts, encoding)
    vectors = write_vectors(
        Path(output),
        functools.partial(corpus.read, with_metadata=schema is not None),
        encoder,
        query_encoder=query_encoder,
        shard_size=encoding.get("shard_size", DEFAULT_SHARD_SIZE),
        store=store is not False,
        metadata_schema=schema,
        progress=progress,
    )
    return _report_vectors(vectors, started)


@command
def index(
    vectors: StrPath,
    output: StrPath,
    *,
    input: CorpusSource | None = None,
    fields: str | None = None,
    share: float | None = None,
    k1: float = 0.9,
    b: float = 0.4,
    analyzer: AnalyzerName = "language",
    language: str = "en",
    scale: float | None = None,
    bits: int | None = None,
    fold: bool | None = None,
    prune_terms: int | None = None,
    prune_impact: int | None = None,
    prune_mass: float | None = None,
    forward: bool | None = None,
    store: bool | None = None,
    engine: EngineName = DEFAULT_ENGINE,
    threads: int = 1,
    progress: bool = False,
    **options: Unpack[InputOptions],
) -> IndexReport:
    """Build and verify an impact index from vectors.

    Args:
        vectors: Folder written by encode, or an Anserini JsonVectorCollection.
        output: Folder for the index. An existing index is replaced once the new one is verified.
        input: The corpus that was encoded, whose texts make the field bm25. By default, the texts
            that the vectors keep.
        fields: "sparse" (the model), "bm25", or "sparse,bm25". By default both, if the engine is
            Lucene and the texts are known. With "bm25" alone nothing is encoded.
        share: Factor of BM25 in the sum of both. The default is 1.
        k1: Saturation of the term frequency in BM25, at least 0.
        b: Strength of the length normalization in BM25, 0 to 1.
        analyzer: How BM25 cuts texts: "language" (endings and stop words removed), "standard"
            (words in lower case), or "whitespace".
        language: Language of the analyzer, by its code, such as en, de or ja.
        scale: Factor from weights to impacts: impact = round(weight x scale). By default, the
            collection's weights are spread over the bits.
        bits: Bits per impact, 2 to 16. The default is 8, or 16 if a scale is given.
        fold: Multiply static query weights into the impacts. By default, this is done whenever the
            query side is static.
        prune_terms: Keep at most this many terms per document, those of the largest impacts.
        prune_impact: Keep only impacts of at least this size.
        prune_mass: Keep the largest impacts that together make up this share of a document's
            impacts, such as 0.9.
        forward: Also store impacts by document (3 bytes each), which two-phase search needs. By
            default, this is done if queries carry weights.
        store: Keep the documents (titles, texts, metadata) in the index, so that hits show them. By
            default, this is done if the vectors have them.
        engine: Search engine that holds the impacts: "lucene", or "exact" (needs no Java; for small
            collections).
        threads: Number of threads that write the index.
        progress: Show a progress bar.
    """
    from sparse_ir.indexing import builder, field_sources, json_vectors
    from sparse_ir.indexing.bm25_field import Bm25Settings

    builder.check_index_options(scale, bits, threads)
    pruning = _make_pruning(prune_terms, prune_impact, prune_mass)
    wanted = field_sources.read_fields(fields)
    settings = Bm25Settings(k1, b, analyzer, language, 1.0 if share is None else share)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        opened = json_vectors.open_vectors(Path(vectors), Path(scratch) / "vectors")
        texts = field_sources.Texts(opened, _reader(input, options))
        note = field_sources.reason_against_words(texts, wanted, engine)
        bm25_weights = None
        if note is None:
            place = Path(scratch) / "words"
            bm25_weights = field_sources.weigh_texts(texts, settings, place, progress=progress)
        is_sparse = wanted is None or SPARSE in wanted
        source = opened if is_sparse else None
        query_encoder = opened.query_encoder() if is_sparse else None
        rule = builder.choose_rule(
            source, query_encoder, scale=scale, bits=bits, fold=fold, bm25=bm25_weights
        )
        manifest = builder.build_impact_index(
            source,
            Path(output),
            rule,
            query_encoder,
            bm25=bm25_weights,
            threads=threads,
            pruning=pruning,
            forward_index=forward,
            store=store,
            engine=engine,
            progress=progress,
        )
    report = _report_index(Path(output), manifest, started)
    if note and wanted is None:
        report["note"] = note
    return report


@command
def build(
    model: Source,
    input: CorpusSource,
    output: StrPath,
    *,
    vectors: StrPath | None = None,
    fields: str | None = None,
    share: float | None = None,
    k1: float = 0.9,
    b: float = 0.4,
    analyzer: AnalyzerName = "language",
    language: str = "en",
    scale: float | None = None,
    bits: int | None = None,
    fold: bool | None = None,
    prune_terms: int | None = None,
    prune_impact: int | None = None,
    prune_mass: float | None = None,
    forward: bool | None = None,
    store: bool | None = None,
    engine: EngineName = DEFAULT_ENGINE,
    threads: int = 1,
    progress: bool = False,
    **options: Unpack[CorpusEncodeOptions],
) -> BuildReport:
    """Build an index from a corpus: encode and index in one command.

    A killed command can be repeated: it continues where it stopped.

    Args:
        model: Hub name or folder of a model, "default" (the model inside this package), or
            "lexical".
        input: BEIR folder; a file .jsonl, .json, .csv, .tsv (each also .gz or .zst) or .parquet; a
            folder of .txt, .md and .html files; a hub data set such as BeIR/scifact; or - for the
            standard input. In Python also dicts, documents or a table.
        output: Folder for the index. An existing index is replaced once the new one is verified.
        vectors: Folder for the vectors, which are kept. The default is OUTPUT.vectors.
        fields: "sparse" (the model), "bm25", or "sparse,bm25". By default both, if the engine is
            Lucene and the texts are known. With "bm25" alone nothing is encoded.
        share: Factor of BM25 in the sum of both. The default is what the model's card states
            (bm25_share), or 1.
        k1: Saturation of the term frequency in BM25, at least 0.
        b: Strength of the length normalization in BM25, 0 to 1.
        analyzer: How BM25 cuts texts: "language" (endings and stop words removed), "standard"
            (words in lower case), or "whitespace".
        language: Language of the analyzer, by its code, such as en, de or ja.
        scale: Factor from weights to impacts: impact = round(weight x scale). By default, the
            collection's weights are spread over the bits.
        bits: Bits per impact, 2 to 16. The default is 8, or 16 if a scale is given.
        fold: Multiply static query weights into the impacts. By default, this is done whenever the
            query side is static.
        prune_terms: Keep at most this many terms per document, those of the largest impacts.
        prune_impact: Keep only impacts of at least this size.
        prune_mass: Keep the largest impacts that together make up this share of a document's
            impacts, such as 0.9.
        forward: Also store impacts by document (3 bytes each), which two-phase search needs. By
            default, this is done if queries carry weights.
        store: Keep the documents (titles, texts, metadata) in the index, so that hits show them. By
            default, this is done if the vectors have them.
        engine: Search engine that holds the impacts: "lucene", or "exact" (needs no Java; for small
            collections).
        threads: Number of threads that write the index.
        progress: Show a progress bar.
    """
    from sparse_ir.data.corpus import open_corpus
    from sparse_ir.indexing import field_sources
    from sparse_ir.indexing.bm25_field import Bm25Settings
    from sparse_ir.indexing.builder import check_index_options
    from sparse_ir.indexing.building import check_target
    from sparse_ir.models.catalog import find_bm25_share

    # before hours of encoding
    check_target(Path(output).resolve())
    check_index_options(scale, bits, threads)
    wanted = field_sources.read_fields(fields)
    if share is None:
        share = find_bm25_share(str(model))
    settings = Bm25Settings(k1, b, analyzer, language, share)
    reading, encoding = split_options(options)
    corpus = open_corpus(input, reading)
    if wanted == [BM25]:
        return _build_words(corpus, Path(output), settings, scale, bits, engine, threads, progress)
    _make_pruning(prune_terms, prune_impact, prune_mass)
    output = Path(output)
    folder = Path(vectors) if vectors else output.with_name(output.name + ".vectors")
    encoded = encode(model, corpus, folder, store=store, progress=progress, **encoding)
    report = index(
        folder,
        output,
        input=corpus if store is False else None,
        fields=fields,
        share=share,
        k1=k1,
        b=b,
        analyzer=analyzer,
        language=language,
        scale=scale,
        bits=bits,
        fold=fold,
        prune_terms=prune_terms,
        prune_impact=prune_impact,
        prune_mass=prune_mass,
        forward=forward,
        store=store,
        engine=engine,
        threads=threads,
        progress=progress,
    )
    return BuildReport(**report, vectors=str(folder), encode_seconds=encoded["seconds"])


@command
def bm25(
    input: CorpusSource,
    output: StrPath,
    *,
    k1: float = 0.9,
    b: float = 0.4,
    store: bool | None = None,
    progress: bool = False,
    **options: Unpack[InputOptions],
) -> IndexReport:
    """Build a BM25 index of a corpus, as a baseline.

    Title and text form one field, which is analyzed by Anserini's English analyzer.

    Args:
        input: BEIR folder; a file .jsonl, .json, .csv, .tsv (each also .gz or .zst) or .parquet; a
            folder of .txt, .md and .html files; a hub data set such as BeIR/scifact; or - for the
            standard input. In Python also dicts, documents or a table.
        output: Folder for the index.
        k1: Saturation of the term frequency, at least 0.
        b: Strength of the length normalization, 0 to 1.
        store: Keep the documents (titles, texts, metadata) in the index, so that hits show them. By
            default, this is done.
        progress: Show a progress bar.
    """

    from sparse_ir.data.corpus import open_corpus
    from sparse_ir.engines.lucene.bm25 import Bm25
    from sparse_ir.indexing.bm25_builder import build_bm25_index

    if not k1 >= 0:
        raise ConfigError(f"k1 is {k1}; it must be at least 0")
    if not 0 <= b <= 1:
        raise ConfigError(f"b is {b}; it must be between 0 and 1")
    started = time.perf_counter()
    corpus = open_corpus(input, options)
    schema = None
    if store is not False:
        schema = corpus.metadata_schema()
    manifest = build_bm25_index(
        functools.partial(corpus.read, with_metadata=schema is not None),
        Path(output),
        Bm25(k1, b),
        store=store is not False,
        metadata_schema=schema,
        progress=progress,
    )
    return _report_index(Path(output), manifest, started)


@command
def verify(index: StrPath) -> dict[str, Any]:
    """Verify an index: checksums, Lucene's CheckIndex, counts, and sampled scores.

    The scores of sampled documents are compared with their exact vectors.

    Args:
        index: Folder of an index.
    """
    from sparse_ir.indexing import verification

    return verification.verify_index(Path(index))


@command
def export(
    vectors: StrPath,
    output: StrPath,
    *,
    scale: float | None = None,
    bits: int | None = None,
    fold: bool | None = None,
) -> ExportReport:
    """Export vectors as an Anserini JsonVectorCollection of integer impacts.

    Args:
        vectors: Folder written by encode.
        output: Folder for the JSON files.
        scale: Factor from weights to impacts: impact = round(weight x scale). By default, the
            collection's weights are spread over the bits.
        bits: Bits per impact, 2 to 16. The default is 8, or 16 if a scale is given.
        fold: Multiply static query weights into the impacts. By default, this is done whenever the
            query side is static.
    """
    from sparse_ir.indexing import builder, json_vectors
    from sparse_ir.indexing.vectors import Vectors

    opened = Vectors(Path(vectors))
    query_encoder = opened.query_encoder()
    rule = builder.choose_rule(opened, query_encoder, scale=scale, bits=bits, fold=fold)
    folded_weights = builder.folded_weights(query_encoder, rule)
    documents = json_vectors.export_json_vectors(opened, Path(output), rule, folded_weights)
    return {"output": str(output), "documents": documents, "rule": rule.to_json()}


@command
def idf(
    model: Source,
    input: CorpusSource,
    output: StrPath,
    *,
    revision: str | None = None,
    **options: Unpack[InputOptions],
) -> IdfReport:
    """Compute an idf.json of a corpus for the tokenizer of a model.

    The formula is ln(1 + (N - df + .5) / (df + .5)), where df of the N documents contain the token.

    Args:
        model: Hub name or folder of a model.
        input: BEIR folder; a file .jsonl, .json, .csv, .tsv (each also .gz or .zst) or .parquet; a
            folder of .txt, .md and .html files; a hub data set such as BeIR/scifact; or - for the
            standard input. In Python also dicts, documents or a table.
        output: File for the JSON object {token: idf}.
        revision: Commit of a hub model.
    """

    from sparse_ir.data.corpus import open_corpus
    from sparse_ir.models.encoder import load_tokenizer
    from sparse_ir.models.idf import compute_idf, write_idf_json

    tokenizer = load_tokenizer(model, revision=revision)
    corpus = open_corpus(input, options)
    texts = (document.contents for document in corpus.read(with_metadata=False))
    values = compute_idf(texts, tokenizer)
    write_idf_json(Path(output), values, tokenizer)
    return {"output": str(output), "tokens": len(values)}


def _reader(
    input: CorpusSource | None, options: InputOptions
) -> Callable[[], Iterator[Document]] | None:
    """What starts reading a corpus."""
    from sparse_ir.data.corpus import open_corpus

    if input is None:
        return None
    return functools.partial(open_corpus(input, options).read, with_metadata=False)


def _build_words(
    corpus: Corpus,
    output: Path,
    settings: Bm25Settings,
    scale: float | None,
    bits: int | None,
    engine: EngineName,
    threads: int,
    progress: bool,
) -> BuildReport:
    """Build an index that has the field ``bm25`` alone; nothing is encoded."""
    from sparse_ir.indexing import builder
    from sparse_ir.indexing.bm25_field import weigh_documents

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        with progress_bar(None, progress, desc="analysing", unit=" documents") as bar:
            documents = corpus.read(with_metadata=False)
            weights = weigh_documents(documents, Path(scratch), settings, progress=bar.update)
        rule = builder.choose_rule(None, None, scale=scale, bits=bits, bm25=weights)
        manifest = builder.build_impact_index(
            None,
            output,
            rule,
            None,
            bm25=weights,
            engine=engine,
            threads=threads,
            progress=progress,
        )
    report = _report_index(output, manifest, started)
    return cast("BuildReport", dict(report))


def _make_pruning(terms: int | None, impact: int | None, mass: float | None) -> Pruning:
    """Raises ``ConfigError`` for a limit out of range."""
    from sparse_ir.indexing.pruning import Pruning

    min_impact = 1 if impact is None else impact
    kept_mass = 1.0 if mass is None else mass
    return Pruning(terms, min_impact, kept_mass)


def _report_vectors(vectors: Vectors, started: float) -> VectorsReport:
    manifest = vectors.manifest
    encoder = manifest["encoder"]
    return {
        "vectors": str(vectors.folder),
        "encoder": encoder.get("name", encoder["kind"]),
        "documents": manifest["documents"],
        "empty_documents": manifest["empty_documents"],
        "without_weights": manifest["without_weights"],
        "weights": manifest["weights"],
        "document_megabytes": round(vectors.document_bytes / 1e6, 2),
        "mean_terms": round(manifest["weights"] / max(manifest["documents"], 1), 1),
        "seconds": round(time.perf_counter() - started, 2),
    }


def _report_index(output: Path, manifest: IndexManifest, started: float) -> IndexReport:
    from sparse_ir.indexing.manifest import document_bytes
    from sparse_ir.storage import files

    report: dict[str, Any] = {"index": str(output), "kind": manifest["kind"]} | manifest["counts"]
    for part in ("engine", "rule", "fields", "bm25", "pruning"):
        if part in manifest:
            report[part] = manifest[part]
    report["megabytes"] = round(files.folder_size(output) / 1e6, 2)
    report["document_megabytes"] = round(document_bytes(manifest) / 1e6, 2)
    report["seconds"] = round(time.perf_counter() - started, 2)
    return cast("IndexReport", report)
