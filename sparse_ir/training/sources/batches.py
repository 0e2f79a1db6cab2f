"""Batches of training pairs: ``Batches.at(step)`` is a pure function of the settings and the step.

A training therefore resumes exactly without any state of a sampler. The texts come from ``pairs``.

Q queries, D documents of a batch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from sparse_ir.errors import ConfigError
from sparse_ir.training.sources.training_source import (
    TrainingSource,
    check_weight,
    merge_equal,
    pair_keys,
    pick,
)

_DRAWS_PER_BLOCK = 4096
_ORDER_VERSION = 1  # part of the fingerprint: another order of batches is another training
# First numbers of the random generators of a source, one for each purpose.
_MEMBERS = 1
_EPOCH = 2
_NEGATIVES = 3


class TrainingBatch(NamedTuple):
    """One training batch of Q queries and D documents; the documents differ in their texts."""

    source: str
    queries: list[str]
    documents: list[str]  # the positives of the batch first, then the sampled negatives
    positive_Q: np.ndarray  # int64: column of the query's positive
    allowed_QD: np.ndarray  # bool: False where the document is another known positive of the query
    own_QD: np.ndarray  # bool: the query's positive and the negatives that were drawn for it
    # float32, NaN where the file has no score; None: the source has no scores
    scores_QD: np.ndarray | None

    def candidates(self, in_batch: bool) -> np.ndarray:
        """The documents that a query is scored against, bool ``[Q, D]``.

        These are all allowed documents with ``in_batch``, else the query's own only.
        """
        return self.allowed_QD if in_batch else self.own_QD


class Batches:
    """An endless sequence of batches with random access: ``at(step)`` needs no other state.

    Each batch comes from one source, drawn with probability proportional to its weight. A source
    is a set of entries: an entry is a positive document (equal texts are one) with all the queries
    it answers. A query with several positives belongs to several entries. An epoch is a permutation
    of the entries. When an entry comes up, the next ``queries_per_positive`` of its queries are
    used, in rotation from epoch to epoch. The n-th batch of a source is the n-th slice of its
    endless sequence of epochs; where a slice crosses the end of an epoch, the next epoch fills it
    with entries that are not in it yet. So a batch has exactly ``queries`` different positives.

    ``negatives`` is the number of hard negatives sampled for each *positive document* from the
    lists of the queries drawn with it, other than the documents that are in the batch already
    (fewer when the lists are short). ``neighbourhood`` > 1 brings entries together whose documents
    are hard for each other, at no cost in documents: each entry that comes up takes along up to
    ``neighbourhood`` - 1 further ones of this epoch that are among the mined negatives of its first
    query, nearest first. Queries of equal text share their known positives.

    Raises:
        ConfigError: a setting is out of range; there is no source, or two have the same name; a
            source has fewer positive documents than ``queries``; or hard negatives are asked for
            where no source has any.
    """

    def __init__(
        self,
        sources: Sequence[TrainingSource],
        *,
        queries: int = 32,
        negatives: int = 0,
        queries_per_positive: int = 1,
        neighbourhood: int = 1,
        seed: int = 0,
    ) -> None:
        self._settings = _Settings(queries, negatives, queries_per_positive, neighbourhood, seed)
        self._settings.check()
        _check_sources(sources, self._settings)
        self._sources = [_SourceBatches(source, self._settings) for source in sources]
        self._weights = [source.weight for source in sources]
        self._draws = _Draws(self._weights, seed)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """JSON-able facts that decide the batches: settings, and the sources with their weights."""
        sources = []
        for each in self._sources:
            own = {"name": each.source.name, "weight": each.source.weight}
            sources.append(each.source.fingerprint | own)
        facts: dict[str, Any] = {"order_version": _ORDER_VERSION}
        return facts | self._settings._asdict() | {"sources": sources}

    def describe(self) -> list[dict[str, Any]]:
        """Counts of each source: queries, documents, pairs, share of the batches, steps per epoch.

        ``steps_per_epoch`` counts batches of this source, ``epoch_steps`` steps of the whole
        training on average.
        """
        total = sum(self._weights)
        return [each.describe(each.source.weight / total) for each in self._sources]

    def at(self, step: int) -> TrainingBatch:
        """The batch of a step (from 0). Raises ``ConfigError`` for a negative step."""
        if step < 0:
            raise ConfigError(f"step is {step}; it must be 0 or more")
        source, number = self._draws.at(step)
        return self._sources[source].at(number)


class _Settings(NamedTuple):
    queries: int
    negatives: int
    queries_per_positive: int
    neighbourhood: int
    seed: int

    def check(self) -> None:
        lowest = _Settings(queries=1, negatives=0, queries_per_positive=1, neighbourhood=1, seed=0)
        for name, value, least in zip(self._fields, self, lowest, strict=True):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(
                    f"{name} is {value!r}; it must be a whole number of at least {least}"
                )


def _check_sources(sources: Sequence[TrainingSource], settings: _Settings) -> None:
    if not sources:
        raise ConfigError("there is no source of training pairs; there must be at least one")
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:  # the name seeds the order
            raise ConfigError(f"two sources are named {name!r}; each name must be used once")
    for source in sources:
        check_weight(source.weight)
    for source in sources:
        if any(map(len, source.negatives)):
            return
    for name, value, unused in (
        ("negatives", settings.negatives, 0),
        ("neighbourhood", settings.neighbourhood, 1),
    ):
        if value != unused:
            raise ConfigError(
                f"{name} is {value}, but no source has mined negatives ({', '.join(names)}); it "
                f"must be {unused}, or a source must name a file of them"
            )


class _Draws:
    """Which source each step takes, and how many steps took it before.

    Draws come in blocks, so that a late step is cheap.
    """

    def __init__(self, weights: list[float], seed: int) -> None:
        self._bounds = np.cumsum(np.array(weights) / math.fsum(weights))[:-1]
        self._seed = seed
        self._blocks: list[np.ndarray] = []
        # batches of each source before each block
        self._before = [np.zeros(len(weights), dtype=np.int64)]

    def at(self, step: int) -> tuple[int, int]:
        """The source of a step, and the number of the batch within that source."""
        block, offset = divmod(step, _DRAWS_PER_BLOCK)
        while len(self._blocks) <= block:
            generator = np.random.default_rng([self._seed, 0, len(self._blocks)])
            uniform = generator.random(_DRAWS_PER_BLOCK)
            drawn = np.searchsorted(self._bounds, uniform, side="right").astype(np.uint16)
            self._blocks.append(drawn)
            counts = np.bincount(drawn, minlength=len(self._before[0]))
            self._before.append(self._before[-1] + counts)
        source = int(self._blocks[block][offset])
        in_block = np.count_nonzero(self._blocks[block][:offset] == source)
        return source, int(self._before[block][source] + in_block)


class _Entries(NamedTuple):
    """The entries of a source: entry e is a document and the queries that it answers.

    ``queries[starts[e]:starts[e + 1]]`` are its queries in seeded order.
    """

    documents: np.ndarray
    queries: np.ndarray
    starts: np.ndarray

    def queries_in(self, entry: int, epoch: int, most: int) -> list[int]:
        """At most ``most`` queries of an entry, in rotation from epoch to epoch."""
        queries = self.queries[self.starts[entry] : self.starts[entry + 1]]
        first = epoch * most
        turns = range(first, first + min(most, len(queries)))
        return [int(queries[turn % len(queries)]) for turn in turns]


class _Neighbours(NamedTuple):
    """For query q, the entries among its negatives: ``entries[starts[q]:starts[q + 1]]``."""

    starts: np.ndarray
    entries: np.ndarray  # nearest first


class _Columns(dict[int, int]):
    """Document -> its column in a batch; a new document gets the next column."""

    def add(self, document: int) -> None:
        self.setdefault(document, len(self))


class _SourceBatches:
    """The batches of one source."""

    def __init__(self, source: TrainingSource, settings: _Settings) -> None:
        self.source = source
        self._settings = settings
        digest = hashlib.sha256(source.name.encode()).digest()
        self._key = [settings.seed, int.from_bytes(digest[:8], "little")]
        self._same = merge_equal(source.documents)
        self._twins = _find_twins(source.queries)
        self._entries = self._make_entries()
        count = len(self._entries.documents)
        if count < settings.queries:
            raise ConfigError(
                f"source {source.name!r} has {count} different positive documents, fewer than the "
                f"{settings.queries} of a batch; use smaller batches, or leave this source out"
            )
        self._neighbours = self._find_neighbours() if settings.neighbourhood > 1 else None
        self._orders: dict[int, np.ndarray] = {}  # of the last two epochs

    def at(self, number: int) -> TrainingBatch:
        """The batch of this number (from 0) of this source."""
        generator = self._generator(_NEGATIVES, number)
        entries = list(self._slice(number))
        columns = _Columns()
        for document, _ in entries:
            columns.add(document)
        queries: list[int] = []
        positives: list[int] = []
        ends: list[int] = []  # columns after the negatives of each entry
        for column, (_, members) in enumerate(entries):
            self._add_negatives(members, columns, generator)
            ends.append(len(columns))
            queries.extend(members)
            positives.extend([column] * len(members))
        positive_Q = np.array(positives, dtype=np.int64)
        return TrainingBatch(
            source=self.source.name,
            queries=pick(self.source.queries, queries),
            documents=pick(self.source.documents, columns),
            positive_Q=positive_Q,
            allowed_QD=self._allow(queries, positive_Q, columns),
            own_QD=_own(positive_Q, ends),
            scores_QD=self._find_scores(queries, columns),
        )

    def describe(self, share: float) -> dict[str, Any]:
        """Counts of this source, which gives ``share`` of all batches."""
        source = self.source
        count = len(self._entries.documents)
        steps = count / self._settings.queries
        return {
            "name": source.name,
            "queries": len(source.queries),
            "documents": len(source.documents),
            "positives": sum(map(len, source.positives)),
            "negatives": sum(map(len, source.negatives)),
            "positive_documents": count,
            "share": share,
            "steps_per_epoch": steps,
            "epoch_steps": steps / share,
        }

    # Entries and their order in an epoch

    def _generator(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([*self._key, *purpose])

    def _make_entries(self) -> _Entries:
        keys = np.unique(pair_keys(self.source.positives, self._same))
        shuffled = self._generator(_MEMBERS).permutation(keys)
        queries, documents = np.divmod(shuffled, len(self._same))
        different, entries = np.unique(documents, return_inverse=True)
        sizes = np.bincount(entries, minlength=len(different))
        return _Entries(
            documents=different,
            queries=queries[np.argsort(entries, kind="stable")],
            starts=np.concatenate([[0], np.cumsum(sizes)]),
        )

    def _find_neighbours(self) -> _Neighbours:
        entry_of = np.full(len(self._same), -1, dtype=np.int64)
        entry_of[self._entries.documents] = np.arange(len(self._entries.documents))
        keys = pair_keys(self.source.negatives, self._same)
        _, first = np.unique(keys, return_index=True)
        queries, documents = np.divmod(keys[np.sort(first)], len(self._same))
        entries = entry_of[documents]
        is_entry = entries >= 0
        counts = np.bincount(queries[is_entry], minlength=len(self.source.queries))
        return _Neighbours(np.concatenate([[0], np.cumsum(counts)]), entries[is_entry])

    def _order(self, epoch: int) -> np.ndarray:
        """The entries in the order of an epoch."""
        if epoch not in self._orders:
            orders = {epoch: self._make_order(epoch)}
            if epoch - 1 in self._orders:
                orders[epoch - 1] = self._orders[epoch - 1]
            self._orders = orders
        return self._orders[epoch]

    def _make_order(self, epoch: int) -> np.ndarray:
        # Joining changes only the first batch of an epoch, by the end of the epoch before. So a
        # late epoch needs only the one before it, unless epochs are so short that this first batch
        # reaches their end.
        first = 0
        if len(self._entries.documents) >= 2 * self._settings.queries:
            first = max(epoch - 1, 0)
        known = [key for key in self._orders if first <= key < epoch]
        start = max(known, default=first)
        order = self._orders[start] if known else self._shuffle(start)
        for number in range(start + 1, epoch + 1):
            order = self._join(order, self._shuffle(number), number)
        return order

    def _join(self, before: np.ndarray, order: np.ndarray, epoch: int) -> np.ndarray:
        """The order, so that its first entries differ from those in the same batch ``before``."""
        taken = epoch * len(order) % self._settings.queries
        if not taken:
            return order
        is_free = ~np.isin(order, before[-taken:])
        free = np.flatnonzero(is_free)[: self._settings.queries - taken]
        return np.concatenate([order[free], np.delete(order, free)])

    def _shuffle(self, epoch: int) -> np.ndarray:
        order = self._generator(_EPOCH, epoch).permutation(len(self._entries.documents))
        if self._neighbours is None:
            return order
        return self._gather(order, epoch, self._neighbours)

    def _gather(self, order: np.ndarray, epoch: int, neighbours: _Neighbours) -> np.ndarray:
        """The order with neighbours moved behind the first of them, within a batch."""
        queries = self._settings.queries
        turns = epoch * self._settings.queries_per_positive % np.diff(self._entries.starts)
        first_query = self._entries.queries[self._entries.starts[:-1] + turns]
        begins = neighbours.starts[first_query].tolist()
        ends = neighbours.starts[first_query + 1].tolist()
        free = np.ones(len(order), dtype=bool)
        gathered: list[int] = []
        opened = epoch * len(order) % queries  # entries of the first batch from the epoch before
        for entry in order.tolist():
            if not free[entry]:
                continue
            free[entry] = False
            gathered.append(entry)
            left = -(opened + len(gathered)) % queries  # in the batch
            room = min(self._settings.neighbourhood - 1, left)
            if room and begins[entry] < ends[entry]:
                near = neighbours.entries[begins[entry] : ends[entry]]
                near = near[free[near]][:room]
                free[near] = False
                gathered.extend(near.tolist())
        return np.array(gathered, dtype=np.int64)

    # The parts of a batch

    def _slice(self, number: int) -> Iterator[tuple[int, list[int]]]:
        """(document, its queries in this epoch) for each entry of a batch."""
        most = self._settings.queries_per_positive
        first = number * self._settings.queries
        for position in range(first, first + self._settings.queries):
            epoch, offset = divmod(position, len(self._entries.documents))
            entry = int(self._order(epoch)[offset])
            document = int(self._entries.documents[entry])
            yield document, self._entries.queries_in(entry, epoch, most)

    def _add_negatives(
        self, queries: list[int], columns: _Columns, generator: np.random.Generator
    ) -> None:
        """Add sampled negatives of an entry, other than known positives of its queries."""
        if not self._settings.negatives:
            return
        known: set[int] = set()
        for query in queries:
            known |= self._known_positives(query)
        candidates = self._same[np.concatenate(pick(self.source.negatives, queries))]
        wanted = len(columns) + self._settings.negatives
        for document in generator.permutation(candidates).tolist():
            if len(columns) == wanted:
                return
            if document not in known:
                columns.add(document)

    def _known_positives(self, query: int) -> set[int]:
        """The positives of all queries of this text."""
        known: set[int] = set()
        for twin in self._twins.get(query, (query,)):
            known.update(self._same[self.source.positives[twin]].tolist())
        return known

    def _allow(self, queries: list[int], positive_Q: np.ndarray, columns: _Columns) -> np.ndarray:
        allowed_QD = np.ones((len(queries), len(columns)), dtype=bool)
        for row, query in enumerate(queries):
            for document in self._known_positives(query):
                if document in columns:
                    allowed_QD[row, columns[document]] = False
        allowed_QD[np.arange(len(queries)), positive_Q] = True
        return allowed_QD

    def _find_scores(self, queries: list[int], columns: _Columns) -> np.ndarray | None:
        """The scores of the file, float32 ``[Q, D]``; NaN where it has none."""
        source = self.source
        if source.scores is None:
            return None
        scores_QD = np.full((len(queries), len(columns)), np.nan, dtype=np.float32)
        for row, query in enumerate(queries):
            scored = np.concatenate([source.positives[query], source.negatives[query]])
            documents = self._same[scored].tolist()
            for document, score in zip(documents, source.scores[query], strict=True):
                if document in columns:
                    scores_QD[row, columns[document]] = score
        return scores_QD


def _own(positive_Q: np.ndarray, ends: Sequence[int]) -> np.ndarray:
    """Each query's positive, and the negatives of its entry: bool ``[Q, D]``.

    The negatives of entry e end before column ``ends[e]``.
    """
    own_QD = np.zeros((len(positive_Q), ends[-1]), dtype=bool)
    starts = [len(ends), *ends[:-1]]
    for row, entry in enumerate(positive_Q.tolist()):
        own_QD[row, entry] = True
        own_QD[row, starts[entry] : ends[entry]] = True
    return own_QD


def _find_twins(queries: Sequence[str]) -> dict[int, list[int]]:
    """For each query whose text occurs more than once: all queries of this text."""
    first = merge_equal(queries)
    repeated = np.flatnonzero(first != np.arange(len(first)))
    groups: dict[int, list[int]] = {}
    for query in repeated.tolist():
        original = int(first[query])
        groups.setdefault(original, [original]).append(query)
    twins: dict[int, list[int]] = {}
    for group in groups.values():
        for query in group:
            twins[query] = group
    return twins
