"""Batches of training pairs: ``Batches.at(step)`` is a pure function of the settings and the step.

So a training run resumes exactly without any state of a sampler. The texts come from ``pairs``; no
tensor library here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from sparse_ir.errors import ConfigError
from sparse_ir.training.pairs import Source, check_weight, merge_equal, pair_keys

_DRAWS_PER_BLOCK = 4096
_ORDER_VERSION = 1  # part of the fingerprint: another order of batches is another training run


class Batch(NamedTuple):
    """One training batch of Q queries and D documents; the documents differ in their texts."""

    source: str
    queries: list[str]
    documents: list[str]  # the positives of the batch first, then the sampled negatives
    positive_Q: np.ndarray  # int64: column of the query's positive
    allowed_QD: np.ndarray  # bool: False where the document is another known positive of the query
    own_QD: np.ndarray  # bool: the query's positive and the negatives that were drawn for it
    # float32, NaN where the file held no score; None: the source holds none
    scores_QD: np.ndarray | None

    def candidates(self, in_batch: bool) -> np.ndarray:
        """bool ``[Q, D]``: the documents that a query is scored against; its own only, unless
        ``in_batch``.
        """
        return self.allowed_QD if in_batch else self.own_QD


class Batches:
    """An endless sequence of batches with random access: ``at(step)`` needs no other state than the
    step.

    Each batch comes from one source, drawn with probability proportional to its weight. A source is
    dealt like a deck of cards. A card is a positive document (equal texts are one) with all the
    queries it answers; an epoch is a permutation of the cards; when a card comes up, the next
    ``queries_per_positive`` of its queries are used, in rotation from epoch to epoch. A query with
    several positives stands on several cards. The n-th batch of a source takes the n-th slice of
    its endless sequence of epochs: what remains of one epoch opens a batch that the next one fills,
    with other cards than those already in it. So a batch has exactly ``queries`` different
    positives.

    ``negatives`` is the number of hard negatives sampled for each *positive document* from the
    lists of the queries drawn with it, other than the documents that are in the batch already
    (fewer when the lists are short). ``neighbourhood`` > 1 puts cards together whose documents are
    hard for each other: each card that comes up brings up to ``neighbourhood`` - 1 further ones of
    this epoch that stand among the mined negatives of its first query, nearest first. It costs no
    document more. Queries of equal text share their known positives.

    Raises:
        ConfigError: a setting out of range, no source, two of the same name, a source with fewer
            positive documents
            than ``queries``, or hard negatives asked for where no source has any.
    """

    def __init__(
        self,
        sources: Sequence[Source],
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
        self._decks = [_Deck(source, self._settings) for source in sources]
        self._draws = _Draws([source.weight for source in sources], seed)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """All that the batches depend on (JSON-able): settings, and the
        sources with their weights.
        """
        sources = [
            {**deck.source.fingerprint, "name": deck.source.name, "weight": deck.source.weight}
            for deck in self._decks
        ]
        return {"order_version": _ORDER_VERSION, **self._settings._asdict(), "sources": sources}

    def describe(self) -> list[dict[str, Any]]:
        """Counts of each source: queries, documents, pairs, share of the batches, and steps of one
        epoch of it.

        ``steps_per_epoch`` counts batches of this source, ``epoch_steps`` steps of the whole run
        (on average).
        """
        total = sum(deck.source.weight for deck in self._decks)
        return [deck.describe(deck.source.weight / total) for deck in self._decks]

    def at(self, step: int) -> Batch:
        """The batch of a step (from 0). Raises ``ConfigError`` for a negative step."""
        if step < 0:
            raise ConfigError(f"step is {step}, allowed: at least 0")
        source, number = self._draws.at(step)
        return self._decks[source].deal(number)


class _Settings(NamedTuple):
    queries: int
    negatives: int
    queries_per_positive: int
    neighbourhood: int
    seed: int

    def check(self) -> None:
        least = _Settings(queries=1, negatives=0, queries_per_positive=1, neighbourhood=1, seed=0)
        for name, value, allowed in zip(self._fields, self, least, strict=True):
            if isinstance(value, bool) or not isinstance(value, int) or value < allowed:
                raise ConfigError(
                    f"{name} is {value!r}, allowed: a whole number, at least {allowed}"
                )


def _check_sources(sources: Sequence[Source], settings: _Settings) -> None:
    if not sources:
        raise ConfigError("no source of training pairs, allowed: at least one")
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:  # the name seeds the order
            raise ConfigError(f"two sources are named {name!r}, allowed: each name once")
    for source in sources:
        check_weight(source.weight)
    asked = [
        name
        for name, value in (
            ("negatives", settings.negatives),
            ("neighbourhood", settings.neighbourhood - 1),
        )
        if value
    ]
    if asked and not any(len(entry) for source in sources for entry in source.negatives):
        raise ConfigError(
            f"{asked[0]} is {getattr(settings, asked[0])}, but no source has mined "
            "negatives "
            f"({', '.join(names)}), allowed: {int(asked[0] != 'negatives')}, or a "
            "file of them"
        )


class _Draws:
    """Which source each step takes, and how many steps took it before; drawn in blocks, so a late
    step is cheap.
    """

    def __init__(self, weights: list[float], seed: int) -> None:
        self._bounds = np.cumsum(np.array(weights) / math.fsum(weights))[:-1]
        self._seed = seed
        self._blocks: list[np.ndarray] = []
        # batches of each source before each block
        self._before = [np.zeros(len(weights), dtype=np.int64)]

    def at(self, step: int) -> tuple[int, int]:
        block, offset = divmod(step, _DRAWS_PER_BLOCK)
        while len(self._blocks) <= block:
            self._draw_block()
        source = int(self._blocks[block][offset])
        return source, int(
            self._before[block][source] + np.count_nonzero(self._blocks[block][:offset] == source)
        )

    def _draw_block(self) -> None:
        uniform = np.random.default_rng([self._seed, 0, len(self._blocks)]).random(_DRAWS_PER_BLOCK)
        block = np.searchsorted(self._bounds, uniform, side="right").astype(np.uint16)
        self._blocks.append(block)
        self._before.append(self._before[-1] + np.bincount(block, minlength=len(self._before[0])))


class _Deck:
    """The cards of one source: its positive documents, each with the queries that it answers."""

    def __init__(self, source: Source, settings: _Settings) -> None:
        self.source = source
        self._settings = settings
        self._key = [
            settings.seed,
            int.from_bytes(hashlib.sha256(source.name.encode()).digest()[:8], "little"),
        ]
        self._same = merge_equal(source.documents)
        self._twins = _find_twins(source.queries)
        self._make_cards()
        self._near = self._find_neighbours() if settings.neighbourhood > 1 else None
        self._orders: dict[int, np.ndarray] = {}
        if len(self._documents) < settings.queries:
            raise ConfigError(
                f"source {source.name!r} has {len(self._documents)} different "
                "positive documents, fewer "
                f"than the {settings.queries} of a batch, allowed: smaller batches, "
                "or to leave this "
                "source out"
            )

    def _make_cards(self) -> None:
        """Card c: document ``documents[c]`` and the queries ``members[starts[c]:starts[c + 1]]``,
        in seeded order.
        """
        keys = np.unique(pair_keys(self.source.positives, self._same))
        queries, documents = np.divmod(self._rng(1).permutation(keys), len(self._same))
        self._documents, cards = np.unique(documents, return_inverse=True)
        self._members = queries[np.argsort(cards, kind="stable")]
        self._sizes = np.bincount(cards, minlength=len(self._documents))
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)])

    def _find_neighbours(self) -> tuple[np.ndarray, np.ndarray]:
        """Cards among the negatives of query q, nearest first:
        ``cards[starts[q]:starts[q + 1]]``.
        """
        card_of = np.full(len(self._same), -1, dtype=np.int64)
        card_of[self._documents] = np.arange(len(self._documents))
        keys = pair_keys(self.source.negatives, self._same)
        _, first = np.unique(keys, return_index=True)
        queries, documents = np.divmod(keys[np.sort(first)], len(self._same))
        cards = card_of[documents]
        counts = np.bincount(queries[cards >= 0], minlength=len(self.source.queries))
        return np.concatenate([[0], np.cumsum(counts)]), cards[cards >= 0]

    def _rng(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([*self._key, *purpose])

    # The order of an epoch

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            order = self._make_order(epoch)
            self._orders = {
                key: value for key, value in self._orders.items() if key == epoch - 1
            } | {epoch: order}
        return self._orders[epoch]

    def _make_order(self, epoch: int) -> np.ndarray:
        # Only the end of the epoch before matters, and joining changes only the first batch of an
        # epoch: so the
        # epochs need no walk from the first one, unless they are so short that this first batch
        # reaches the end.
        first = max(epoch - 1, 0) if len(self._documents) >= 2 * self._settings.queries else 0
        known = [key for key in self._orders if first <= key < epoch]
        start = max(known, default=first)
        order = self._orders[start] if known else self._shuffle(start)
        for number in range(start + 1, epoch + 1):
            order = self._join(order, self._shuffle(number), number)
        return order

    def _join(self, before: np.ndarray, order: np.ndarray, epoch: int) -> np.ndarray:
        """The order, its first cards being others than those in the same batch, from the end of the
        epoch before.
        """
        taken = epoch * len(order) % self._settings.queries
        if not taken:
            return order
        free = np.flatnonzero(~np.isin(order, before[-taken:]))[: self._settings.queries - taken]
        return np.concatenate([order[free], np.delete(order, free)])

    def _shuffle(self, epoch: int) -> np.ndarray:
        order = self._rng(2, epoch).permutation(len(self._documents))
        return order if self._near is None else self._gather(order, epoch, *self._near)

    def _gather(
        self, order: np.ndarray, epoch: int, starts: np.ndarray, near: np.ndarray
    ) -> np.ndarray:
        queries, most = self._settings.queries, self._settings.neighbourhood - 1
        first_query = self._members[
            self._starts[:-1] + epoch * self._settings.queries_per_positive % self._sizes
        ]
        begins, ends = starts[first_query].tolist(), starts[first_query + 1].tolist()
        free = np.ones(len(order), dtype=bool)
        gathered: list[int] = []
        # of the first batch: neighbours do not go beyond the end of a batch
        opened = epoch * len(order) % queries
        for card in order.tolist():
            if not free[card]:
                continue
            free[card] = False
            gathered.append(card)
            room = min(most, -(opened + len(gathered)) % queries)
            if room and begins[card] < ends[card]:
                cards = near[begins[card] : ends[card]]
                cards = cards[free[cards]][:room]
                free[cards] = False
                gathered.extend(cards.tolist())
        return np.array(gathered, dtype=np.int64)

    # One batch

    def deal(self, number: int) -> Batch:
        """The batch of this number (from 0) of this source."""
        rng = self._rng(3, number)
        drawn = list(self._draw_cards(number))
        columns = {document: column for column, (document, _) in enumerate(drawn)}
        ends = []
        for _, queries in drawn:
            self._add_negatives(queries, columns, rng)
            ends.append(len(columns))
        queries = [query for _, queries in drawn for query in queries]
        positive_Q = np.repeat(
            np.arange(len(drawn), dtype=np.int64), [len(queries) for _, queries in drawn]
        )
        texts = self.source.documents
        return Batch(
            source=self.source.name,
            queries=[self.source.queries[query] for query in queries],
            documents=[texts[document] for document in columns],
            positive_Q=positive_Q,
            allowed_QD=self._allow(queries, positive_Q, columns),
            own_QD=_own(positive_Q, ends),
            scores_QD=self._find_scores(queries, columns),
        )

    def _draw_cards(self, number: int) -> Iterator[tuple[int, list[int]]]:
        """(document, its queries in this epoch) for each card of a batch."""
        most = self._settings.queries_per_positive
        first = number * self._settings.queries
        for position in range(first, first + self._settings.queries):
            epoch, offset = divmod(position, len(self._documents))
            card = self._order(epoch)[offset]
            start, size = int(self._starts[card]), int(self._sizes[card])
            turns = range(epoch * most, epoch * most + min(most, size))
            yield (
                int(self._documents[card]),
                [int(self._members[start + turn % size]) for turn in turns],
            )

    def _add_negatives(
        self, queries: list[int], columns: dict[int, int], rng: np.random.Generator
    ) -> None:
        if not self._settings.negatives:
            return
        known = set().union(*(self._known(query) for query in queries))
        candidates = self._same[np.concatenate([self.source.negatives[query] for query in queries])]
        wanted = len(columns) + self._settings.negatives
        for document in rng.permutation(candidates).tolist():
            if len(columns) == wanted:
                return
            if document not in columns and document not in known:
                columns[document] = len(columns)

    def _known(self, query: int) -> set[int]:
        """The positives of all queries of this text."""
        twins = self._twins.get(query, (query,))
        return {
            document
            for twin in twins
            for document in self._same[self.source.positives[twin]].tolist()
        }

    def _allow(
        self, queries: list[int], positive_Q: np.ndarray, columns: dict[int, int]
    ) -> np.ndarray:
        allowed_QD = np.ones((len(queries), len(columns)), dtype=bool)
        for row, query in enumerate(queries):
            others = [columns[document] for document in self._known(query) if document in columns]
            allowed_QD[row, others] = False
        allowed_QD[np.arange(len(queries)), positive_Q] = True
        return allowed_QD

    def _find_scores(self, queries: list[int], columns: dict[int, int]) -> np.ndarray | None:
        if self.source.scores is None:
            return None
        scores_QD = np.full((len(queries), len(columns)), np.nan, dtype=np.float32)
        for row, query in enumerate(queries):
            documents = self._same[
                np.concatenate([self.source.positives[query], self.source.negatives[query]])
            ]
            for document, score in zip(documents.tolist(), self.source.scores[query], strict=True):
                if document in columns:
                    scores_QD[row, columns[document]] = score
        return scores_QD

    def describe(self, share: float) -> dict[str, Any]:
        source, steps = self.source, len(self._documents) / self._settings.queries
        return {
            "name": source.name,
            "queries": len(source.queries),
            "documents": len(source.documents),
            "positives": sum(map(len, source.positives)),
            "negatives": sum(map(len, source.negatives)),
            "positive_documents": len(self._documents),
            "share": share,
            "steps_per_epoch": steps,
            "epoch_steps": steps / share,
        }


def _own(positive_Q: np.ndarray, ends: Sequence[int]) -> np.ndarray:
    """Columns of each query's positive, and of the negatives of its card, which end at
    ``ends[card]``.
    """
    own_QD = np.zeros((len(positive_Q), ends[-1]), dtype=bool)
    starts = [len(ends), *ends[:-1]]
    for row, card in enumerate(positive_Q.tolist()):
        own_QD[row, card] = True
        own_QD[row, starts[card] : ends[card]] = True
    return own_QD


def _find_twins(queries: Sequence[str]) -> dict[int, list[int]]:
    """For each query whose text stands there more than once: all the queries of this text."""
    first = merge_equal(queries)
    again = np.flatnonzero(first != np.arange(len(first)))
    groups: dict[int, list[int]] = {}
    for query in again.tolist():
        groups.setdefault(int(first[query]), [int(first[query])]).append(query)
    return {query: group for group in groups.values() for query in group}
