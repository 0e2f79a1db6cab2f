"""An index folder: built aside, verified, swapped in; opened only with the encoder and the rule
that made it.

    INDEX/manifest.json     kind, encoder, query side, rule, counts, checksum of every file
    INDEX/lucene/           the Lucene index; Pyserini's searchers open it
    INDEX/query/            the query side (impact indexes that have one)
    INDEX/forward/          the impacts document by document (on request, or if queries are boosted)
    INDEX/tuned.json        search options found by ``tune``; the only file that comes later
    INDEX/doc_ids.txt       the doc_id of each Lucene document number; doc_ids.npy: its offset
    INDEX/unindexed.jsonl   documents that Lucene did not get, with the reason
    INDEX/samples.jsonl     exact impacts of some documents, to verify the engine's scores
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import sparse
from tqdm import tqdm

from sparse_ir.data.records import Document
from sparse_ir.engines.base import LARGEST_IMPACT, Batch, Bm25
from sparse_ir.engines.lucene.writer import write_impacts, write_texts
from sparse_ir.errors import ConfigError, DataError, IndexMismatch
from sparse_ir.indexing import quantization
from sparse_ir.indexing.forward import FOLDER, ForwardWriter
from sparse_ir.indexing.manifest import MANIFEST, write_doc_ids, write_lines, write_manifest
from sparse_ir.indexing.ordering import Reordered
from sparse_ir.indexing.pruning import Pruning, prune
from sparse_ir.indexing.quantization import Rule, quantize, rule_from_range
from sparse_ir.indexing.vectors import Vectors, row_as_dict
from sparse_ir.indexing.verification import NUM_SAMPLES, verify_index
from sparse_ir.models.interfaces import QueryEncoder
from sparse_ir.models.static_queries import StaticQueryEncoder
from sparse_ir.storage import files

Order = Literal["corpus", "bisection"]
DEFAULT_BITS = 8
_EMPTY, _ROUNDED, _PRUNED = "no weights", "all weights rounded to zero", "all impacts pruned"


def choose_rule(
    vectors: Vectors,
    query_encoder: QueryEncoder | None,
    *,
    scale: float | None = None,
    bits: int | None = None,
    fold: bool | None = None,
) -> Rule:
    """The rule for these vectors. Whole-number vectors keep their numbers unless something else is
    asked for.

    ``scale``: multiply by this; ``bits``: then also the largest impact is ``2**bits - 1``. Without
    a scale the weights of the collection are spread over ``bits`` bits (8). ``fold`` multiplies
    static query weights into the impacts, so that queries need no boosts; by default wherever the
    query side is static.
    """
    static = isinstance(query_encoder, StaticQueryEncoder)
    if fold and not static:
        raise ConfigError(
            "only static query weights (IDF, learned weights, ones) can be folded "
            "into the impacts; "
            "this query side is neural or missing"
        )
    folded = static if fold is None else fold
    if bits is not None and not 2 <= bits <= 16:
        raise ConfigError(f"{bits} bits are not allowed; choose 2 to 16")
    if scale is not None:
        return Rule(scale, 2**bits - 1 if bits else LARGEST_IMPACT, folded)
    if bits is None and vectors.manifest["integer_weights"] and not folded:
        return Rule(1.0)
    return rule_from_range(
        _largest_weight(vectors, query_encoder, folded), bits or DEFAULT_BITS, folded=folded
    )


def folded_weights(query_encoder: QueryEncoder | None, rule: Rule) -> np.ndarray | None:
    """The query weights ``(V,)`` that a folded rule multiplies in; None under a plain rule."""
    return (
        query_encoder.weights
        if rule.folded and isinstance(query_encoder, StaticQueryEncoder)
        else None
    )


def _largest_weight(vectors: Vectors, query_encoder: QueryEncoder | None, folded: bool) -> float:
    factors = (
        query_encoder.weights if folded and isinstance(query_encoder, StaticQueryEncoder) else None
    )
    largest = 0.0
    for number in range(vectors.num_shards):
        weights = vectors.read_shard(number)[1]
        values = weights.data if factors is None else weights.data * factors[weights.indices]
        largest = max(largest, float(values.max(initial=0.0)))
    return largest


def build_impact_index(
    vectors: Vectors,
    output: Path,
    rule: Rule,
    query_encoder: QueryEncoder | None,
    *,
    threads: int = 1,
    pruning: Pruning | None = None,
    forward_index: bool | None = None,
    order: Order = "corpus",
    progress: bool = False,
) -> dict[str, Any]:
    """Build, verify and swap in an impact index; the manifest.

    ``order``: of the documents inside, that of the corpus or by ``ordering``; it changes no score
    and no ranking.

    ``forward_index``: also keep the impacts document by document, for two-phase search; by default
    wherever queries are boosted, that is, the rule is not folded. Counts are kept: documents =
    indexed + empty + rounded to nothing + pruned to nothing. Raises ``IndexMismatch`` when the
    query side has another vocabulary, ``LockedError`` when another process builds the same index; a
    failed build leaves the index that stood there as it was.
    """
    if query_encoder is not None:
        check_vocabulary(vectors.vocabulary, query_encoder, str(vectors.folder))
    pruning = pruning or Pruning()
    with _building(output) as folder:
        if order == "bisection":
            with _bar("ordering", len(vectors), progress) as bar:
                vectors = Reordered(vectors, bar.update)
        keeps_forward = not rule.folded if forward_index is None else forward_index
        writer = ForwardWriter(folder / FOLDER) if keeps_forward else None
        source = _ImpactSource(vectors, rule, folded_weights(query_encoder, rule), pruning, writer)
        with _bar("indexing", len(vectors), progress) as bar:
            batches = [source.batch(number) for number in range(vectors.num_shards)]
            write_impacts(
                folder / "lucene", batches, vectors.vocabulary, threads=threads, progress=bar.update
            )
        if writer is not None:
            writer.finish(vectors.vocabulary)
        if query_encoder is not None:
            query_encoder.save(folder / "query")
        write_lines(folder / "unindexed.jsonl", source.unindexed())
        write_lines(folder / "samples.jsonl", source.samples())
        write_doc_ids(folder, source.doc_ids())
        return write_manifest(
            folder,
            "impact",
            {
                "encoder": vectors.manifest["encoder"],
                "query": query_encoder.fingerprint if query_encoder else None,
                "vocabulary_sha256": files.sha256_of_json(vectors.vocabulary),
                "rule": rule.to_json(),
                **({"pruning": pruning.to_json()} if pruning else {}),
                **({"order": order} if order != "corpus" else {}),
                "counts": source.counts(),
            },
        )


def build_bm25_index(
    read: Callable[[], Iterable[Document]],
    output: Path,
    parameters: Bm25 | None = None,
    *,
    progress: bool = False,
) -> dict[str, Any]:
    """Build, verify and swap in a BM25 index; the manifest.

    ``title text`` is one field (Anserini's "flat"), or, with a weight for titles in the parameters,
    text and title are two ("multifield"); then, as in Anserini, a document without text is not
    indexed, whatever its title.
    """
    parameters = parameters or Bm25()
    with _building(output) as folder:
        doc_ids: list[str] = []
        unindexed: list[dict[str, str]] = []

        def texts() -> Iterator[tuple[str, ...]]:
            for document in read():
                parts = (
                    (document.text, document.title) if parameters.title else (document.contents,)
                )
                if parts[0].strip():
                    doc_ids.append(document.doc_id)
                    yield document.doc_id, *parts
                else:
                    unindexed.append({"doc_id": document.doc_id, "reason": "empty text"})

        with _bar("indexing", None, progress) as bar:
            write_texts(folder / "lucene", texts(), parameters, bar.update)
        if not doc_ids and not unindexed:
            raise DataError("the corpus holds no documents")
        write_lines(folder / "unindexed.jsonl", unindexed)
        write_doc_ids(folder, ["\n".join(doc_ids).encode()] if doc_ids else [])
        counts = {
            "documents": len(doc_ids) + len(unindexed),
            "indexed": len(doc_ids),
            "empty": len(unindexed),
        }
        return write_manifest(
            folder, "bm25", {"parameters": parameters._asdict(), "counts": counts}
        )


class _ImpactSource:
    """Quantizes and prunes shard by shard while the writer threads ask for them, and keeps the
    books.
    """

    def __init__(
        self,
        vectors: Vectors,
        rule: Rule,
        query_weights: np.ndarray | None,
        pruning: Pruning,
        writer: ForwardWriter | None,
    ) -> None:
        self._vectors, self._rule, self._query_weights = vectors, rule, query_weights
        self._pruning, self._writer = pruning, writer
        self._step = max(1, len(vectors) // NUM_SAMPLES)
        self._books: dict[int, _ShardBook] = {}

    def batch(self, number: int) -> Callable[[], Batch]:
        return lambda: self._quantized(number)

    def _quantized(self, number: int) -> Batch:
        doc_ids, weights = self._vectors.read_shard(number)
        rounded, zeroed, clipped = quantize(weights, self._rule, self._query_weights)
        impacts, num_pruned, sum_pruned = prune(rounded, self._pruning)
        filled = np.diff(impacts.indptr) > 0
        # steps before it was lost
        survived = (np.diff(weights.indptr) > 0).astype(int) + (np.diff(rounded.indptr) > 0)
        lost = [
            (doc_ids[i], (_EMPTY, _ROUNDED, _PRUNED)[survived[i]]) for i in np.flatnonzero(~filled)
        ]
        kept_ids = [doc_ids[i] for i in np.flatnonzero(filled)]
        kept = impacts[filled]
        if self._writer is not None:
            self._writer.add(number, kept)
        samples = [
            {"id": kept_ids[i], "vector": row_as_dict(kept, i, self._vectors.vocabulary)}
            for i in range(0, len(kept_ids), self._step)
        ]
        self._books[number] = _ShardBook(
            "\n".join(kept_ids).encode(),
            len(kept_ids),
            lost,
            samples,
            zeroed,
            clipped,
            int(kept.nnz),
            int(kept.sum(dtype=np.int64)),
            num_pruned,
            sum_pruned,
        )
        return kept_ids, kept

    def _in_order(self) -> list[_ShardBook]:
        return [self._books[number] for number in sorted(self._books)]

    def doc_ids(self) -> list[bytes]:
        return [book.doc_ids for book in self._in_order() if book.indexed]

    def samples(self) -> list[dict[str, Any]]:
        return [sample for book in self._in_order() for sample in book.samples]

    def unindexed(self) -> list[dict[str, str]]:
        return [
            {"doc_id": doc_id, "reason": reason}
            for book in self._in_order()
            for doc_id, reason in book.lost
        ]

    def counts(self) -> dict[str, int]:
        books = self._in_order()
        reasons = [reason for book in books for _, reason in book.lost]
        pruned = (
            {
                "pruned_to_nothing": reasons.count(_PRUNED),
                "postings_pruned": sum(book.postings_pruned for book in books),
                "sum_impacts_pruned": sum(book.sum_impacts_pruned for book in books),
            }
            if self._pruning
            else {}
        )
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
    """A folder beside ``output`` to build in; at the end of the block it is verified and takes the
    place.
    """
    output = output.resolve()  # a link stays a link: what it points to is replaced
    if (
        output.exists()
        and not (output / MANIFEST).exists()
        and (not output.is_dir() or any(output.iterdir()))
    ):
        raise ConfigError(
            f"{output} exists and is no index of this package; choose another output or delete it"
        )
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
    return tqdm(
        desc=description,
        total=total,
        unit=" documents",
        disable=None if shown else True,
        dynamic_ncols=True,
    )


def check_vocabulary(vocabulary: Sequence[str], query_encoder: QueryEncoder, place: str) -> None:
    """Raise ``IndexMismatch`` unless the query side numbers the same tokens in the same way."""
    if list(query_encoder.vocabulary) != list(vocabulary):
        raise IndexMismatch(
            f"{place}: the query side has another vocabulary "
            f"({len(query_encoder.vocabulary)} tokens) "
            f"than the documents ({len(vocabulary)} tokens)"
        )


def impact_matrix(
    vectors: Vectors, rule: Rule, query_weights: np.ndarray | None
) -> tuple[list[str], Any]:
    """All doc_ids and impacts CSR int32 ``(N, V)`` in memory: what ``exact`` searches."""
    shards = [vectors.read_shard(number) for number in range(vectors.num_shards)]
    impacts = [quantize(weights, rule, query_weights).impacts for _, weights in shards]
    return [doc_id for doc_ids, _ in shards for doc_id in doc_ids], sparse.vstack(
        impacts, format="csr"
    )


def check_index_options(scale: float | None, bits: int | None, threads: int) -> None:
    """Refuse at once, and not after hours of encoding, what no index can be built with."""
    if threads < 1:
        raise ConfigError(f"{threads} threads are not allowed; use at least 1")
    if scale is not None:
        Rule(scale)
    if bits is not None:
        quantization.rule_from_range(1.0, bits)
