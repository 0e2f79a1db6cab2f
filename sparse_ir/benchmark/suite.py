"""The suite: several systems over many data sets, each encoded, indexed, searched, measured, and
kept as a row.

A row that is there is not made again; a killed suite goes on where it stopped, and its rows are the
same to the byte. What is in the making lies in ``RESULTS/.work`` under the hash of corpus and
system, so nothing stale is ever taken up. It renders no table.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import itertools
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from tqdm import tqdm

from sparse_ir import environment
from sparse_ir.benchmark import results, verification
from sparse_ir.benchmark.averages import average, merge_groups
from sparse_ir.benchmark.results import RESULT, Row
from sparse_ir.data import readers
from sparse_ir.data.datasets import Collection
from sparse_ir.data.records import Document, Query, Run
from sparse_ir.engines.base import Bm25
from sparse_ir.engines.lucene.parts import analyze
from sparse_ir.engines.lucene.terms import term_of_token
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.indexing import builder, vectors
from sparse_ir.models import catalog
from sparse_ir.models.catalog import DEFAULT_MODEL, LEXICAL_MODEL, EncodeOptions
from sparse_ir.models.interfaces import DocumentEncoder
from sparse_ir.reports import Report
from sparse_ir.retrieval.searcher import Index
from sparse_ir.storage import files

# reference systems, with what differs from Anserini's parameters
BM25_SYSTEMS: dict[str, dict[str, float]] = {"bm25": {}, "bm25-multifield": {"title": 1.0}}
NO_BASELINES = "none"
WARM_UP_QUERIES = 100
_PACKAGES = ("pyserini", "ir_measures", "pytrec_eval-terrier", "numpy", "scipy")
_MODEL_PACKAGES = {"impact": ("tokenizers", "torch", "transformers"), "lexical": ("tokenizers",)}


class System(NamedTuple):
    """What a row is about."""

    name: str  # of the row
    kind: str  # impact (neural), lexical, or one of BM25_SYSTEMS
    model: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """The options of one call, and what it has computed so far."""

    output: Path
    hits: int
    rule: dict[str, Any]  # scale, bits, fold
    options: EncodeOptions
    keep: bool
    progress: bool
    known: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """The value of ``compute()``, computed the first time only."""
        if key not in self.known:
            self.known[key] = compute()
        return self.known[key]


def read_systems(model: str, baselines: str) -> list[System]:
    """The systems of two lists, each once; raises ``ConfigError`` for two of one name, and for an
    unknown baseline.
    """
    references = [] if baselines == NO_BASELINES else _split(baselines)
    for name in references:
        if name not in (*BM25_SYSTEMS, LEXICAL_MODEL):
            raise ConfigError(
                f"baseline {name!r} is unknown, allowed: {', '.join(BM25_SYSTEMS)}, "
                f"{LEXICAL_MODEL}, or {NO_BASELINES} alone"
            )
    systems = list(dict.fromkeys(map(_read_system, [*_split(model), *references])))
    if not systems:
        raise ConfigError("no system is named; name a model, or baselines")
    names = [system.name for system in systems]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(
            f"two systems would be called {min(twice)!r}; name one of them with NAME=MODEL"
        )
    return systems


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _read_system(text: str) -> System:
    name, separator, model = text.partition("=")
    if not separator:
        name, model = "", text
    if model == DEFAULT_MODEL:
        return System(name or model, "impact", model)
    if model in BM25_SYSTEMS or model == LEXICAL_MODEL:
        return System(name or model, model, model)
    # a hub name keeps its owner; a folder, wherever it lies, goes by its own name
    found = Path(model).resolve().name if Path(model).exists() else model.replace("/", "--")
    return System(name or found, "impact", model)


def group_by_corpus(
    fetched: Iterable[tuple[str, Collection]],
) -> Iterator[list[tuple[str, Collection]]]:
    """Neighbouring sets over the same corpus: they share one index."""
    for _, group in itertools.groupby(fetched, key=lambda pair: pair[1].corpus):
        yield list(group)


def measure_corpus(plan: Plan, system: System, sets: Sequence[tuple[str, Collection]]) -> int:
    """Make the rows that are missing; their number."""
    pending = [
        (source, found, identity)
        for source, found in sets
        if not _is_finished(plan, system, found, identity := _identify(plan, system, found))
    ]
    corpus = sets[0][1].corpus.parent.name
    place = plan.output / ".work" / corpus / system.name
    if pending:
        if plan.progress:
            tqdm.write(f"{corpus}: {system.name}", file=sys.stderr)
        _measure_sets(plan, system, pending, place)
    if place.exists() and not plan.keep:
        files.remove_leftovers(place)
        files.remove_folder(place)
    return len(pending)


def _measure_sets(
    plan: Plan,
    system: System,
    pending: Sequence[tuple[str, Collection, dict[str, Any]]],
    place: Path,
) -> None:
    surveys = [verification.survey(found) for _, found, _ in pending]
    _, collection, identity = pending[0]
    key = {name: identity[name] for name in ("corpus_sha256", "kind", "options", "fingerprint")}
    work = place / files.sha256_of_json(key)[:16]
    with _open(plan, system, collection, work) as index:
        for (source, found, known), survey in zip(pending, surveys, strict=True):
            _make_row(plan, system, index, work, found, {"source": source, **survey}, known)


def _identify(plan: Plan, system: System, collection: Collection) -> dict[str, Any]:
    """All that decides a row: the data by their hashes, the rules, the model by its hashes, the
    options.
    """
    hashes = {
        f"{part}_sha256": plan.once(path, functools.partial(results.sha256_of_content, path))
        for part, path in (
            ("corpus", collection.corpus),
            ("queries", collection.queries),
            ("qrels", collection.qrels),
        )
    }
    fingerprint = None
    if system.kind == "impact":
        sides = [side.fingerprint for side in _load_neural(plan, system, collection)]
        # wherever it lies
        fingerprint = files.sha256_of_json([{**side, "name": None} for side in sides])
    return {
        **hashes,
        "split": collection.split,
        "remove_identical": collection.remove_identical,
        "relevance_level": collection.relevance_level,
        "hits": plan.hits,
        "kind": system.kind,
        "options": {} if system.kind in BM25_SYSTEMS else plan.rule,
        "fingerprint": fingerprint,
    }


def _is_finished(
    plan: Plan, system: System, collection: Collection, identity: Mapping[str, Any]
) -> bool:
    folder = results.row_folder(plan.output, collection.name, system.name)
    if not (folder / RESULT).exists():
        return False
    recorded = results.read_row(folder).result["identity"]
    changed = [key for key in identity if recorded.get(key) != identity[key]]
    if changed:
        differences = "; ".join(
            f"{key}: {recorded.get(key)} then, {identity[key]} now" for key in changed
        )
        raise ConfigError(
            f"{folder} is a row of something else ({differences}); delete it to "
            "have it made again, give "
            "the system another name with NAME=MODEL, or choose another output"
        )
    return True


def _open(plan: Plan, system: System, collection: Collection, work: Path) -> Index:
    """The index of a system, built where it is not there yet."""
    folder = work / "index"
    if system.kind in BM25_SYSTEMS:
        if not folder.exists():
            parameters = Bm25(**BM25_SYSTEMS[system.kind])
            builder.build_bm25_index(
                _reader(collection), folder, parameters, progress=plan.progress
            )
        return Index(folder)
    if not folder.exists():
        _build_impacts(plan, system, collection, work)
    neural = system.kind == "impact"
    return Index(
        folder, query_encoder=_load_neural(plan, system, collection)[1] if neural else None
    )


def _build_impacts(plan: Plan, system: System, collection: Collection, work: Path) -> None:
    read = _reader(collection)
    encoder, query_encoder = (
        _load_neural(plan, system, collection)
        if system.kind == "impact"
        else _fit_lexical(plan, read)
    )
    clock = _Stopwatch(encoder)
    made = vectors.write_vectors(
        work / "vectors",
        read,
        clock,
        query_encoder=query_encoder,
        shard_size=plan.options.get("shard_size", 1024),
        progress=plan.progress,
    )
    _add_time(work, clock)
    rule = builder.choose_rule(made, query_encoder, **plan.rule)
    # one thread makes one segment, in the order of the corpus: the same index, and one that
    # searches are timed on
    builder.build_impact_index(
        made, work / "index", rule, query_encoder, threads=1, progress=plan.progress
    )


def _reader(collection: Collection) -> Callable[[], Iterator[Document]]:
    return functools.partial(readers.read_documents, collection.corpus)


def _load_neural(plan: Plan, system: System, collection: Collection) -> tuple[Any, Any]:
    """The encoders of a system. The network is loaded once; static query weights may know the
    corpus that they ask.
    """
    encoder, query_encoder = plan.once(
        system, lambda: catalog.load_encoder(system.model, None, plan.options)
    )
    share = catalog.find_share(system.model, plan.options)
    if not share:
        return encoder, query_encoder
    return encoder, plan.once(
        (system, collection.corpus),
        lambda: catalog.adapt(query_encoder, _reader(collection), share),
    )


def _fit_lexical(plan: Plan, read: Callable[[], Iterator[Document]]) -> tuple[Any, Any]:
    size = plan.options.get("shard_size", 1024)  # the other options are for the models beside it
    return catalog.load_encoder(LEXICAL_MODEL, read, {"shard_size": size})


class _Stopwatch:
    """An encoder whose work is timed: documents and seconds of this process."""

    def __init__(self, encoder: DocumentEncoder) -> None:
        self._encoder = encoder
        self.vocabulary, self.fingerprint = encoder.vocabulary, encoder.fingerprint
        self.query_encoder = encoder.query_encoder
        self.documents, self.seconds = 0, 0.0

    def encode(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> sparse.csr_matrix:
        """What the encoder says."""
        begun = time.perf_counter()
        weights = self._encoder.encode(texts, progress)
        self.seconds += time.perf_counter() - begun
        self.documents += len(texts)
        return weights


def _add_time(work: Path, clock: _Stopwatch) -> None:
    """Add what this process encoded to what killed ones before it have."""
    path = work / "encode.json"
    before = files.read_json(path) if path.exists() else {"documents": 0, "seconds": 0.0}
    files.write_json(
        path,
        {
            "documents": before["documents"] + clock.documents,
            "seconds": before["seconds"] + clock.seconds,
        },
    )


def _make_row(
    plan: Plan,
    system: System,
    index: Index,
    work: Path,
    collection: Collection,
    facts: Mapping[str, Any],
    identity: Mapping[str, Any],
) -> None:
    qrels = readers.read_qrels(collection.qrels)
    queries = [
        query for query in readers.read_queries(collection.queries) if query.query_id in qrels
    ]
    terms, encode_seconds = _query_terms(index, queries)
    run, seconds = _search(plan, index, queries, collection.remove_identical)
    try:
        means, per_query = results.measure(run, qrels, collection.relevance_level)
    except DataError as error:
        raise DataError(f"{collection.name} / {system.name}: {error}") from error
    manifest = index.manifest
    result = {
        "dataset": {
            "name": collection.name,
            "split": collection.split,
            **facts,
            "remove_identical": collection.remove_identical,
            "relevance_level": collection.relevance_level,
            **{key: identity[key] for key in ("corpus_sha256", "queries_sha256", "qrels_sha256")},
        },
        "system": _describe_system(system, manifest, plan.rule),
        "measures": means,
        "measured_as": results.name_measures(collection.relevance_level),
        "efficiency": _efficiency(index, terms, facts["documents"]),
        "run": {"hits_per_query": plan.hits},
        "versions": {
            **environment.find_versions((*_PACKAGES, *_MODEL_PACKAGES.get(system.kind, ()))),
            "lucene": manifest["versions"]["lucene"],
        },
        "commit": environment.find_commit(),
        "command": _command(plan, system, facts["source"]),
        "identity": identity,
        "per_query": per_query,
    }
    results.write_row(plan.output, Row(result, _timing(work, seconds, encode_seconds)), run)


def _query_terms(index: Index, queries: Sequence[Query]) -> tuple[list[list[str]], list[float]]:
    """The distinct Lucene terms of each query, and the seconds it took to find them (encoding;
    analysis for BM25).
    """
    terms, seconds = [], []
    for query in queries:
        begun = time.perf_counter()
        if index.query_encoder is None:
            found = sorted(set(next(analyze([query.text]))))
        else:
            found = [term_of_token(token) for token in index.encode_query(query.text)]
        seconds.append(time.perf_counter() - begun)
        terms.append(found)
    return terms, seconds


def _search(
    plan: Plan, index: Index, queries: Sequence[Query], remove_query: bool
) -> tuple[Run, np.ndarray]:
    """The run, and the seconds of each query from text to hits, on one thread and a warm index."""
    index.search_batch(queries[:WARM_UP_QUERIES], plan.hits)
    with tqdm(
        total=len(queries),
        desc="searching",
        unit=" queries",
        disable=None if plan.progress else True,
    ) as bar:
        run, seconds = index.search_batch(
            queries, plan.hits, remove_query=remove_query, progress=bar.update
        )
    return run, seconds


def _describe_system(
    system: System, manifest: Mapping[str, Any], rule: Mapping[str, Any]
) -> dict[str, Any]:
    """The system by its parts, and one hash over all that makes its scores."""
    if system.kind in BM25_SYSTEMS:
        parts: dict[str, Any] = {"parameters": manifest["parameters"]}
        model = revision = None
    else:
        parts = {
            "encoder": manifest["encoder"],
            "query": manifest["query"],
            "rule": manifest["rule"],
            "options": dict(rule),
        }
        model = (
            manifest["encoder"].get("name", system.model)
            if system.model != DEFAULT_MODEL
            else system.model
        )
        revision = manifest["encoder"].get("revision")
    return {
        "name": system.name,
        "kind": system.kind,
        "model": model,
        "revision": revision,
        "hash": files.sha256_of_json(parts),
        **parts,
    }


def _efficiency(index: Index, terms: Sequence[Sequence[str]], documents: int) -> dict[str, Any]:
    """What a search costs, without a clock.

    ``flops`` is ``sum over terms j of p_j(query) x p_j(document)``, with ``p_j`` the share of the
    queries, and of the documents, that hold ``j`` (Formal et al. 2021, SPLADE, section 4): the mean
    number of postings that a query meets, divided by the documents. Document terms are counted
    after quantization; BM25's fields are counted one by one.
    """
    frequencies = index.reader.document_frequencies({term for found in terms for term in found})
    met = sum(frequencies[term] for found in terms for term in found)
    return {
        "mean_query_terms": sum(map(len, terms)) / len(terms),
        "mean_document_terms": index.reader.statistics()["postings"] / documents,
        "flops": met / len(terms) / documents,
        "index_bytes": files.folder_size(index.folder / "lucene"),
    }


def _timing(
    work: Path, seconds: Sequence[float] | np.ndarray, encode_seconds: Sequence[float]
) -> dict[str, Any]:
    path = work / "encode.json"
    encoded = files.read_json(path) if path.exists() else {"documents": 0, "seconds": 0.0}
    return {
        "encode_documents_per_second": round(encoded["documents"] / encoded["seconds"], 2)
        if encoded["seconds"]
        else None,
        "search_latency_ms": environment.describe_latency(seconds),  # one thread, text to hits
        # the part of it before the engine
        "query_encode_ms": environment.describe_latency(encode_seconds),
        "hardware": environment.describe_machine(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _command(plan: Plan, system: System, source: str) -> str:
    """The command that makes this row alone; where the data and the rows
    lie is left to the reader.
    """
    named = (
        system.model
        if _read_system(system.model).name == system.name
        else f"{system.name}={system.model}"
    )
    parts = [
        "sparse-ir",
        "beir",
        "--model",
        named,
        "--baselines",
        NO_BASELINES,
        "--datasets",
        source,
    ]
    asked: dict[str, Any] = {"hits": plan.hits if plan.hits != 1000 else None}
    if system.kind not in BM25_SYSTEMS:
        asked |= plan.rule
    if system.kind == "impact":
        asked |= plan.options
    for key, value in asked.items():
        flag = "--" + key.replace("_", "-")
        if value is True or (value is False and key == "fold"):
            parts.append(flag if value else "--no-fold")
        elif value is not None and value is not False:
            parts += [flag, str(value)]
    return shlex.join(parts)


def describe_suite(
    plan: Plan,
    systems: Sequence[System],
    names: Sequence[str],
    made: int,
    skipped: Mapping[str, str],
) -> Report:
    folders = {name.replace(":", "-") for name in names}
    chosen = [
        row
        for row in results.read_rows(plan.output)
        if row.dataset in folders and row.system in {system.name for system in systems}
    ]
    shown = {
        f"{row.dataset} / {row.system}": _round(row.shown_measures) for row in merge_groups(chosen)
    }
    averages = {system: _round(values) for system, values in average(chosen).items()}
    return {
        "results": str(plan.output),
        "rows_made": made,
        "rows_found": len(chosen) - made,
        "rows": shown,
        **({"average of BEIR's 13": averages} if averages else {}),
        **({"skipped": dict(skipped)} if skipped else {}),
    }


def _round(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 4) for name, value in values.items()}
