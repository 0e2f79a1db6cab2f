"""The command ``info``: what is this file or folder?

Numeric libraries are imported inside the functions, so that a help text appears at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparse_ir.commands.arguments import StrPath, command
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.reports import Report

_CONFIG = "config.json"
_MODULES = "modules.json"


@command
def info(path: StrPath) -> Report:
    """Say what a file or folder is: an index, vectors, a model, a run or qrels.

    Nothing is verified; verify does that for an index.

    Args:
        path: Folder of an index, of vectors or of a model, or file of a run or of qrels.
    """
    from sparse_ir.indexing import manifest
    from sparse_ir.indexing.vectors import PLAN

    place = Path(path)
    if not place.exists():
        raise ConfigError(f"{path} does not exist")
    if place.is_file():
        return _describe_file(place)
    if manifest.is_lucene_folder(place):
        return {"path": str(path), "kind": "Lucene index without a manifest (built by Pyserini)"}
    if (place / PLAN).exists():
        return _describe_vectors(place)
    if (place / manifest.MANIFEST).exists():
        return _describe_index(place)
    if (place / _CONFIG).exists() or (place / _MODULES).exists():
        return _describe_model(place)
    raise ConfigError(
        f"{path} is of no known kind; it must be an index, vectors, a model, a run or qrels"
    )


def _describe_index(folder: Path) -> Report:
    from sparse_ir.indexing import manifest
    from sparse_ir.storage import files

    record = manifest.read_manifest(folder)
    kind = "BM25 index" if record["kind"] == "bm25" else "impact index"
    report: Report = {"path": str(folder), "kind": kind, "engine": manifest.engine_of(record)}
    report |= record["counts"]
    for part in ("bm25", "rule", "pruning", "parameters"):
        if part in record:
            report[part] = record[part]
    report["encoder"] = _name_encoder(record.get("encoder"))
    report["query_side"] = _name_encoder(record.get("query"))
    report["forward_index"] = manifest.has_forward_index(record)
    report["documents_kept"] = manifest.has_documents(record)
    report["tuned"] = (folder / manifest.TUNED).exists()
    report["document_megabytes"] = round(manifest.document_bytes(record) / 1e6, 2)
    report["megabytes"] = round(files.folder_size(folder) / 1e6, 2)
    report["versions"] = record["versions"]
    return report


def _describe_vectors(folder: Path) -> Report:
    from sparse_ir.indexing import shards
    from sparse_ir.indexing.vectors import MANIFEST, PLAN, Vectors, read_record

    if not (folder / MANIFEST).exists():
        planned = read_record(folder / PLAN)["shards"]
        done = sum(shards.facts_path(folder, number).exists() for number in range(len(planned)))
        return {
            "path": str(folder),
            "kind": "unfinished vectors (run the same encode command again)",
            "documents": sum(shard["documents"] for shard in planned),
            "shards": len(planned),
            "finished_shards": done,
        }
    opened = Vectors(folder)
    record = opened.manifest
    return {
        "path": str(folder),
        "kind": "vectors",
        "documents": record["documents"],
        "empty_documents": record["empty_documents"],
        "without_weights": record["without_weights"],
        "weights": record["weights"],
        "shards": opened.num_shards,
        "vocabulary": len(opened.vocabulary),
        "encoder": _name_encoder(record["encoder"]),
        "query_side": _name_encoder(record["query"]),
        "documents_kept": opened.has_documents,
        "document_megabytes": round(opened.document_bytes / 1e6, 2),
    }


def _name_encoder(fingerprint: Mapping[str, Any] | None) -> str | None:
    """The name and kind of an encoder, from its fingerprint."""
    if fingerprint is None:
        return None
    name = fingerprint.get("name")
    kind = str(fingerprint["kind"])
    return f"{name} ({kind})" if name and name != kind else kind


def _describe_model(folder: Path) -> Report:
    from sparse_ir.models import model_files
    from sparse_ir.storage import files

    config = {}
    if (folder / _CONFIG).exists():
        config = model_files.read_config(folder)
    layout = "sentence-transformers" if (folder / _MODULES).exists() else "plain"
    return {
        "path": str(folder),
        "kind": "model",
        "layout": layout,
        "architecture": ", ".join(config.get("architectures") or []) or None,
        "model_type": config.get("model_type"),
        "vocabulary": config.get("vocab_size"),
        "layers": config.get("num_hidden_layers"),
        "megabytes": round(files.folder_size(folder) / 1e6, 2),
    }


def _describe_file(path: Path) -> Report:
    """A run has six columns in a line, qrels have three or four."""
    from sparse_ir.data import readers, runs
    from sparse_ir.data.lines import read_lines

    try:
        first = next((line for _, line in read_lines(path)), "")
    except (DataError, UnicodeDecodeError):
        first = ""
    columns = len(first.split())
    if columns == 6 or path.name.endswith((".json", ".json.gz")):
        run = runs.read_run(path)
        lengths = [len(hits) for hits in run.values()]
        return {
            "path": str(path),
            "kind": "run",
            "tag": first.split()[5] if columns == 6 else None,
            "queries": len(run),
            "hits": sum(lengths),
            "fewest_hits": min(lengths, default=0),
            "most_hits": max(lengths, default=0),
        }
    if columns in (3, 4) and not first.startswith(("{", "[")):
        qrels = readers.read_qrels(path)
        grades = Counter(grade for judged in qrels.values() for grade in judged.values())
        counted = {str(grade): count for grade, count in sorted(grades.items())}
        return {
            "path": str(path),
            "kind": "qrels",
            "queries": len(qrels),
            "judgements": grades.total(),
            "relevant": sum(count for grade, count in grades.items() if grade > 0),
            "grades": counted,
        }
    raise ConfigError(
        f"{path} is of no known kind; a file must be a run (six columns, or JSON) or qrels"
    )
