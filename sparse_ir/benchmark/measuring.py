"""Making one row: search the queries of a data set, measure the run, and record the cost."""

from __future__ import annotations

import dataclasses
import datetime
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparse_ir import environment
from sparse_ir.benchmark import columns, results
from sparse_ir.benchmark.rows import (
    DatasetFacts,
    Efficiency,
    Hardware,
    Result,
    Row,
    RunFacts,
    SystemFacts,
    Timing,
)
from sparse_ir.benchmark.systems import (
    HYBRID,
    NO_BASELINES,
    System,
    read_system,
)
from sparse_ir.console import progress_bar
from sparse_ir.data import readers
from sparse_ir.data.datasets import Collection
from sparse_ir.data.records import Query, Run
from sparse_ir.errors import DataError
from sparse_ir.models.options import DEFAULT_MODEL, EncodeOptions
from sparse_ir.retrieval.encoded_query import EncodedQuery
from sparse_ir.retrieval.searcher import Index
from sparse_ir.storage import files

WARM_UP_QUERIES = 100
_DEFAULT_HITS = 1000
_ENCODING_TIME = "encode.json"
_PACKAGES = ("pyserini", "ir_measures", "pytrec_eval-terrier", "numpy", "scipy")
_NEURAL_PACKAGES = ("tokenizers", "torch", "transformers")
_MODEL_PACKAGES = {
    "impact": _NEURAL_PACKAGES,
    "hybrid": _NEURAL_PACKAGES,
    "lexical": ("tokenizers",),
}


@dataclasses.dataclass(frozen=True)
class ImpactOptions:
    """How weights become impacts; None means the default of ``builder.choose_rule``."""

    scale: float | None = None
    bits: int | None = None
    fold: bool | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """The options of one call of the suite."""

    output: Path
    hits: int
    impacts: ImpactOptions
    options: EncodeOptions
    keep: bool  # vectors and indexes in OUTPUT/.work
    progress: bool


class Data(NamedTuple):
    """A data set, and the name under which it was found."""

    source: str
    collection: Collection


def make_row(
    plan: Plan,
    system: System,
    index: Index,
    work: Path,
    data: Data,
    facts: DatasetFacts,
    identity: Mapping[str, Any],
) -> None:
    """Search, measure and write one row; raises ``DataError`` that names it for a useless run."""
    collection = data.collection
    qrels = readers.read_qrels(collection.qrels)
    encoded = []
    encode_seconds = []
    queries = [each for each in readers.read_queries(collection.queries) if each.query_id in qrels]
    for query in queries:
        begun = time.perf_counter()
        one = index.encode(query.text)
        _ = one.terms  # a BM25 index analyses a text when its terms are read
        encode_seconds.append(time.perf_counter() - begun)
        encoded.append(one)
    run, search_seconds = _search(plan, index, queries, collection.remove_identical)
    try:
        measured = results.measure(run, qrels, collection.relevance_level)
    except DataError as error:
        raise DataError(f"{collection.name} / {system.name}: {error}") from error
    packages = (*_PACKAGES, *_MODEL_PACKAGES.get(system.kind, ()))
    versions: dict[str, Any] = dict(environment.find_versions(packages))
    versions["lucene"] = index.manifest["versions"]["lucene"]
    result = Result(
        dataset=facts,
        system=_describe_system(system, index.manifest, plan.impacts),
        measures=measured.means,
        measured_as=columns.names_for_ir_measures(collection.relevance_level),
        efficiency=_count_costs(index, encoded, facts.documents),
        run=RunFacts(hits_per_query=plan.hits),
        versions=versions,
        commit=environment.find_commit(),
        command=_command(plan, system, data.source),
        identity=dict(identity),
        per_query=measured.per_query,
    )
    encoding = _read_encoding_time(work / _ENCODING_TIME)
    documents_per_second = None
    if encoding["seconds"]:
        documents_per_second = round(encoding["documents"] / encoding["seconds"], 2)
    timing = Timing(
        encode_documents_per_second=documents_per_second,
        search_latency_ms=environment.describe_latency(search_seconds),
        query_encode_ms=environment.describe_latency(encode_seconds),
        hardware=Hardware.model_validate(environment.describe_machine()),
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    results.write_row(plan.output, Row(result, timing), run)


def _search(
    plan: Plan, index: Index, queries: Sequence[Query], remove_query: bool
) -> tuple[Run, np.ndarray]:
    """The run, and the seconds of each query (float64 ``(Q,)``, from text to hits).

    The search runs on one thread and a warm index.
    """
    index.search_batch(queries[:WARM_UP_QUERIES], plan.hits)
    with progress_bar(len(queries), plan.progress, desc="searching", unit=" queries") as bar:
        return index.search_batch(
            queries, plan.hits, remove_query=remove_query, progress=bar.update
        )


def _describe_system(
    system: System, manifest: Mapping[str, Any], impacts: ImpactOptions
) -> SystemFacts:
    """The system by its parts, with one hash over everything that decides its scores."""
    model = None
    revision = None
    parts: dict[str, Any]
    if system.is_bm25:
        parts = {"parameters": manifest["parameters"]}
    else:
        encoder = manifest["encoder"]
        parts = {
            "encoder": encoder,
            "query": manifest["query"],
            "rule": manifest["rule"],
            "options": dataclasses.asdict(impacts),
        }
        if system.kind == HYBRID:
            parts["bm25"] = manifest["bm25"]
        model = system.model
        if model != DEFAULT_MODEL:
            model = encoder.get("name", model)
        revision = encoder.get("revision")
    return SystemFacts(
        name=system.name,
        kind=system.kind,
        model=model,
        revision=revision,
        hash=files.sha256_of_json(parts),
        **parts,
    )


def _count_costs(index: Index, queries: Sequence[EncodedQuery], documents: int) -> Efficiency:
    """What a search costs, without a clock.

    ``flops`` is ``sum over terms j of p_j(query) x p_j(document)``, with ``p_j`` the share of the
    queries, and of the documents, that hold ``j`` (Formal et al. 2021, SPLADE, section 4). It is
    the mean number of postings that a query meets, divided by the number of documents. Document
    terms are counted after quantization; BM25's fields are counted one by one.
    """
    postings_met = 0
    query_terms = 0
    for query in queries:
        postings_met += index.count_postings(query)
        query_terms += len(query.terms)
    return Efficiency(
        mean_query_terms=query_terms / len(queries),
        mean_document_terms=index.statistics().postings / documents,
        flops=postings_met / len(queries) / documents,
        index_bytes=files.folder_size(index.engine_folder),
    )


def add_encoding_time(work: Path, documents: int, seconds: float) -> None:
    """Add what this process encoded to the work of the processes before it."""
    path = work / _ENCODING_TIME
    before = _read_encoding_time(path)
    files.write_json(
        path,
        {"documents": before["documents"] + documents, "seconds": before["seconds"] + seconds},
    )


def _read_encoding_time(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"documents": 0, "seconds": 0.0}
    stored: dict[str, Any] = files.read_json(path)
    return stored


def _command(plan: Plan, system: System, source: str) -> str:
    """The command that makes this row alone; the reader adds where data and rows are."""
    model = system.specification
    if read_system(model).name != system.name:
        model = f"{system.name}={model}"
    parts = ["sparse-ir", "beir", "--model", model]
    parts += ["--baselines", NO_BASELINES, "--datasets", source]
    options: dict[str, Any] = {}
    if plan.hits != _DEFAULT_HITS:
        options["hits"] = plan.hits
    if not system.is_bm25:
        options |= dataclasses.asdict(plan.impacts)
    if system.is_neural:
        options |= plan.options
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            parts.append(flag)
        elif value is False:
            if name == "fold":
                parts.append("--no-fold")
        elif value is not None:
            parts += [flag, str(value)]
    return shlex.join(parts)
