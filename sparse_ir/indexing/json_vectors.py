"""Vectors in Anserini's JSON form: reading, importing, exporting."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from sparse_ir.data.lines import parse_jsonl
from sparse_ir.data.records import FLOAT32_MAX, check_id, show
from sparse_ir.data.seen_ids import open_seen_ids, remember_id
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.indexing.quantization import Rule, quantize
from sparse_ir.indexing.vectors import (
    MANIFEST,
    PLAN,
    VOCABULARY,
    Vectors,
    finish_folder,
    row_as_dict,
    visible_files,
    write_shard,
)
from sparse_ir.storage import files

_VECTOR_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")  # those that Anserini reads


def find_json_vectors(folder: Path) -> list[Path]:
    """The files of an Anserini ``JsonVectorCollection``, sorted; raises ``DataError`` when there
    are none.
    """
    paths = sorted(path for path in folder.glob("*") if path.name.endswith(_VECTOR_SUFFIXES))
    if not paths:
        raise DataError(
            f"{folder} holds no vectors: neither "
            f"{', '.join('*' + end for end in _VECTOR_SUFFIXES)} nor "
            "a folder that the encode command wrote"
        )
    return paths


def read_json_vectors(folder: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """doc_id and ``{token: weight}`` of each line ``{"id", "vector"}``, file by file in the order
    of their names.

    Raises ``DataError`` for a broken line, a missing or repeated id, a token that stands twice in a
    vector, and a weight that is no finite number >= 0.
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
        raise DataError(f'{place}: "vector" is {show(vector)}, allowed: an object of token: weight')
    for token, weight in vector.items():
        if (
            isinstance(weight, bool)
            or not isinstance(weight, int | float)
            or not 0 <= weight <= FLOAT32_MAX
        ):
            raise DataError(
                f"{place}: weight of {show(token)} is {show(weight)}, allowed: a finite number >= 0"
            )
    return vector


def open_vectors(source: Path, scratch: Path) -> Vectors:
    """The vectors in ``source``: a folder of ours, or a JsonVectorCollection, which is first copied
    to ``scratch``.
    """
    if (source / PLAN).exists() or (source / MANIFEST).exists():
        return Vectors(source)
    return import_json_vectors(source, scratch)


def export_json_vectors(
    vectors: Vectors, output: Path, rule: Rule, query_weights: np.ndarray | None = None
) -> int:
    """Write Anserini's ``JsonVectorCollection`` (``{"id", "contents", "vector"}``); the number of
    lines.

    Anserini cuts fractions off and drops what is left below 1, so impacts are written, not weights.
    ``contents`` is empty: Anserini ignores it. A document without impacts is written with an empty
    vector, which Anserini counts as empty. The folder appears whole or not at all, in the place of
    an older export.
    """
    if output.exists() and any(not path.match("vectors-*.jsonl") for path in visible_files(output)):
        raise ConfigError(
            f"{output} holds other files than vectors; choose another output or delete it"
        )
    with files.write_lock(output):
        files.remove_leftovers(output)
        folder = files.temporary_sibling(output)
        try:
            total = sum(
                _export_shard(vectors, number, folder, rule, query_weights)
                for number in range(vectors.num_shards)
            )
            files.swap_folder(folder, output)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return total


def _export_shard(
    vectors: Vectors, number: int, folder: Path, rule: Rule, query_weights: np.ndarray | None
) -> int:
    doc_ids, weights = vectors.read_shard(number)
    impacts = quantize(weights, rule, query_weights).impacts
    with files.atomic_writer(folder / f"vectors-{number:06d}.jsonl") as stream:
        for row, doc_id in enumerate(doc_ids):
            line = {
                "id": doc_id,
                "contents": "",
                "vector": row_as_dict(impacts, row, vectors.vocabulary),
            }
            stream.write(json.dumps(line) + "\n")
    return len(doc_ids)


def import_json_vectors(source: Path, output: Path, shard_size: int = 4096) -> Vectors:
    """Read a folder of Anserini's JSON vectors (whole or fractional weights) into the form of this
    module.

    A weight of 0 says nothing and is not kept. Raises ``DataError`` like
    ``data.read_json_vectors``.
    """
    paths = find_json_vectors(source)
    tokens: dict[str, int] = {}
    shards: list[dict[str, Any]] = []
    whole = True
    lines = read_json_vectors(source)
    for number in itertools.count():
        part = list(itertools.islice(lines, shard_size))
        if not part:
            break
        whole = whole and all(
            float(weight).is_integer() for _, vector in part for weight in vector.values()
        )
        write_shard(
            output, number, [doc_id for doc_id, _ in part], _matrix([v for _, v in part], tokens)
        )
        shards.append({"documents": len(part)})
    files.write_json(output / VOCABULARY, list(tokens))
    fingerprint = {
        "kind": "json-vectors",
        "files": {path.name: files.sha256_of_file(path) for path in paths},
    }
    finish_folder(
        output,
        {
            "encoder": fingerprint,
            "query": None,
            "shards": shards,
            "empty_documents": 0,
            "integer_weights": whole,
        },
    )
    return Vectors(output)


def _matrix(rows: list[dict[str, float]], tokens: dict[str, int]) -> sparse.csr_matrix:
    """CSR of the rows; ``tokens`` learns new tokens on the way, so the width is that of the
    vocabulary so far.
    """
    indptr = [0]
    indices: list[int] = []
    values: list[float] = []
    for row in rows:
        pairs = sorted(
            (tokens.setdefault(token, len(tokens)), weight)
            for token, weight in row.items()
            if weight
        )
        indices.extend(token_id for token_id, _ in pairs)
        values.extend(weight for _, weight in pairs)
        indptr.append(len(indices))
    arrays = (
        np.array(values, dtype=np.float32),
        np.array(indices, dtype=np.int32),
        np.array(indptr, dtype=np.int64),
    )
    return sparse.csr_matrix(arrays, shape=(len(rows), len(tokens)))
