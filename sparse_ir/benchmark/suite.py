"""The suite: several systems over many data sets, each encoded, indexed, searched and measured.

A finished row is never made again. A killed suite continues where it stopped, and its rows are the
same to the byte. Work in progress is in ``RESULTS/.work``, below the hash of corpus and system, so
nothing stale is ever used.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from scipy import sparse
from tqdm import tqdm

from sparse_ir.benchmark import measuring, results, verification
from sparse_ir.benchmark.averages import average, merge_groups
from sparse_ir.benchmark.columns import measure_names
from sparse_ir.benchmark.measuring import Data, Plan
from sparse_ir.benchmark.results import RESULT
from sparse_ir.benchmark.rows import HASHES
from sparse_ir.benchmark.systems import BM25_SYSTEMS, HYBRID, System
from sparse_ir.data import readers
from sparse_ir.data.datasets import Collection
from sparse_ir.data.records import Document
from sparse_ir.errors import ConfigError
from sparse_ir.indexing import builder, encoding
from sparse_ir.indexing.bm25_builder import build_bm25_index
from sparse_ir.indexing.bm25_field import Bm25Settings, weigh_documents
from sparse_ir.models import catalog
from sparse_ir.models.interfaces import DocumentEncoder, QueryEncoder
from sparse_ir.models.options import LEXICAL_MODEL, EncodeOptions
from sparse_ir.reports import Report
from sparse_ir.retrieval.searcher import Index
from sparse_ir.storage import files

_ONE_INDEX = ("corpus_sha256", "kind", "options", "fingerprint")  # decide an index
_SHARD_SIZE = 1024


class Encoders(NamedTuple):
    """Both sides of a system."""

    documents: DocumentEncoder
    queries: QueryEncoder


def group_by_corpus(fetched: Iterable[tuple[str, Collection]]) -> Iterator[list[Data]]:
    """Neighboring data sets (by source name) over the same corpus: they share one index."""
    for _, group in itertools.groupby(fetched, key=lambda pair: pair[1].corpus):
        yield list(itertools.starmap(Data, group))


class Suite:
    """One call of the suite: its options, and the hashes and encoders that its rows share."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._hashes: dict[Path, str] = {}
        self._encoders: dict[System, Encoders] = {}
        self._adapted: dict[tuple[System, Path], QueryEncoder] = {}

    def measure_corpus(self, system: System, sets: Sequence[Data]) -> int:
        """Make the missing rows of data sets over one corpus; returns their number."""
        pending = []
        for data in sets:
            identity = self._identify(system, data.collection)
            if not self._is_finished(system, data.collection, identity):
                pending.append((data, identity))
        corpus = sets[0].collection.corpus.parent.name
        place = self.plan.output / ".work" / corpus / system.name
        if pending:
            if self.plan.progress:
                tqdm.write(f"{corpus}: {system.name}", file=sys.stderr)
            self._measure_sets(system, pending, place)
        if place.exists() and not self.plan.keep:
            files.remove_leftovers(place)
            files.remove_folder(place)
        return len(pending)

    def _measure_sets(
        self, system: System, pending: Sequence[tuple[Data, dict[str, Any]]], place: Path
    ) -> None:
        # qrels of another data set are refused before any work
        described = []
        for data, identity in pending:
            hashes = {field: identity[field] for field in HASHES}
            described.append(verification.describe(data.collection, data.source, hashes))
        first, deciding = pending[0]
        facts = {field: deciding[field] for field in _ONE_INDEX}
        work = place / files.sha256_of_json(facts)[:16]
        with self._open_index(system, first.collection, work) as index:
            for (data, identity), dataset in zip(pending, described, strict=True):
                measuring.make_row(self.plan, system, index, work, data, dataset, identity)

    def _identify(self, system: System, collection: Collection) -> dict[str, Any]:
        """Everything that decides a row: data and model by their hashes, rules and options."""
        hashes = {}
        for field in HASHES:
            path = getattr(collection, field.removesuffix("_sha256"))
            if path not in self._hashes:
                self._hashes[path] = results.sha256_of_content(path)
            hashes[field] = self._hashes[path]
        fingerprint = None
        if system.is_neural:
            encoders = self._load_neural(system, collection)
            # the name says where a model is, which decides nothing
            sides = [side.fingerprint | {"name": None} for side in encoders]
            fingerprint = files.sha256_of_json(sides)
        return hashes | {
            "split": collection.split,
            "remove_identical": collection.remove_identical,
            "relevance_level": collection.relevance_level,
            "hits": self.plan.hits,
            "kind": system.kind,
            "options": {} if system.is_bm25 else dataclasses.asdict(self.plan.impacts),
            "fingerprint": fingerprint,
        }

    def _is_finished(
        self, system: System, collection: Collection, identity: Mapping[str, Any]
    ) -> bool:
        folder = results.row_folder(self.plan.output, collection.name, system.name)
        if not (folder / RESULT).exists():
            return False
        recorded = results.read_row(folder).result.identity
        changed = []
        for field, value in identity.items():
            if recorded.get(field) != value:
                changed.append(f"{field}: {recorded.get(field)} then, {value} now")
        if changed:
            raise ConfigError(
                f"{folder} is a row of something else ({'; '.join(changed)}); delete it to have it "
                "made again, give the system another name with NAME=MODEL, or choose another output"
            )
        return True

    def _open_index(self, system: System, collection: Collection, work: Path) -> Index:
        """The index of a system, built if it does not exist yet."""
        folder = work / "index"
        read = _document_reader(collection)
        if system.is_bm25:
            if not folder.exists():
                parameters = BM25_SYSTEMS[system.kind]
                progress = self.plan.progress
                build_bm25_index(read, folder, parameters, store=False, progress=progress)
            return Index(folder)
        if not folder.exists():
            self._build_impacts(system, collection, work)
        if system.is_neural:
            return Index(folder, query_encoder=self._load_neural(system, collection).queries)
        return Index(folder)

    def _build_impacts(self, system: System, collection: Collection, work: Path) -> None:
        progress = self.plan.progress
        read = _document_reader(collection)
        if system.is_neural:
            encoders = self._load_neural(system, collection)
        else:  # the other options are meant for the neural models of the same call
            options: EncodeOptions = {"shard_size": self._shard_size}
            encoders = Encoders(*catalog.load_encoder(LEXICAL_MODEL, read, options))
        clock = _Stopwatch(encoders.documents)
        made = encoding.write_vectors(
            work / "vectors",
            read,
            clock,
            query_encoder=encoders.queries,
            shard_size=self._shard_size,
            store=False,
            progress=progress,
        )
        measuring.add_encoding_time(work, clock.documents, clock.seconds)
        impacts = self.plan.impacts
        words = None
        if system.kind == HYBRID:
            shards = (made.read_shard(number)[0] for number in range(made.num_shards))
            words = weigh_documents(read(), work / "words", Bm25Settings(), shards)
        rule = builder.choose_rule(
            made,
            encoders.queries,
            scale=impacts.scale,
            bits=impacts.bits,
            fold=impacts.fold,
            bm25=words,
        )
        # One thread makes one segment, in the order of the corpus: the same index every time, and
        # one that searches can be timed on.
        builder.build_impact_index(
            made,
            work / "index",
            rule,
            encoders.queries,
            bm25=words,
            threads=1,
            progress=progress,
        )

    @property
    def _shard_size(self) -> int:
        return self.plan.options.get("shard_size", _SHARD_SIZE)

    def _load_neural(self, system: System, collection: Collection) -> Encoders:
        """Both sides of a neural system.

        The network is loaded once. Static query weights may include the IDF of the corpus.
        """
        options = self.plan.options
        if system not in self._encoders:
            loaded = catalog.load_encoder(system.model, None, options)
            self._encoders[system] = Encoders(*loaded)
        encoders = self._encoders[system]
        share = catalog.find_share(system.model, options)
        if not share:
            return encoders
        key = (system, collection.corpus)
        if key not in self._adapted:
            read = _document_reader(collection)
            self._adapted[key] = catalog.adapt(encoders.queries, read, share)
        return Encoders(encoders.documents, self._adapted[key])


def _document_reader(collection: Collection) -> Callable[[], Iterator[Document]]:
    return functools.partial(readers.read_documents, collection.corpus)


class _Stopwatch:
    """An encoder that counts the documents and the seconds of this process."""

    def __init__(self, encoder: DocumentEncoder) -> None:
        self._encoder = encoder
        self.vocabulary = encoder.vocabulary
        self.fingerprint = encoder.fingerprint
        self.query_encoder = encoder.query_encoder
        self.documents = 0
        self.seconds = 0.0

    def encode(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> sparse.csr_matrix:
        """Weights of the texts, as the encoder returns them."""
        begun = time.perf_counter()
        weights = self._encoder.encode(texts, progress)
        self.seconds += time.perf_counter() - begun
        self.documents += len(texts)
        return weights


def describe_suite(
    plan: Plan,
    systems: Sequence[System],
    names: Sequence[str],
    made: int,
    skipped: Mapping[str, str],
) -> Report:
    """The report of a call: its rows, and their average over BEIR if they are complete."""
    folders = [name.replace(":", "-") for name in names]
    chosen = set(map(attrgetter("name"), systems))
    rows = []
    for row in results.read_rows(plan.output):
        if row.dataset in folders and row.system in chosen:
            rows.append(row)
    shown = {}
    for row in merge_groups(rows):
        measures = {column: row.shown_measure(column) for column in measure_names()}
        shown[f"{row.dataset} / {row.system}"] = _round(measures)
    report: Report = {
        "results": str(plan.output),
        "rows_made": made,
        "rows_found": len(rows) - made,
        "rows": shown,
    }
    averages = {system: _round(values) for system, values in average(rows).items()}
    if averages:
        report["average of BEIR's 13"] = averages
    if skipped:
        report["skipped"] = dict(skipped)
    return report


def _round(values: Mapping[str, float | None]) -> dict[str, float | None]:
    rounded = dict(values)
    for name, value in values.items():
        if value is not None:
            rounded[name] = round(value, 4)
    return rounded
