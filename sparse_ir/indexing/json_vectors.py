"""Vectors in Anserini's JSON form: reading, importing, exporting."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import sparse

from sparse_ir.data.lines import parse_jsonl
from sparse_ir.data.records import FLOAT32_MAX, check_id, show
from sparse_ir.data.seen_ids import open_seen_ids, remember_id
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.indexing.quantization import Rule, quantize
from sparse_ir.indexing.shards import write_shard
from sparse_ir.indexing.vectors import (
    MANIFEST,
    PLAN,
    VOCABULARY,
    EncodingPlan,
    PlannedShard,
    Vectors,
    finish_folder,
    row_as_dict,
    visible_files,
)
from sparse_ir.storage import files

_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")  # the ones that Anserini reads


def find_json_vectors(folder: Path) -> list[Path]:
    """The files of an Anserini ``JsonVectorCollection``, sorted.

    Raises ``DataError`` when there are none.
    """
    paths = sorted(path for path in folder.glob("*") if path.name.endswith(_SUFFIXES))
    if not paths:
        patterns = ", ".join(f"*{suffix}" for suffix in _SUFFIXES)
        raise DataError(
            f"{folder} holds no vectors; it must be a folder that the encode command wrote or hold "
            f"files {patterns}"
        )
    return paths


def read_json_vectors(folder: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """doc_id and ``{token: weight}`` of each line ``{"id", "vector"}``, file by file by name.

    Raises ``DataError`` for a broken line, a missing or repeated id, a token that a vector names
    twice, and a weight that is not a finite number of at least 0.
    """
    with open_seen_ids() as seen:
        for path in find_json_vectors(folder):
            for number, record in parse_jsonl(path):
                place = f"{path}:{number}"
                doc_id = check_id(f'{place}: "id"', record.get("id"))
                remember_id(seen, str(path), number, doc_id)
                yield doc_id, _check_vector(place, record.get("vector"))


def _check_vector(place: str, vector: object) -> dict[str, float]:
    if not isinstance(vector, dict):
        raise DataError(
            f'{place}: "vector" is {show(vector)}; it must be an object of token: weight'
        )
    for token, weight in vector.items():
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not 0 <= weight <= FLOAT32_MAX:
            raise DataError(
                f"{place}: the weight of {show(token)} is {show(weight)}; it must be a finite "
                "number of at least 0"
            )
    return vector


def open_vectors(source: Path, scratch: Path) -> Vectors:
    """The vectors in ``source``: a folder of ours, or JSON vectors, copied to ``scratch`` first."""
    if (source / PLAN).exists() or (source / MANIFEST).exists():
        return Vectors(source)
    return import_json_vectors(source, scratch)


def export_json_vectors(
    vectors: Vectors, output: Path, rule: Rule, query_weights: np.ndarray | None = None
) -> int:
    """Write Anserini's ``JsonVectorCollection`` (``{"id", "contents", "vector"}``).

    Impacts are written, not weights, because Anserini cuts fractions off and drops what is below 1.
    ``contents`` is empty: Anserini ignores it. A document without impacts has an empty vector,
    which Anserini counts as empty. The folder appears whole or not at all, in the place of an older
    export. Returns the number of lines.
    """
    files.check_folder(output)
    if output.exists():
        for path in visible_files(output):
            if not path.match("vectors-*.jsonl"):
                raise ConfigError(
                    f"{output} holds other files than vectors; choose another output or delete it"
                )
    total = 0
    with files.write_lock(output):
        files.remove_leftovers(output)
        with files.building(output) as folder:
            for number in range(vectors.num_shards):
                total += _export_shard(vectors, number, folder, rule, query_weights)
    return total


def _export_shard(
    vectors: Vectors, number: int, folder: Path, rule: Rule, query_weights: np.ndarray | None
) -> int:
    doc_ids, weights = vectors.read_shard(number)
    impacts = quantize(weights, rule, query_weights).impacts
    with files.atomic_writer(folder / f"vectors-{number:06d}.jsonl") as stream:
        for row, doc_id in enumerate(doc_ids):
            vector = row_as_dict(impacts, row, vectors.vocabulary)
            line = {"id": doc_id, "contents": "", "vector": vector}
            stream.write(json.dumps(line) + "\n")
    return len(doc_ids)


def import_json_vectors(source: Path, output: Path, shard_size: int = 4096) -> Vectors:
    """Read a folder of Anserini's JSON vectors into a folder of our form.

    Weights may be whole or fractional; a weight of 0 is left out. Raises ``DataError`` like
    ``read_json_vectors``.
    """
    paths = find_json_vectors(source)
    tokens: dict[str, int] = {}
    planned: list[PlannedShard] = []
    only_integers = True
    lines = read_json_vectors(source)
    for number in itertools.count():
        part = list(itertools.islice(lines, shard_size))
        if not part:
            break
        doc_ids = [doc_id for doc_id, _ in part]
        rows = [vector for _, vector in part]
        only_integers = only_integers and all(_has_only_integers(row) for row in rows)
        write_shard(output, number, doc_ids, _make_matrix(rows, tokens))
        planned.append({"documents": len(part)})
    files.write_json(output / VOCABULARY, list(tokens))
    hashes = {path.name: files.sha256_of_file(path) for path in paths}
    plan: EncodingPlan = {
        "encoder": {"kind": "json-vectors", "files": hashes},
        "query": None,
        "shards": planned,
        "empty_documents": 0,
        "integer_weights": only_integers,
    }
    finish_folder(output, plan)
    return Vectors(output)


def _has_only_integers(row: Mapping[str, float]) -> bool:
    return all(float(weight).is_integer() for weight in row.values())


def _make_matrix(rows: Sequence[Mapping[str, float]], tokens: dict[str, int]) -> sparse.csr_matrix:
    """CSR of the rows; new tokens are added to ``tokens``, which so far is the vocabulary."""
    indptr = [0]
    indices: list[int] = []
    values: list[float] = []
    for row in rows:
        pairs = []
        for token, weight in row.items():
            if weight:
                pairs.append((tokens.setdefault(token, len(tokens)), weight))
        for token_id, weight in sorted(pairs):
            indices.append(token_id)
            values.append(weight)
        indptr.append(len(indices))
    arrays = (
        np.array(values, dtype=np.float32),
        np.array(indices, dtype=np.int32),
        np.array(indptr, dtype=np.int64),
    )
    return sparse.csr_matrix(arrays, shape=(len(rows), len(tokens)))
