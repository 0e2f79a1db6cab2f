"""The leaderboard as MTEB's result files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from sparse_ir.benchmark import columns
from sparse_ir.benchmark.averages import by_system, merge_groups
from sparse_ir.benchmark.rows import HASHES, Row
from sparse_ir.data import datasets
from sparse_ir.storage import files

_MAIN_MEASURE = "nDCG@10"
_UNKNOWN_FACTS = (
    "loader",
    "release_date",
    "n_parameters",
    "memory_usage_mb",
    "max_tokens",
    "embed_dim",
    "license",
    "open_weights",
    "public_training_code",
    "public_training_data",
    "use_instructions",
    "training_datasets",
)


def make_mteb_files(rows: Sequence[Row]) -> dict[str, Any]:
    """Path -> content of ``mteb/results/MODEL/REVISION/TASK.json`` and ``model_meta.json``.

    Data sets that MTEB does not have, or not in this size, get no file. MTEB asks for the owner of
    a model: a system that is not named after a hub model (``OWNER--MODEL``) belongs to ``local``.
    The data come from BEIR's archives, so ``dataset_revision`` is the SHA-256 of corpus, queries
    and qrels, and not a revision of the hub.
    """
    made: dict[str, Any] = {}
    for system, own in by_system([*rows, *merge_groups(rows)]).items():
        results = {}
        hashes = set()
        revision = None
        for row in own.values():
            task = find_task(row)
            if task:
                results[task] = _describe_result(row, task)
                hashes.add(row.result.system.hash)
                revision = revision or row.result.system.revision
        if not results:
            continue
        # a safe folder name; without a revision, a hash of the hashes of all rows
        revision = revision or files.sha256_of_json(sorted(hashes))[:16]
        revision = re.sub(r"^[.]+|[^A-Za-z0-9._+-]", "_", revision)
        name = f"local/{system}"
        if "--" in system:
            name = system.replace("--", "/", 1)
        folder = f"mteb/results/{name.replace('/', '__')}/{revision}"
        described: dict[str, Any] = {"name": name, "revision": revision, "languages": ["eng-Latn"]}
        described |= dict.fromkeys(_UNKNOWN_FACTS)
        described |= {"framework": [], "similarity_fn_name": "dot", "model_type": ["sparse"]}
        made[f"{folder}/model_meta.json"] = described
        for task, result in results.items():
            made[f"{folder}/{task}.json"] = result
    return made


def find_task(row: Row) -> str:
    """MTEB's name for the data set of a row; "" if MTEB does not have it, or not in this size."""
    size = row.result.dataset
    facts = datasets.find_facts(row.dataset)
    if facts is None or not datasets.has_published_size(row.dataset, size.documents, size.queries):
        return ""
    return facts.mteb


def _describe_result(row: Row, task: str) -> dict[str, Any]:
    facts = row.result.dataset
    scores: dict[str, Any] = {}
    for column in columns.MEASURES:
        value = row.shown_measure(column.name)
        if value is not None and column.mteb:
            scores[column.mteb] = value
    scores["main_score"] = row.measures[_MAIN_MEASURE]
    scores["hf_subset"] = "default"
    scores["languages"] = ["eng-Latn"]
    return {
        "dataset_revision": files.sha256_of_json(attrgetter(*HASHES)(facts)),
        "task_name": task,
        "mteb_version": None,
        "scores": {facts.split: [scores]},
        "evaluation_time": None,
        "kg_co2_emissions": None,
    }
