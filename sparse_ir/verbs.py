"""The verbs of this package: one public function for each command, with the same name and options.

Each verb reads files, calls the modules that do the work, writes files, and returns a JSON-able report of what it did.
Next file to read: ``cli``.
"""

from __future__ import annotations

import functools
import importlib.resources
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
from tqdm import tqdm

from sparse_ir import checkpoint as layouts
from sparse_ir import conventions as conventions_module
from sparse_ir import data, files, impacts, indexes, lucene, searcher
from sparse_ir import measures as measures_module
from sparse_ir import queries as query_sides
from sparse_ir import vectors as vector_folders
from sparse_ir.approximation import SearchOptions
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.pruning import Pruning

DEFAULT_MODEL = "default"
LEXICAL_MODEL = "lexical"
_DEFAULT_SHARE = 0.5  # of the collection's IDF with the shipped model
_NOT_FOR_THE_NETWORK = {"shard_size", "query_side", "idf", "allow_unknown", "collection_idf"}
QuerySide = Literal["auto", "neural", "static", "ones"]

Report = dict[str, Any]


class EncodeOptions(TypedDict, total=False):
    """Options of the encoder, the same for ``encode`` and ``build``.

    Args:
        revision: Commit of a hub model; recorded in the output.
        precision: float32, float32-int8 (same vectors, faster), bfloat16, int8, or auto, the fastest here; 8bit, 4bit.
        device: cpu, cuda, ...; default: the accelerator when there is one.
        max_length: Tokens read of each document; default: what the model states.
        top_k: At most so many terms per document, the heaviest.
        min_weight: Leave out document weights below this.
        query_side: auto (the model's own), neural, static (token weights or idf.json), or ones.
        idf: An idf.json whose values become the static query weights.
        convention: How idf.json is read: sentence-transformers or opensearch.
        allow_unknown: Leave out strings in idf.json that are no tokens of the model, instead of refusing them.
        collection_idf: Share of the collection's own IDF in static query weights, 0 to 1; default 0, "default" 0.5.
        allow_pickle: Read an older pytorch_model.bin (weights only) when there is no safetensors file.
        decoder: A sparse_ir.json that says how a decoder is read; for models that have none, or to read one otherwise.
        shard_size: Documents per shard; a killed run loses at most the shards in work.
    """

    revision: str | None
    precision: Literal["float32", "bfloat16", "int8", "float32-int8", "8bit", "4bit", "auto"]
    device: str | None
    max_length: int | None
    top_k: int | None
    min_weight: float
    query_side: QuerySide
    idf: Path | None
    convention: Literal["sentence-transformers", "opensearch"]
    allow_unknown: bool
    collection_idf: float | None
    allow_pickle: bool
    decoder: Path | None
    shard_size: int


class Approximations(TypedDict, total=False):
    """What a search may leave out; see ``approximation.SearchOptions``.

    Args:
        stop_share: Leave out query terms that more than this share of the documents hold.
        min_ratio: Leave out query terms lighter than this share of the heaviest (OpenSearch: max_ratio).
        mass: Keep the heaviest query terms that hold this share of all weight (OpenSearch: alpha_mass).
        top_terms: Keep at most so many query terms, the heaviest.
        postings: Keep the heaviest query terms whose postings are together at most so many per document.
        candidates: Then rank the first so many times HITS documents by all terms, from the forward index.
    """

    stop_share: float | None
    min_ratio: float | None
    mass: float | None
    top_terms: int | None
    postings: float | None
    candidates: float | None


def encode(model: str, input: str, output: Path, *, progress: bool = False, **options: Unpack[EncodeOptions]) -> Report:
    """Encode a corpus into a folder of vectors; run again after a kill, it does only what is missing.

    Several processes, also on several machines that share the folder, may run the same command at once.

    Args:
        model: Hub name or folder of a model, "lexical", or "default", the one inside this package.
        input: BEIR folder, corpus.jsonl[.gz], collection.tsv[.gz], or a hub data set such as BeIR/scifact.
        output: Folder for the vectors.
        progress: Show a progress bar.
    """
    started = time.perf_counter()
    read = functools.partial(data.read_documents, input)
    encoder, query_encoder = load_encoder(model, read, options)
    made = vector_folders.write_vectors(Path(output), read, encoder, query_encoder=query_encoder,
                                        shard_size=options.get("shard_size", 1024), progress=progress)
    return _vectors_report(made, started)


def index(
    vectors: Path, output: Path, *, scale: float | None = None, bits: int | None = None, fold: bool | None = None,
    prune_terms: int | None = None, prune_impact: int | None = None, prune_mass: float | None = None,
    forward: bool | None = None, order: indexes.Order = "corpus", threads: int = 1, progress: bool = False,
) -> Report:
    """Build a verified Lucene impact index from vectors.

    Args:
        vectors: Folder that encode wrote, or an Anserini JsonVectorCollection.
        output: Folder for the index; an index that stands there is replaced when the new one is verified.
        scale: impact = round(weight x scale); default: spread the collection's weights over the bits.
        bits: Bits per impact, 2 to 16; default 8 (with a scale: 16).
        fold: Multiply static query weights into the impacts; default: wherever the query side is static.
        prune_terms: Keep at most so many terms of a document, those of the largest impacts.
        prune_impact: Keep only impacts of at least this.
        prune_mass: Keep a document's largest impacts that together hold this share of its sum, such as 0.9.
        forward: Also keep impacts by document (3 bytes each) for two-phase search; default: where queries are boosted.
        order: Of the documents inside: corpus, or bisection (similar ones side by side; slower to build, same ranking).
        threads: Threads that write.
        progress: Show a progress bar.
    """
    check_index_options(scale, bits, threads)
    pruning = _pruning(prune_terms, prune_impact, prune_mass)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        opened = vector_folders.open_vectors(Path(vectors), Path(scratch))
        query_encoder = opened.query_encoder()
        rule = indexes.choose_rule(opened, query_encoder, scale=scale, bits=bits, fold=fold)
        manifest = indexes.build_impact_index(opened, Path(output), rule, query_encoder, threads=threads,
                                              pruning=pruning, forward_index=forward, order=order,
                                              progress=progress)
    return _index_report(Path(output), manifest, started)


def build(
    model: str, input: str, output: Path, *, vectors: Path | None = None, scale: float | None = None,
    bits: int | None = None, fold: bool | None = None, prune_terms: int | None = None,
    prune_impact: int | None = None, prune_mass: float | None = None, forward: bool | None = None,
    order: indexes.Order = "corpus", threads: int = 1, progress: bool = False, **options: Unpack[EncodeOptions],
) -> Report:
    """Encode a corpus and index it: encode, then index, in one command; a killed run goes on where it stopped.

    Args:
        model: Hub name or folder of a model, "lexical", or "default", the one inside this package.
        input: BEIR folder, corpus.jsonl[.gz], collection.tsv[.gz], or a hub data set such as BeIR/scifact.
        output: Folder for the index; an index that stands there is replaced when the new one is verified.
        vectors: Folder for the vectors, which are kept; default: OUTPUT.vectors.
        scale: impact = round(weight x scale); default: spread the collection's weights over the bits.
        bits: Bits per impact, 2 to 16; default 8 (with a scale: 16).
        fold: Multiply static query weights into the impacts; default: wherever the query side is static.
        prune_terms: Keep at most so many terms of a document, those of the largest impacts.
        prune_impact: Keep only impacts of at least this.
        prune_mass: Keep a document's largest impacts that together hold this share of its sum, such as 0.9.
        forward: Also keep impacts by document (3 bytes each) for two-phase search; default: where queries are boosted.
        order: Of the documents inside: corpus, or bisection (similar ones side by side; slower to build, same ranking).
        threads: Threads that write the index.
        progress: Show a progress bar.
    """
    check_index_options(scale, bits, threads)
    _pruning(prune_terms, prune_impact, prune_mass)
    output = Path(output)
    folder = Path(vectors) if vectors else output.with_name(output.name + ".vectors")
    encoded = encode(model, input, folder, progress=progress, **options)
    report = index(folder, output, scale=scale, bits=bits, fold=fold, prune_terms=prune_terms,
                   prune_impact=prune_impact, prune_mass=prune_mass, forward=forward, order=order,
                   threads=threads, progress=progress)
    return {**report, "vectors": str(folder), "encode_seconds": encoded["seconds"]}


def bm25(input: str, output: Path, *, k1: float = 0.9, b: float = 0.4, progress: bool = False) -> Report:
    """Build a BM25 index of the same corpus: title and text in one field, Anserini's English analysis.

    Args:
        input: BEIR folder, corpus.jsonl[.gz], collection.tsv[.gz], or a hub data set such as BeIR/scifact.
        output: Folder for the index.
        k1: Saturation of the term frequency.
        b: Share of the length normalisation, 0 to 1.
        progress: Show a progress bar.
    """
    if not (k1 >= 0 and 0 <= b <= 1):
        raise ConfigError(f"BM25 with k1={k1}, b={b} is not allowed; k1 must be at least 0 and b in 0..1")
    started = time.perf_counter()
    manifest = indexes.build_bm25_index(functools.partial(data.read_documents, input), Path(output),
                                        lucene.Bm25(k1, b), progress=progress)
    return _index_report(Path(output), manifest, started)


def search(
    index: Path, queries: str, output: Path, *, hits: int = 1000, threads: int = 1, remove_query: bool = False,
    query_model: str | None = None, scale: float | None = None, tag: str = "sparse_ir", tuned: bool = False,
    progress: bool = False, **options: Unpack[Approximations],
) -> Report:
    """Answer all queries and write a TREC run; ties are ordered as trec_eval orders them.

    Search is exact unless something is to be left out, by options or by what tune has found.

    Args:
        index: Folder of an index, impact or BM25, or a Lucene impact index that Pyserini built.
        queries: BEIR folder, queries.jsonl[.gz], queries.tsv[.gz], or a hub data set such as BeIR/scifact.
        output: File for the run.
        hits: Documents per query.
        threads: Threads that search.
        remove_query: Drop the hit whose doc_id is the query's id (ArguAna, Quora).
        query_model: Model that encodes the queries, where the index holds none or the model has moved.
        scale: Scale of the impacts where the index cannot say: built by Pyserini, or from JSON vectors (often 100).
        tag: Name of the run, its last column.
        tuned: Leave out what tune has stored with the index.
        progress: Show a progress bar.
    """
    if hits < 1:
        raise ConfigError(f"{hits} hits are not allowed; ask for at least 1")
    given = {name: value for name, value in options.items() if value is not None}
    chosen = SearchOptions(**given) if given else None  # type: ignore[arg-type]
    if chosen and tuned:
        raise ConfigError(f"tuned options and others ({chosen}) are not allowed together; drop one of the two")
    data.check_run_target(Path(output), tag)
    asked = list(data.read_queries(queries))
    with open_index(Path(index), query_model, scale, tuned=tuned) as opened:
        started = time.perf_counter()
        with tqdm(total=len(asked), desc="searching", unit=" queries", disable=None if progress else True) as bar:
            run, seconds = opened.search_batch(asked, hits, threads=threads, remove_query=remove_query,
                                               options=chosen, progress=bar.update)
        elapsed, used = time.perf_counter() - started, opened.options if chosen is None else chosen
    data.write_run(Path(output), run, tag)
    return {
        "run": str(output),
        "queries": len(asked),
        "queries_without_hits": sum(not found for found in run.values()),
        "hits": sum(len(found) for found in run.values()),
        "options": str(used),
        "seconds": round(elapsed, 3),
        "p50_ms": round(float(np.median(seconds)) * 1000, 3) if len(seconds) else None,
    }


def evaluate(run: Path, qrels: str, *, measures: str = "nDCG@10 R@100", split: str = "test",
             per_query: bool = False, remove_query: bool = False, ties: bool = False,
             conventions: bool = False) -> Report:
    """Measure a run against qrels as trec_eval -c does: a judged query without hits scores 0.

    Equal scores are ordered by doc_id, descending, as trec_eval does.

    Args:
        run: TREC run, or {query_id: {doc_id: score}} as JSON.
        qrels: BEIR folder, BEIR tsv, TREC qrels, or a hub data set such as BeIR/scifact.
        measures: Names of ir_measures, separated by blanks or commas.
        split: Which qrels of a BEIR folder.
        per_query: Also list the values of each query.
        remove_query: Drop hits whose doc_id is the query's id before measuring (ArguAna, Quora).
        ties: Also the least, the expected and the largest value over all orders of equal scores.
        conventions: Also what trec_eval without -c, BEIR, sentence-transformers, MS MARCO and ir_measures would print.
    """
    written = data.read_run(Path(run), as_written=True)
    if remove_query:
        written = measures_module.remove_identical(written)
    hits = {query_id: data.rank_hits(found) for query_id, found in written.items()}
    judged, names = data.read_qrels(qrels, split), measures.replace(",", " ")
    try:
        result = measures_module.evaluate_run(hits, judged, names)
    except DataError as error:
        raise DataError(f"{run} with {qrels}: {error}") from error
    report: Report = {**result.mean, "queries": result.num_queries, "queries_without_hits": result.num_missing,
                      "queries_not_judged": result.num_unjudged}
    if ties:
        ranges = conventions_module.measure_ties(hits, judged, names)
        report |= {"queries_with_ties": conventions_module.count_tied_queries(hits),
                   "ties": {name: found._asdict() for name, found in ranges.items()}}
    if conventions:
        report |= {"conventions": conventions_module.measure_conventions(hits, judged, names, written),
                   "rules": [f"{name}: {rule}" for name, rule in conventions_module.RULES.items()]}
    return {**report, "per_query": result.per_query} if per_query else report


def verify(index: Path) -> Report:
    """Check an index: checksums, Lucene's CheckIndex, counts, and sampled scores against the exact vectors.

    Args:
        index: Folder of an index.
    """
    return indexes.verify_index(Path(index))


def export(vectors: Path, output: Path, *, scale: float | None = None, bits: int | None = None,
           fold: bool | None = None) -> Report:
    """Write vectors as an Anserini JsonVectorCollection of integer impacts.

    Args:
        vectors: Folder that encode wrote.
        output: Folder for the JSON files.
        scale: impact = round(weight x scale); default: spread the collection's weights over the bits.
        bits: Bits per impact, 2 to 16; default 8 (with a scale: 16).
        fold: Multiply static query weights into the impacts; default: wherever the query side is static.
    """
    opened = vector_folders.Vectors(Path(vectors))
    query_encoder = opened.query_encoder()
    rule = indexes.choose_rule(opened, query_encoder, scale=scale, bits=bits, fold=fold)
    lines = vector_folders.export_json_vectors(opened, Path(output), rule, indexes.folded_weights(query_encoder, rule))
    return {"output": str(output), "documents": lines, "rule": rule.to_json()}


def idf(model: str, input: str, output: Path, *, revision: str | None = None) -> Report:
    """Compute an idf.json for a model's tokenizer from any corpus: ln(1 + (N - df + .5) / (df + .5)).

    Args:
        model: Hub name or folder of a model.
        input: BEIR folder, corpus.jsonl[.gz], collection.tsv[.gz], or a hub data set such as BeIR/scifact.
        output: File for the JSON object {token: idf}.
        revision: Commit of a hub model.
    """
    from sparse_ir import encoder

    tokenizer = encoder.load_tokenizer(model, revision=revision)
    values = query_sides.compute_idf((document.contents for document in data.read_documents(input)), tokenizer)
    query_sides.write_idf_json(Path(output), values, tokenizer)
    return {"output": str(output), "tokens": len(values)}


def teach(config: Path, cache: Path, *, progress: bool = False) -> Report:
    """Score once what the teachers of a training configuration will be asked; a second run computes nothing.

    Nor does the training run, up to its last step. Cross-encoders and monoT5 score the pairs of its batches, which are
    all of a batch with in_batch = true; another seed, batch or number of steps has other pairs.

    Args:
        config: TOML file of a training run.
        cache: Folder for the scores and vectors.
        progress: Show progress bars.
    """
    from sparse_ir import runs

    return runs.teach(Path(config), Path(cache), progress=progress)


def train(config: Path, output: Path, *, cache: Path | None = None, progress: bool = False) -> Report:
    """Train a learned-sparse encoder; run again after a kill, it goes on where it stopped, bit for bit.

    What the cache of the teachers lacks is computed on the way; the report counts it as forward passes.

    Args:
        config: TOML file of the run; scripts/recipes has examples.
        output: Folder for checkpoints, log, best and final model.
        cache: Folder with the teachers' scores, shared between runs; default: OUTPUT/teacher-cache.
        progress: Show a progress bar.
    """
    from sparse_ir import runs

    return runs.train(Path(config), Path(output), cache=Path(cache) if cache else None, progress=progress)


def doctor(
    model: str, *, input: str | None = None, revision: str | None = None, device: str | None = None,
    max_length: int | None = None, decoder: Path | None = None, allow_pickle: bool = False, progress: bool = False,
) -> Report:
    """Tell whether a model is sane, before money is spent on it; exit code 1 when a fault was found, else 0.

    Args:
        model: Hub name or folder of a model, or "default", the one inside this package.
        input: A corpus whose first texts are read instead of the built-in English ones.
        revision: Commit of a hub model.
        device: cpu, cuda, ...; default: the accelerator when there is one.
        max_length: Tokens read of each document; default: what the model states.
        decoder: A sparse_ir.json that says how a decoder is read; for models that have none, or to read one otherwise.
        allow_pickle: Read an older pytorch_model.bin (weights only) when there is no safetensors file.
        progress: Show a progress bar.
    """
    from sparse_ir import doctor as practice

    if model == LEXICAL_MODEL:
        raise ConfigError("the lexical model is no neural network; there is nothing to examine")
    settings = None if decoder is None else layouts.read_decoder_file(Path(decoder))
    texts = None if input is None else [document.contents for document in
                                        itertools.islice(data.read_documents(input), practice.OWN_TEXTS)]
    found = practice.examine(str(shipped_model()) if model == DEFAULT_MODEL else model, texts=texts,
                             progress=progress, revision=revision, device=device, max_length=max_length,
                             decoder=settings, allow_pickle=allow_pickle)
    return {"model": model, **found}


# ------------------------------------------------------------------------------------------------ helpers


def shipped_model() -> Path:
    """The trained model inside this package."""
    return Path(str(importlib.resources.files("sparse_ir"))) / "resources" / "model"


def load_encoder(
    model: str, read: Callable[[], Iterator[data.Document]] | None, options: EncodeOptions,
) -> tuple[Any, Any]:
    """The document encoder and the query encoder that were asked for; without a corpus to read, they know none."""
    model, share = str(shipped_model()) if model == DEFAULT_MODEL else model, find_share(model, options)
    chosen = {key: value for key, value in options.items() if key not in _NOT_FOR_THE_NETWORK}
    if model == LEXICAL_MODEL:
        return _fit_lexical(read or (lambda: iter(())), chosen, options)
    from sparse_ir.encoder import Encoder

    if (place := chosen.get("decoder")) is not None:
        chosen["decoder"] = layouts.read_decoder_file(Path(str(place)))
    encoder = Encoder.load(model, **chosen)  # type: ignore[arg-type]
    side, path = options.get("query_side", "auto"), options.get("idf")
    query_encoder = encoder.query_encoder(None if side == "auto" else side, idf=Path(path) if path else None,
                                          allow_unknown=options.get("allow_unknown", False))
    return encoder, adapt(query_encoder, read, share) if share and read else query_encoder


def find_share(model: str, options: EncodeOptions) -> float:
    """The share of the collection's IDF in static query weights: as asked for, or what suits the model."""
    share, side = options.get("collection_idf"), options.get("query_side", "auto")
    if share is not None or model not in (DEFAULT_MODEL, str(shipped_model())):
        return share or 0.0
    return 0.0 if side == "neural" else _DEFAULT_SHARE


def adapt(query_encoder: Any, read: Callable[[], Iterator[data.Document]], share: float) -> Any:
    """Static query weights that know how rare a token is in this collection."""
    if not isinstance(query_encoder, query_sides.StaticQueryEncoder):
        raise ConfigError("collection_idf is for static query weights, and these queries are read by a network")
    idf = query_sides.compute_idf((document.contents for document in read()), query_encoder.tokenizer, unseen=None)
    return query_encoder.adapted(idf, share)


def _fit_lexical(read: Callable[[], Iterator[data.Document]], chosen: dict[str, Any], options: EncodeOptions) -> Any:
    from sparse_ir.lexical import LexicalEncoder

    if extra := sorted(key for key in {**chosen, **options} if key != "shard_size"):
        raise ConfigError(f"the lexical model does not take {', '.join(extra)}; name a neural model or drop them")
    encoder = LexicalEncoder.fit(lambda: (document.contents for document in read()))
    return encoder, encoder.query_encoder()


def check_index_options(scale: float | None, bits: int | None, threads: int) -> None:
    """Refuse at once, and not after hours of encoding, what no index can be built with."""
    if threads < 1:
        raise ConfigError(f"{threads} threads are not allowed; use at least 1")
    if scale is not None:
        impacts.Rule(scale)
    if bits is not None:
        impacts.rule_from_range(1.0, bits)


def open_index(
    folder: Path, query_model: str | None = None, scale: float | None = None, *, tuned: bool = False,
) -> searcher.Index:
    """Open an index of any kind for the queries of a command; see ``search`` for the options."""
    if not folder.exists():
        raise ConfigError(f"{folder} does not exist; build an index first")
    is_foreign = indexes.is_lucene_folder(folder)
    if not is_foreign and not indexes.needs_query_encoder(folder):
        if scale is not None:
            raise ConfigError(f"{folder} keeps its own rule; --scale is for indexes that Pyserini built")
        return searcher.Index(folder, query_model=query_model, tuned=tuned)
    if query_model is None:
        return searcher.Index(folder)  # raises, saying what is missing
    from sparse_ir.encoder import Encoder

    rule = impacts.Rule(scale) if scale is not None else None
    query_encoder = Encoder.load(query_model).query_encoder()
    if is_foreign:
        return searcher.Index(folder, query_encoder=query_encoder, rule=rule, tuned=tuned)
    return _open_without_query_side(folder, query_encoder, rule, tuned)


def _open_without_query_side(
    folder: Path, query_encoder: Any, rule: impacts.Rule | None, tuned: bool,
) -> searcher.Index:
    """An index from JSON vectors. Their whole numbers were made by a scale that only their maker knows."""
    static = isinstance(query_encoder, query_sides.StaticQueryEncoder)
    if rule is None and not static and indexes.read_manifest(folder)["rule"]["scale"] == 1.0:
        raise ConfigError(f"{folder} was built from whole numbers: name the scale that made them (often 100), by which "
                          "the query weights are multiplied")
    opened = searcher.Index(folder, query_encoder=query_encoder, tuned=tuned)
    opened.rule = rule or opened.rule
    return opened


def _pruning(terms: int | None, impact: int | None, mass: float | None) -> Pruning:
    return Pruning(terms, 1 if impact is None else impact, 1.0 if mass is None else mass)


def _vectors_report(made: vector_folders.Vectors, started: float) -> Report:
    facts = made.manifest
    return {
        "vectors": str(made.folder),
        "encoder": facts["encoder"].get("name", facts["encoder"]["kind"]),
        **{key: facts[key] for key in ("documents", "empty_documents", "without_weights", "weights")},
        "mean_terms": round(facts["weights"] / max(facts["documents"], 1), 1),
        "seconds": round(time.perf_counter() - started, 2),
    }


def _index_report(output: Path, manifest: dict[str, Any], started: float) -> Report:
    return {"index": str(output), "kind": manifest["kind"], **manifest["counts"],
            **{name: manifest[name] for name in ("rule", "pruning") if name in manifest},
            "megabytes": round(files.folder_size(output) / 1e6, 2), "seconds": round(time.perf_counter() - started, 2)}
