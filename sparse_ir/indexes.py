"""An index folder: built aside, verified, swapped in; opened only with the encoder and the rule that made it.

    INDEX/manifest.json     what it is: kind, encoder, query side, rule, counts, checksum of every file
    INDEX/lucene/           the Lucene index; Pyserini's searchers open it
    INDEX/query/            the query side (impact indexes that have one)
    INDEX/forward/          the impacts document by document (where it is asked for, or queries are boosted)
    INDEX/tuned.json        search options that were measured to hold a budget; the only file that comes later
    INDEX/doc_ids.txt       the doc_id of each Lucene document number; doc_ids.npy holds where each begins
    INDEX/unindexed.jsonl   documents that Lucene did not get, with the reason
    INDEX/samples.jsonl     exact impacts of some documents, against which the engine's scores are verified

Next file to read: ``searcher``.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import sparse
from tqdm import tqdm

import sparse_ir
from sparse_ir import approximation, data, files, forward, lucene
from sparse_ir.errors import ConfigError, DamagedError, DataError, IndexMismatch
from sparse_ir.impacts import LARGEST_IMPACT, Rule, quantize, rule_from_range
from sparse_ir.ordering import Reordered
from sparse_ir.pruning import Pruning, prune
from sparse_ir.queries import QueryEncoder, StaticQueryEncoder
from sparse_ir.vectors import Vectors, row_as_dict

Order = Literal["corpus", "bisection"]
FORMAT = 1
NUM_SAMPLES = 64
SAMPLED_TERMS = 40  # of each sampled document, evenly spaced; the sum over all impacts is checked besides
DEFAULT_BITS = 8
_EMPTY, _ROUNDED, _PRUNED = "no weights", "all weights rounded to zero", "all impacts pruned"
_MANIFEST = "manifest.json"
TUNED = "tuned.json"  # see ``tuning``

# ------------------------------------------------------------------------------------------------ the rule


def choose_rule(
    vectors: Vectors,
    query_encoder: QueryEncoder | None,
    *,
    scale: float | None = None,
    bits: int | None = None,
    fold: bool | None = None,
) -> Rule:
    """The rule for these vectors. Whole-number vectors keep their numbers unless something else is asked for.

    ``scale``: multiply by this; ``bits``: then also the largest impact is ``2**bits - 1``. Without a scale the weights
    of the collection are spread over ``bits`` bits (8). ``fold`` multiplies static query weights into the impacts, so
    that queries need no boosts; by default wherever the query side is static.
    """
    static = isinstance(query_encoder, StaticQueryEncoder)
    if fold and not static:
        raise ConfigError("only static query weights (IDF, learned weights, ones) can be folded into the impacts; "
                          "this query side is neural or missing")
    folded = static if fold is None else fold
    if bits is not None and not 2 <= bits <= 16:
        raise ConfigError(f"{bits} bits are not allowed; choose 2 to 16")
    if scale is not None:
        return Rule(scale, 2**bits - 1 if bits else LARGEST_IMPACT, folded)
    if bits is None and vectors.manifest["integer_weights"] and not folded:
        return Rule(1.0)
    return rule_from_range(_largest_weight(vectors, query_encoder, folded), bits or DEFAULT_BITS, folded=folded)


def folded_weights(query_encoder: QueryEncoder | None, rule: Rule) -> np.ndarray | None:
    """The query weights ``(V,)`` that a folded rule multiplies in; None under a plain rule."""
    return query_encoder.weights if rule.folded and isinstance(query_encoder, StaticQueryEncoder) else None


def _largest_weight(vectors: Vectors, query_encoder: QueryEncoder | None, folded: bool) -> float:
    factors = query_encoder.weights if folded and isinstance(query_encoder, StaticQueryEncoder) else None
    largest = 0.0
    for number in range(vectors.num_shards):
        weights = vectors.read_shard(number)[1]
        values = weights.data if factors is None else weights.data * factors[weights.indices]
        largest = max(largest, float(values.max(initial=0.0)))
    return largest


# ------------------------------------------------------------------------------------------------ building


def build_impact_index(
    vectors: Vectors, output: Path, rule: Rule, query_encoder: QueryEncoder | None, *, threads: int = 1,
    pruning: Pruning | None = None, forward_index: bool | None = None, order: Order = "corpus", progress: bool = False,
) -> dict[str, Any]:
    """Build, verify and swap in an impact index; the manifest.

    ``order``: of the documents inside, that of the corpus or by ``ordering``; it changes no score and no ranking.

    ``forward_index``: also keep the impacts document by document, for two-phase search; by default wherever queries
    are boosted, that is, the rule is not folded.
    Counts are kept: documents = indexed + empty + rounded to nothing + pruned to nothing. Raises ``IndexMismatch`` when
    the query side has another vocabulary, ``LockedError`` when another process builds the same index; a failed build
    leaves the index that stood there as it was.
    """
    if query_encoder is not None:
        check_vocabulary(vectors.vocabulary, query_encoder, str(vectors.folder))
    pruning = pruning or Pruning()
    with _building(output) as folder:
        if order == "bisection":
            with _bar("ordering", len(vectors), progress) as bar:
                vectors = Reordered(vectors, bar.update)
        keeps_forward = not rule.folded if forward_index is None else forward_index
        writer = forward.ForwardWriter(folder / forward.FOLDER) if keeps_forward else None
        source = _ImpactSource(vectors, rule, folded_weights(query_encoder, rule), pruning, writer)
        with _bar("indexing", len(vectors), progress) as bar:
            batches = [source.batch(number) for number in range(vectors.num_shards)]
            lucene.write_impacts(folder / "lucene", batches, vectors.vocabulary, threads=threads, progress=bar.update)
        if writer is not None:
            writer.finish(vectors.vocabulary)
        if query_encoder is not None:
            query_encoder.save(folder / "query")
        _write_lines(folder / "unindexed.jsonl", source.unindexed())
        _write_lines(folder / "samples.jsonl", source.samples())
        _write_doc_ids(folder, source.doc_ids())
        return _write_manifest(folder, "impact", {
            "encoder": vectors.manifest["encoder"],
            "query": query_encoder.fingerprint if query_encoder else None,
            "vocabulary_sha256": files.sha256_of_json(vectors.vocabulary),
            "rule": rule.to_json(),
            **({"pruning": pruning.to_json()} if pruning else {}),
            **({"order": order} if order != "corpus" else {}),
            "counts": source.counts(),
        })


def build_bm25_index(
    read: Callable[[], Iterable[data.Document]], output: Path, parameters: lucene.Bm25 | None = None,
    *, progress: bool = False,
) -> dict[str, Any]:
    """Build, verify and swap in a BM25 index; the manifest.

    ``title text`` is one field (Anserini's "flat"), or, with a weight for titles in the parameters, text and title are
    two ("multifield"); then, as in Anserini, a document without text is not indexed, whatever its title.
    """
    parameters = parameters or lucene.Bm25()
    with _building(output) as folder:
        doc_ids: list[str] = []
        unindexed: list[dict[str, str]] = []

        def texts() -> Iterator[tuple[str, ...]]:
            for document in read():
                parts = (document.text, document.title) if parameters.title else (document.contents,)
                if parts[0].strip():
                    doc_ids.append(document.doc_id)
                    yield document.doc_id, *parts
                else:
                    unindexed.append({"doc_id": document.doc_id, "reason": "empty text"})

        with _bar("indexing", None, progress) as bar:
            lucene.write_texts(folder / "lucene", texts(), parameters, bar.update)
        if not doc_ids and not unindexed:
            raise DataError("the corpus holds no documents")
        _write_lines(folder / "unindexed.jsonl", unindexed)
        _write_doc_ids(folder, ["\n".join(doc_ids).encode()] if doc_ids else [])
        counts = {"documents": len(doc_ids) + len(unindexed), "indexed": len(doc_ids), "empty": len(unindexed)}
        return _write_manifest(folder, "bm25", {"parameters": parameters._asdict(), "counts": counts})


class _ImpactSource:
    """Quantizes and prunes shard by shard while the writer threads ask for them, and keeps the books."""

    def __init__(self, vectors: Vectors, rule: Rule, query_weights: np.ndarray | None, pruning: Pruning,
                 writer: forward.ForwardWriter | None) -> None:
        self._vectors, self._rule, self._query_weights = vectors, rule, query_weights
        self._pruning, self._writer = pruning, writer
        self._step = max(1, len(vectors) // NUM_SAMPLES)
        self._books: dict[int, _ShardBook] = {}

    def batch(self, number: int) -> Callable[[], lucene.Batch]:
        return lambda: self._quantized(number)

    def _quantized(self, number: int) -> lucene.Batch:
        doc_ids, weights = self._vectors.read_shard(number)
        rounded, zeroed, clipped = quantize(weights, self._rule, self._query_weights)
        impacts, num_pruned, sum_pruned = prune(rounded, self._pruning)
        filled = np.diff(impacts.indptr) > 0
        survived = (np.diff(weights.indptr) > 0).astype(int) + (np.diff(rounded.indptr) > 0)  # steps before it was lost
        lost = [(doc_ids[i], (_EMPTY, _ROUNDED, _PRUNED)[survived[i]]) for i in np.flatnonzero(~filled)]
        kept_ids = [doc_ids[i] for i in np.flatnonzero(filled)]
        kept = impacts[filled]
        if self._writer is not None:
            self._writer.add(number, kept)
        samples = [{"id": kept_ids[i], "vector": row_as_dict(kept, i, self._vectors.vocabulary)}
                   for i in range(0, len(kept_ids), self._step)]
        self._books[number] = _ShardBook("\n".join(kept_ids).encode(), len(kept_ids), lost, samples, zeroed, clipped,
                                         int(kept.nnz), int(kept.sum(dtype=np.int64)), num_pruned, sum_pruned)
        return kept_ids, kept

    def _in_order(self) -> list[_ShardBook]:
        return [self._books[number] for number in sorted(self._books)]

    def doc_ids(self) -> list[bytes]:
        return [book.doc_ids for book in self._in_order() if book.indexed]

    def samples(self) -> list[dict[str, Any]]:
        return [sample for book in self._in_order() for sample in book.samples]

    def unindexed(self) -> list[dict[str, str]]:
        return [{"doc_id": doc_id, "reason": reason} for book in self._in_order() for doc_id, reason in book.lost]

    def counts(self) -> dict[str, int]:
        books = self._in_order()
        reasons = [reason for book in books for _, reason in book.lost]
        pruned = {
            "pruned_to_nothing": reasons.count(_PRUNED),
            "postings_pruned": sum(book.postings_pruned for book in books),
            "sum_impacts_pruned": sum(book.sum_impacts_pruned for book in books),
        } if self._pruning else {}
        return {
            "documents": len(self._vectors),
            "indexed": sum(book.indexed for book in books),
            "empty": reasons.count(_EMPTY),
            "rounded_to_nothing": reasons.count(_ROUNDED),
            **pruned,
            "postings": sum(book.postings for book in books),
            "sum_impacts": sum(book.sum_impacts for book in books),
            "weights_rounded_to_zero": sum(book.zeroed for book in books),
            "weights_clipped": sum(book.clipped for book in books),
        }


class _ShardBook(NamedTuple):
    doc_ids: bytes
    indexed: int
    lost: list[tuple[str, str]]
    samples: list[dict[str, Any]]
    zeroed: int
    clipped: int
    postings: int
    sum_impacts: int
    postings_pruned: int
    sum_impacts_pruned: int


@contextlib.contextmanager
def _building(output: Path) -> Iterator[Path]:
    """A folder beside ``output`` to build in; at the end of the block it is verified and takes the place."""
    output = output.resolve()  # a link stays a link: what it points to is replaced
    if output.exists() and not (output / _MANIFEST).exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} exists and is no index of this package; choose another output or delete it")
    with files.write_lock(output):
        files.remove_leftovers(output)
        folder = files.temporary_sibling(output)
        folder.mkdir(parents=True)
        try:
            yield folder
            verify_index(folder)
            files.swap_folder(folder, output)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _bar(description: str, total: int | None, shown: bool) -> Any:
    return tqdm(desc=description, total=total, unit=" documents", disable=None if shown else True, dynamic_ncols=True)


def _write_lines(path: Path, records: Iterable[Any]) -> None:
    with files.atomic_writer(path) as stream:
        for record in records:
            stream.write(json.dumps(record) + "\n")


def _write_doc_ids(folder: Path, blobs: Sequence[bytes]) -> None:
    with files.atomic_writer(folder / "doc_ids.txt", "wb") as stream:
        for blob in blobs:
            stream.write(blob + b"\n")
    lines = np.fromfile(folder / "doc_ids.txt", dtype=np.uint8)
    bounds = np.concatenate([[0], np.flatnonzero(lines == ord("\n")) + 1]).astype(np.int64)
    with files.atomic_writer(folder / "doc_ids.npy", "wb") as stream:
        np.save(stream, bounds)


def _write_manifest(folder: Path, kind: str, facts: dict[str, Any]) -> dict[str, Any]:
    stored = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "write.lock")
    manifest = {
        "format": FORMAT,
        "kind": kind,
        **facts,
        "versions": {"sparse_ir": sparse_ir.__version__, "lucene": lucene.lucene_version()},
        "files": {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": files.sha256_of_file(path)}
            for path in stored
        },
    }
    manifest["sha256"] = files.sha256_of_json(manifest)
    files.write_json(folder / _MANIFEST, manifest)
    return manifest


# ------------------------------------------------------------------------------------------------ verifying


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an index; raises ``DamagedError`` when ``folder`` holds none or one of another format."""
    if not folder.is_dir():
        raise DamagedError(f"{folder} is no index of this package: there is no such folder")
    if not (folder / _MANIFEST).is_file():
        raise DamagedError(f"{folder} is no index of this package: it has no {_MANIFEST}")
    manifest, text = files.read_json_and_text(folder / _MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or "files" not in manifest:
        raise DamagedError(f"{folder / _MANIFEST} is not an index manifest of format {FORMAT}; build the index again")
    facts = {name: value for name, value in manifest.items() if name != "sha256"}
    if text != files.format_json(manifest) or files.sha256_of_json(facts) != manifest.get("sha256"):
        raise DamagedError(f"{folder / _MANIFEST} is damaged: its checksum differs; build the index again")
    return manifest


def version_of(folder: Path) -> tuple[int, int] | None:
    """What tells this build of the index from each other one, an equal one included; ``None`` without a manifest."""
    try:
        found = (folder / _MANIFEST).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def verify_index(folder: Path) -> dict[str, Any]:
    """Check everything that can be checked; a report. Raises ``DamagedError`` at the first thing that is wrong.

    Checksums of all files; Lucene's CheckIndex; documents, postings and the sum of all impacts as Lucene counts them
    against the manifest; the engine's score of sampled documents against their exact vectors.
    """
    started = time.perf_counter()
    manifest = read_manifest(folder)
    check_files(folder, manifest, checksums=True)
    lucene.check_index(folder / "lucene")
    counts = manifest["counts"]
    with lucene.Reader(folder / "lucene", manifest["kind"]) as reader:
        found = reader.statistics()
        expected = {"documents": counts["indexed"]}
        if manifest["kind"] == "impact":
            expected |= {"postings": counts["postings"], "sum_impacts": counts["sum_impacts"]}
        for name, value in expected.items():
            if found[name] != value:
                raise DamagedError(f"{folder}: Lucene counts {found[name]} {name}, the manifest promises {value}")
        num_samples = _check_samples(folder, reader) if manifest["kind"] == "impact" else 0
        _check_doc_ids(folder, reader)
        if has_forward_index(manifest):
            _check_forward(folder, reader, expected)
    if (folder / TUNED).exists():
        approximation.read_tuned(folder / TUNED, manifest["sha256"])
    return {"index": str(folder), "ok": True, "kind": manifest["kind"], **counts, "terms": found["terms"],
            "files": len(manifest["files"]), "bytes": sum(file["bytes"] for file in manifest["files"].values()),
            "sampled_documents": num_samples, "seconds": round(time.perf_counter() - started, 2)}


def check_files(folder: Path, manifest: dict[str, Any], *, checksums: bool) -> None:
    for name, facts in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise DamagedError(f"{path} is missing; build the index again")
        if path.stat().st_size != facts["bytes"]:
            raise DamagedError(f"{path} has {path.stat().st_size} bytes instead of {facts['bytes']}; "
                               "build the index again")
        if checksums and files.sha256_of_file(path) != facts["sha256"]:
            raise DamagedError(f"{path} is damaged: its checksum differs from the manifest; build the index again")
    unknown = {path.name for path in (folder / "lucene").iterdir()} - {Path(name).name for name in manifest["files"]}
    if unknown - {"write.lock"}:
        raise DamagedError(f"{folder / 'lucene'} holds files that the manifest does not know: {sorted(unknown)[:3]}")


def _check_samples(folder: Path, reader: lucene.Reader) -> int:
    """Score sampled documents with terms of their own, boosted 1, 2, 3, 1, 2 ...: the exact sum must come back."""
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    for line in lines:
        sample = json.loads(line)
        chosen = list(sample["vector"].items())[:: 1 + len(sample["vector"]) // SAMPLED_TERMS]
        terms = [lucene.term_of_token(token) for token, _ in chosen]
        boosts = [1 + position % 3 for position in range(len(terms))]
        expected = sum(boost * impact for boost, (_, impact) in zip(boosts, chosen, strict=True))
        score = reader.score(sample["id"], terms, boosts)
        if score != np.float32(expected):
            raise DamagedError(f"{folder}: document {sample['id']} scores {score}, its exact vector gives {expected}")
    return len(lines)


def _check_forward(folder: Path, reader: lucene.Reader, expected: dict[str, int]) -> None:
    """The same counts as in Lucene, and the same scores of evenly spaced documents."""
    opened, doc_ids = forward.ForwardIndex(folder / forward.FOLDER), DocIds(folder)
    if opened.statistics() != expected:
        raise DamagedError(f"{folder / forward.FOLDER} holds {opened.statistics()}, the manifest promises {expected}")
    for number in _spaced(len(doc_ids)):
        token_ids, impacts = opened.vector(number)
        chosen = slice(None, None, 1 + len(token_ids) // SAMPLED_TERMS)
        terms = [lucene.term_of_token(opened.vocabulary[token_id]) for token_id in token_ids[chosen]]
        if (score := reader.score(doc_ids[number], terms, [1] * len(terms))) != np.float32(impacts[chosen].sum()):
            raise DamagedError(f"{folder / forward.FOLDER}: document {doc_ids[number]} has {impacts[chosen].sum()}, "
                               f"Lucene gives {score}")


def _spaced(count: int) -> list[int]:
    """At most ``NUM_SAMPLES`` numbers below ``count``, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, NUM_SAMPLES)).astype(int)).tolist()


def _check_doc_ids(folder: Path, reader: lucene.Reader) -> None:
    doc_ids = DocIds(folder)
    if len(doc_ids) != reader.num_documents:
        raise DamagedError(f"{folder / 'doc_ids.txt'} has {len(doc_ids)} lines for {reader.num_documents} documents")
    numbers = _spaced(len(doc_ids))
    for number, found, stored in zip(numbers, doc_ids.find(numbers), reader.stored_ids(numbers), strict=True):
        if found != stored:
            raise DamagedError(f"{folder / 'doc_ids.txt'}: line {number + 1} is {found}, Lucene has {stored}")


# ------------------------------------------------------------------------------------------------ what a folder holds


class DocIds(Sequence[str]):
    """The doc_id of each document number, read from a memory map."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "doc_ids.txt"
        self._bounds = memoryview(np.load(folder / "doc_ids.npy", mmap_mode="r"))
        with self._path.open("rb") as stream:
            filled = self._bounds[-1] > 0  # an empty file cannot be mapped
            self._text = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if filled else b""

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, number: Any) -> Any:
        return self.find([number])[0]

    def find(self, numbers: Sequence[int]) -> list[str]:
        """The doc_ids of several documents; raises ``DamagedError`` where the file was changed to no text."""
        text, bounds = self._text, self._bounds
        try:
            return [text[bounds[number] : bounds[number + 1] - 1].decode() for number in numbers]
        except UnicodeDecodeError as error:
            raise DamagedError(f"{self._path} is damaged ({error}); build the index again") from error


def is_lucene_folder(folder: Path) -> bool:
    """True for a bare Lucene index without a manifest, such as ``pyserini.index.lucene`` writes."""
    return not (folder / _MANIFEST).exists() and any(folder.glob("segments_*"))


def has_forward_index(manifest: dict[str, Any]) -> bool:
    """True for an index that keeps its impacts document by document."""
    return any(name.startswith(forward.FOLDER + "/") for name in manifest["files"])


def needs_query_encoder(folder: Path) -> bool:
    """True for an impact index that was built from vectors without a query side."""
    manifest = read_manifest(folder)
    return manifest["kind"] == "impact" and manifest["query"] is None


def check_vocabulary(vocabulary: Sequence[str], query_encoder: QueryEncoder, place: str) -> None:
    """Raise ``IndexMismatch`` unless the query side numbers the same tokens in the same way."""
    if list(query_encoder.vocabulary) != list(vocabulary):
        raise IndexMismatch(f"{place}: the query side has another vocabulary ({len(query_encoder.vocabulary)} tokens) "
                            f"than the documents ({len(vocabulary)} tokens)")


def impact_matrix(vectors: Vectors, rule: Rule, query_weights: np.ndarray | None) -> tuple[list[str], Any]:
    """All doc_ids and impacts CSR int32 ``(N, V)`` in memory: what ``exact`` searches."""
    shards = [vectors.read_shard(number) for number in range(vectors.num_shards)]
    impacts = [quantize(weights, rule, query_weights).impacts for _, weights in shards]
    return [doc_id for doc_ids, _ in shards for doc_id in doc_ids], sparse.vstack(impacts, format="csr")
