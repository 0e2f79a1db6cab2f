"""A folder of encoded documents that survives anything: shards, checksums, resume, and Anserini's
JSON form.

``plan.json`` is written first and says what is being encoded; ``shards/`` fills up, each file whole
or absent; ``manifest.json`` is written last and says that all is there. Any number of processes, on
one machine or on several that share the folder, may run the same call at once: each takes shards
that nobody else is working on. The result is byte for byte the same, whoever made which shard and
however often someone was killed. It knows no impacts' rule and no Lucene.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from tqdm import tqdm

from sparse_ir.data.records import Document
from sparse_ir.errors import ConfigError, DamagedError, DataError, LockedError
from sparse_ir.indexing.quantization import check_weights
from sparse_ir.models.interfaces import DocumentEncoder, QueryEncoder
from sparse_ir.models.query_side import load_query_encoder
from sparse_ir.storage import files, sealed

FORMAT = 1
PLAN, MANIFEST, VOCABULARY, _QUERY = "plan.json", "manifest.json", "vocabulary.json", "query"


class Shard(NamedTuple):
    """A run of neighbouring documents of the corpus."""

    number: int
    documents: list[Document]

    def digest(self) -> str:
        """SHA-256 over ids and texts: a corpus that changed between two runs is noticed."""
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(json.dumps([document.doc_id, document.contents]).encode())
        return digest.hexdigest()


def write_vectors(
    output: Path,
    read: Callable[[], Iterable[Document]],
    encoder: DocumentEncoder,
    *,
    query_encoder: QueryEncoder | None = None,
    shard_size: int = 1024,
    progress: bool = False,
) -> Vectors:
    """Encode a corpus into ``output``; called again after a kill, it does only what is missing or
    damaged.

    ``read()`` opens the corpus from its start. ``query_encoder`` replaces the encoder's own query
    side. An empty document gets an empty vector without asking the model. Raises ``ConfigError``
    when ``output`` was begun with another encoder or shard size, and ``DataError`` when the corpus
    is not the one that the plan describes.
    """
    plan = _make_plan(
        output, read, encoder, query_encoder or encoder.query_encoder(), shard_size, progress
    )
    _fill_shards(output, plan, read, encoder, progress)
    finish_folder(output, plan)
    return Vectors(output)


def _make_plan(
    output: Path,
    read: Callable[[], Iterable[Document]],
    encoder: DocumentEncoder,
    query_encoder: QueryEncoder,
    shard_size: int,
    progress: bool,
) -> dict[str, Any]:
    """The plan in ``output``, or a new one: a first pass checks and counts every document before
    any is encoded.
    """
    if shard_size < 1:
        raise ConfigError(f"shard size {shard_size} is not allowed; it must be at least 1")
    if output.exists() and not (output / PLAN).exists() and any(visible_files(output)):
        raise ConfigError(
            f"{output} is not empty and holds no vectors; choose another output or delete it"
        )
    identity = {
        "encoder": encoder.fingerprint,
        "query": query_encoder.fingerprint,
        "shard_size": shard_size,
    }
    with files.write_lock(output / PLAN, timeout=-1):
        if not (output / PLAN).exists():
            files.remove_leftovers(output / PLAN)
            shards, empty = _survey(read, shard_size, progress)
            files.write_json(
                output / PLAN, _sealed({**identity, "shards": shards, "empty_documents": empty})
            )
        plan = _read_sealed(output / PLAN)
        for key, value in identity.items():
            if files.sha256_of_json(plan[key]) != files.sha256_of_json(value):
                raise ConfigError(
                    f"{output} was begun with another {key} "
                    f"({_difference(plan[key], value)}); "
                    "choose another output, or delete it to start again"
                )
        _store_sides(output, list(encoder.vocabulary), query_encoder)
    return plan


def _store_sides(output: Path, vocabulary: list[str], query_encoder: QueryEncoder) -> None:
    """Vocabulary and query side, unless they are there: they come after the plan, so a kill may
    have left none.
    """
    if not _holds(output / VOCABULARY, vocabulary):
        files.remove_leftovers(output / VOCABULARY)
        files.write_json(output / VOCABULARY, vocabulary)
    if not (output / _QUERY / "query.json").exists():  # the last file that ``save`` writes
        shutil.rmtree(output / _QUERY, ignore_errors=True)
        query_encoder.save(output / _QUERY)


def _holds(path: Path, value: Any) -> bool:
    try:
        return bool(files.read_json(path) == value)
    except DamagedError:
        return False


def _sealed(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts with the format and their own checksum, as a plan and a manifest keep them."""
    return sealed.seal({"format": FORMAT, **facts})


def _read_sealed(path: Path) -> dict[str, Any]:
    record = files.read_json(path)
    if not isinstance(record, dict) or "shards" not in record or record.get("format") != FORMAT:
        raise DamagedError(
            f"{path} does not belong to vectors of format {FORMAT}; choose another folder"
        )
    if not sealed.is_intact(record):
        raise DamagedError(
            f"{path} is damaged: its checksum differs; delete the folder and encode again"
        )
    return record


def visible_files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if not path.name.startswith("."))


def _survey(
    read: Callable[[], Iterable[Document]], shard_size: int, progress: bool
) -> tuple[list[Any], int]:
    shards, empty = [], 0
    with tqdm(
        desc="checking", unit=" documents", disable=None if progress else True, dynamic_ncols=True
    ) as bar:
        for shard in _split(read(), shard_size):
            shards.append({"documents": len(shard.documents), "input_sha256": shard.digest()})
            empty += sum(not document.contents for document in shard.documents)
            bar.update(len(shard.documents))
    if not shards:
        raise DataError("the corpus holds no documents")
    return shards, empty


def _split(documents: Iterable[Document], shard_size: int) -> Iterator[Shard]:
    iterator = iter(documents)
    for number in itertools.count():
        part = list(itertools.islice(iterator, shard_size))
        if not part:
            return
        yield Shard(number, part)


def _fill_shards(
    output: Path,
    plan: dict[str, Any],
    read: Callable[[], Iterable[Document]],
    encoder: DocumentEncoder,
    progress: bool,
) -> None:
    """Pass over the corpus until every shard is there: a second pass is for shards whose worker was
    killed.

    Where all is there already, one pass still tells whether the corpus is the one that was encoded.
    """
    counts = [shard["documents"] for shard in plan["shards"]]
    done = {number for number in range(len(counts)) if _is_whole(output, number)}
    with tqdm(
        total=sum(counts),
        initial=sum(counts[number] for number in done),
        desc="encoding",
        unit=" documents",
        disable=None if progress else True,
        dynamic_ncols=True,
    ) as bar:
        while True:
            before = len(done)
            _pass_over(output, plan, read(), encoder, done, bar)
            if len(done) == len(counts):
                return
            if len(done) == before:
                time.sleep(0.5)  # all that is missing is in the hands of other processes


def _pass_over(
    output: Path,
    plan: dict[str, Any],
    documents: Iterable[Document],
    encoder: DocumentEncoder,
    done: set[int],
    bar: Any,
) -> None:
    """Check the corpus against the plan, and encode the shards that are missing and that nobody
    else holds.
    """
    seen = 0
    for shard in _split(documents, plan["shard_size"]):
        _check_input(plan, shard)
        seen += 1
        if shard.number not in done and _take(output, shard, encoder, bar):
            done.add(shard.number)
    if seen < len(plan["shards"]):
        raise DataError(
            f"the corpus has changed since encoding began (it ends after {seen} of "
            f"{len(plan['shards'])} "
            "shards); restore it, or choose another output"
        )


def _check_input(plan: dict[str, Any], shard: Shard) -> None:
    known = plan["shards"]
    if shard.number >= len(known) or shard.digest() != known[shard.number]["input_sha256"]:
        first = shard.documents[0].doc_id
        raise DataError(
            "the corpus has changed since encoding began (in the shard that starts "
            f"with document {first})"
            "; restore it, or choose another output"
        )


def _take(output: Path, shard: Shard, encoder: DocumentEncoder, bar: Any) -> bool:
    """Encode one shard, unless another process holds it; True when it is there."""
    try:
        with files.write_lock(_shard_path(output, shard.number)):
            if _is_whole(output, shard.number):
                bar.update(len(shard.documents))
            else:
                _remove_shard_leftovers(output, shard.number)
                write_shard(
                    output,
                    shard.number,
                    [document.doc_id for document in shard.documents],
                    _encode(
                        encoder, [document.contents for document in shard.documents], bar.update
                    ),
                )
            return True
    except LockedError:
        return False


def _encode(
    encoder: DocumentEncoder, texts: list[str], update: Callable[[int], Any]
) -> sparse.csr_matrix:
    """Vectors of the texts, empty rows for empty texts."""
    full = [position for position, text in enumerate(texts) if text]
    weights = encoder.encode([texts[position] for position in full], update)
    update(len(texts) - len(full))
    lengths = np.zeros(len(texts), dtype=np.int64)
    lengths[full] = np.diff(weights.indptr)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return sparse.csr_matrix(
        (weights.data, weights.indices, indptr), shape=(len(texts), len(encoder.vocabulary))
    )


def _shard_path(output: Path, number: int) -> Path:
    return output / "shards" / f"{number:06d}.safetensors"


def _remove_shard_leftovers(output: Path, number: int) -> None:
    path = _shard_path(output, number)
    for written in (path, path.with_suffix(".json")):
        files.remove_leftovers(written)


def write_shard(
    output: Path, number: int, doc_ids: Sequence[str], weights: sparse.csr_matrix
) -> None:
    """The data first, the facts about them last: without the facts the shard counts as missing."""
    from safetensors.numpy import save

    check_weights(weights.data)
    path = _shard_path(output, number)
    content = save(
        {
            "doc_ids": np.frombuffer("\n".join(doc_ids).encode(), dtype=np.uint8),
            "indptr": weights.indptr.astype(np.int64),
            "token_ids": weights.indices.astype(np.int32),
            "weights": weights.data.astype(np.float32),
        }
    )
    with files.atomic_writer(path, "wb") as stream:
        stream.write(content)
    files.write_json(
        path.with_suffix(".json"),
        {
            "documents": len(doc_ids),
            "weights": int(weights.nnz),
            "without_weights": int((np.diff(weights.indptr) == 0).sum()),
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        },
    )


def _is_whole(output: Path, number: int) -> bool:
    path = _shard_path(output, number)
    try:
        facts = files.read_json(path.with_suffix(".json"))
        return bool(
            path.stat().st_size == facts["bytes"] and files.sha256_of_file(path) == facts["sha256"]
        )
    # damaged facts count as missing ones
    except (DamagedError, FileNotFoundError, KeyError, TypeError):
        return False


def finish_folder(output: Path, plan: dict[str, Any]) -> None:
    facts = [
        files.read_json(_shard_path(output, number).with_suffix(".json"))
        for number in range(len(plan["shards"]))
    ]
    manifest = _sealed(
        {
            "kind": "vectors",
            "encoder": plan["encoder"],
            "query": plan["query"],
            "documents": sum(fact["documents"] for fact in facts),
            "empty_documents": plan["empty_documents"],
            "without_weights": sum(fact["without_weights"] for fact in facts),
            "weights": sum(fact["weights"] for fact in facts),
            "integer_weights": plan.get("integer_weights", False),
            "vocabulary_sha256": files.sha256_of_file(output / VOCABULARY),
            "shards": facts,
        }
    )
    with files.write_lock(output / PLAN, timeout=-1):
        if not _holds(output / MANIFEST, manifest):
            files.remove_leftovers(output / MANIFEST)
            files.write_json(output / MANIFEST, manifest)
    for lock in (output / "shards").glob(".*.lock"):
        lock.unlink(missing_ok=True)


def _difference(old: Any, new: Any) -> str:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return f"{old} then, {new} now"
    keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return "; ".join(f"{key}: {old.get(key)} then, {new.get(key)} now" for key in keys[:3])


class Vectors:
    """A finished folder of vectors. Raises ``DamagedError`` when it is unfinished or not whole."""

    def __init__(self, folder: Path) -> None:
        if not (folder / MANIFEST).exists():
            begun = (folder / PLAN).exists()
            raise DamagedError(
                f"{folder} holds no {'finished ' if begun else ''}vectors"
                + ("; run the same encode command again to finish them" if begun else "")
            )
        self.folder = folder
        self.manifest: dict[str, Any] = _read_sealed(folder / MANIFEST)
        path = folder / VOCABULARY
        if not path.exists() or files.sha256_of_file(path) != self.manifest["vocabulary_sha256"]:
            raise DamagedError(f"{path} is missing or damaged; run the same encode command again")
        self.vocabulary: list[str] = files.read_json(path)

    def __len__(self) -> int:
        return int(self.manifest["documents"])

    @property
    def num_shards(self) -> int:
        """Number of shards; their order is the order of the corpus."""
        return len(self.manifest["shards"])

    def read_shard(self, number: int) -> tuple[list[str], sparse.csr_matrix]:
        """``doc_ids`` and weights CSR float32 ``(N, V)`` of one shard, its checksum verified."""
        from safetensors.numpy import load

        path = _shard_path(self.folder, number)
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise DamagedError(f"{path} is missing; run the same encode command again") from error
        if hashlib.sha256(content).hexdigest() != self.manifest["shards"][number]["sha256"]:
            raise DamagedError(
                f"{path} is damaged (its checksum differs from the manifest); run "
                "the same encode "
                "command again: only damaged shards are done again"
            )
        arrays = load(content)
        doc_ids = arrays["doc_ids"].tobytes().decode().split("\n")
        shape = (len(doc_ids), len(self.vocabulary))
        return doc_ids, sparse.csr_matrix(
            (arrays["weights"], arrays["token_ids"], arrays["indptr"]), shape=shape
        )

    def query_encoder(self) -> QueryEncoder | None:
        """The query side that was stored with the vectors; None for vectors
        that came without one.
        """
        return (
            load_query_encoder(self.folder / _QUERY) if self.manifest["query"] is not None else None
        )


def row_as_dict(impacts: sparse.csr_matrix, row: int, vocabulary: Sequence[str]) -> dict[str, int]:
    """One row of an impact matrix as ``{token: impact}``."""
    part = slice(impacts.indptr[row], impacts.indptr[row + 1])
    return {
        vocabulary[i]: int(v)
        for i, v in zip(impacts.indices[part], impacts.data[part], strict=True)
    }
