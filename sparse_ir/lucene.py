"""The bridge to Lucene: writes impact and BM25 postings, checks them, opens them and searches.

It talks to the classes inside Pyserini's jar directly and knows nothing of manifests, encoders or rules (see
``indexes``). An impact is stored as the term frequency; Anserini's ``ImpactSimilarity`` scores a term as
``frequency x boost``, so a score is the dot product of two integer vectors, exact up to 2**24 (float32).
Tie rule: score descending, then doc_id descending, which is how trec_eval orders a run.

pyjnius keeps the receiver of ``object.method`` in a place shared by all objects of the class until the call is made.
Therefore every argument of a Java method is computed in a line before the call: a call among the arguments would let
another object, or another thread, take the receiver's place. The receiver itself stands in a variable: a temporary
one, as in ``a.b().c()``, is freed as soon as another thread takes its place, and Java then finds a null pointer.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import json
import operator
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import sparse

from sparse_ir import data, java
from sparse_ir.errors import DamagedError, DataError, JavaError
from sparse_ir.impacts import LARGEST_IMPACT

FIELD = "contents"  # the names that Anserini's readers expect
TITLE_FIELD = "title"
ID_FIELD = "id"
DELIMITER = "\x01"  # must not be white space to Java: 0x1c to 0x1f are
MAX_TERM_BYTES = 32766  # Lucene's own limit
Kind = Literal["impact", "bm25"]

_ESCAPE = "\u241b"  # SYMBOL FOR ESCAPE: rare, visible, and no white space
_BUFFER_MEGABYTES = 256.0
_MANY_HITS, _MANY_TERMS = 100, 24
_KEPT_TERMS = 2**14  # whose places in an open index are remembered, about 10 MB


class Hits(NamedTuple):
    """The result of one search as plain arrays, best first."""

    doc_ids: list[str]
    scores: np.ndarray  # float32 (k,)


class Bm25(NamedTuple):
    """Parameters of BM25; the defaults are Anserini's."""

    k1: float = 0.9
    b: float = 0.4
    title: float = 0.0  # weight of the title as a field of its own (Anserini's "multifield"); 0: title and text in one


# ------------------------------------------------------------------------------------------------ terms


@functools.lru_cache(maxsize=2**16)
def term_of_token(token: str) -> str:
    """The Lucene term of a vocabulary token: reversible, and the token itself unless it would be cut or lost.

    White space, control characters, lone surrogates and the escape character become ``U+241B hex ;``; the empty token
    becomes ``U+241B ;``. Raises ``DataError`` for a term longer than Lucene's 32,766 bytes.
    """
    if token.isascii() and token.isprintable() and " " not in token and token:
        term = token
    else:
        term = "".join(f"{_ESCAPE}{ord(c):x};" if _needs_escape(c) else c for c in token) or f"{_ESCAPE};"
    if len(term) * 3 > MAX_TERM_BYTES and len(term.encode()) > MAX_TERM_BYTES:
        raise DataError(f"token {token[:40]!r}... has {len(term.encode())} bytes; allowed are {MAX_TERM_BYTES}")
    return term


def token_of_term(term: str) -> str:
    """The vocabulary token that ``term_of_token`` turned into ``term``."""
    if _ESCAPE not in term:
        return term
    first, *rest = term.split(_ESCAPE)
    return first + "".join(_unescape(part) for part in rest)


def _needs_escape(character: str) -> bool:
    code = ord(character)
    return code < 0x20 or 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000 or character.isspace() or character == _ESCAPE


def _unescape(part: str) -> str:
    code, _, rest = part.partition(";")
    return (chr(int(code, 16)) if code else "") + rest


# ------------------------------------------------------------------------------------------------ writing

Batch = tuple[Sequence[str], sparse.csr_matrix]  # doc_ids (N,) and impacts int32 (N, V)
Texts = Iterable[tuple[str, ...]]  # doc_id and text; with a field for titles, the title too


def write_impacts(
    folder: Path,
    batches: Sequence[Callable[[], Batch]],
    vocabulary: Sequence[str],
    *,
    threads: int = 1,
    progress: Callable[[int], None] | None = None,
) -> None:
    """A new Lucene index in ``folder`` with one segment per thread; document numbers follow the order of the batches.

    Each thread fills an index of its own with a run of neighbouring batches; the parts are then put together in order,
    as they are: numbers, scores and ties do not depend on the number of threads.
    """
    vocabulary_text = np.array([term_of_token(token) + DELIMITER for token in vocabulary], dtype=object)
    groups = [group for group in np.array_split(np.arange(len(batches)), max(threads, 1)) if len(group)]
    report = progress or (lambda count: None)

    def fill(part: Path, group: np.ndarray) -> None:
        with _writing(part, "impact") as writer:
            for number in group:
                doc_ids, impacts = batches[number]()
                for doc_id, text in zip(doc_ids, _postings_texts(impacts, vocabulary_text), strict=True):
                    writer.add(doc_id, text)
                report(len(doc_ids))

    if len(groups) <= 1:
        fill(folder, groups[0] if groups else np.arange(0))
        return
    parts = [folder.with_name(f"{folder.name}.part{number}") for number in range(len(groups))]
    run_threads([functools.partial(fill, part, group) for part, group in zip(parts, groups, strict=True)])
    with _writing(folder, "impact", merge=False) as writer:
        writer.add_indexes(parts)
    for part in parts:
        shutil.rmtree(part)


def write_texts(folder: Path, texts: Texts, parameters: Bm25, progress: Callable[[int], None] | None = None) -> None:
    """A new Lucene index in ``folder`` for BM25: Anserini's English analysis of each field, lengths in the norms."""
    with _writing(folder, "bm25", parameters) as writer:
        for doc_id, *parts in texts:
            writer.add(doc_id, *parts)
            if progress is not None:
                progress(1)


def _postings_texts(impacts: sparse.csr_matrix, vocabulary_text: np.ndarray) -> Iterator[str]:
    """One line of ``token DELIMITER impact`` pairs for each row; Lucene's own token filter reads the numbers."""
    smallest, largest = int(impacts.data.min(initial=1)), int(impacts.data.max(initial=1))
    if smallest < 1 or largest > LARGEST_IMPACT:
        raise DataError(f"impacts from {smallest} to {largest} are not allowed; they must lie in 1..{LARGEST_IMPACT}")
    pairs = vocabulary_text[impacts.indices] + _number_texts()[impacts.data]
    bounds = impacts.indptr
    for row in range(impacts.shape[0]):
        yield "".join(pairs[bounds[row] : bounds[row + 1]].tolist())


@functools.lru_cache(maxsize=1)
def _number_texts() -> np.ndarray:
    """The text of every impact; looking it up is five times as fast as making it."""
    return np.array([f"{number} " for number in range(LARGEST_IMPACT + 1)], dtype=object)


class _Writer:
    """One IndexWriter and one document that is filled again and again: few calls from Python to Java."""

    def __init__(self, folder: Path, kind: Kind, parameters: Bm25 | None = None) -> None:
        self._directory = _open_directory(folder)
        analyzer, similarity = _analyzer(kind), _similarity(kind, parameters or Bm25())
        create = java.java_class("org.apache.lucene.index.IndexWriterConfig$OpenMode").CREATE
        # the default policy merges segments that are not neighbours, and document numbers would leave our order
        policy = java.java_class("org.apache.lucene.index.LogByteSizeMergePolicy")()
        # the default merges in threads of its own, which print a stack trace when the disk is full
        scheduler = java.java_class("org.apache.lucene.index.SerialMergeScheduler")()
        config = java.java_class("org.apache.lucene.index.IndexWriterConfig")(analyzer)
        config.setOpenMode(create)
        config.setRAMBufferSizeMB(_BUFFER_MEGABYTES)
        config.setUseCompoundFile(False)
        config.setSimilarity(similarity)
        config.setMergePolicy(policy)
        config.setMergeScheduler(scheduler)
        self._writer = java.java_class("org.apache.lucene.index.IndexWriter")(self._directory, config)
        names = [FIELD, TITLE_FIELD] if parameters is not None and parameters.title else [FIELD]
        self._document, self._id, self._sort_id, *self._texts = _reusable_document(kind, names)

    def add(self, doc_id: str, *texts: str) -> None:
        sort_key = doc_id.encode()
        self._id.setStringValue(doc_id)
        self._sort_id.setBytesValue(sort_key)
        for field, text in zip(self._texts, texts, strict=True):
            field.setStringValue(text)
        self._writer.addDocument(self._document)

    def add_indexes(self, folders: Sequence[Path]) -> None:
        directories = [_open_directory(folder) for folder in folders]
        self._writer.addIndexes(*directories)
        for directory in directories:
            directory.close()

    def finish(self, *, merge: bool) -> None:
        if merge:
            self._writer.forceMerge(1)
        self._writer.commit()
        self._writer.close()

    def release(self) -> None:
        """Give up what was not finished, and let go of the lock and the files."""
        if self._writer.isOpen():
            self._writer.rollback()
        self._directory.close()


@contextlib.contextmanager
def _writing(folder: Path, kind: Kind, parameters: Bm25 | None = None, *, merge: bool = True) -> Iterator[_Writer]:
    """A writer that is finished at the end of the block; Java's failures (a full disk, say) become one sentence."""
    with java.translated_errors("writing the Lucene index failed"):
        writer = _Writer(folder, kind, parameters)
        try:
            yield writer
            writer.finish(merge=merge)
        finally:
            writer.release()


def _reusable_document(kind: Kind, names: Sequence[str]) -> tuple[Any, ...]:
    text = java.cast("java.lang.CharSequence", java.java_class("java.lang.String")("x"))
    field_type = java.java_class("org.apache.lucene.document.FieldType")()
    frequencies, omit_norms = java.java_class("org.apache.lucene.index.IndexOptions").DOCS_AND_FREQS, kind == "impact"
    field_type.setIndexOptions(frequencies)
    field_type.setTokenized(True)
    field_type.setOmitNorms(omit_norms)
    field_type.freeze()
    stored = java.java_class("org.apache.lucene.document.Field$Store").YES
    fields = (
        java.java_class("org.apache.lucene.document.StringField")(ID_FIELD, "x", stored),
        java.java_class("org.apache.lucene.document.BinaryDocValuesField")(
            ID_FIELD, java.java_class("org.apache.lucene.util.BytesRef")(text)
        ),
        *(java.java_class("org.apache.lucene.document.Field")(
            name, text, java.cast("org.apache.lucene.index.IndexableFieldType", field_type)
        ) for name in names),
    )
    document = java.java_class("org.apache.lucene.document.Document")()
    for field in fields:
        document.add(field)
    return document, *fields


def _open_directory(folder: Path) -> Any:
    name = str(folder.absolute())  # Java's current folder stays where it was when its machine started
    path = java.java_class("java.nio.file.Paths").get(name)
    return java.java_class("org.apache.lucene.store.FSDirectory").open(path)


def _similarity(kind: Kind, parameters: Bm25) -> Any:
    if kind == "impact":
        return java.java_class("io.anserini.search.similarity.ImpactSimilarity")()
    return java.java_class("org.apache.lucene.search.similarities.BM25Similarity")(parameters.k1, parameters.b)


def _analyzer(kind: Kind) -> Any:
    if kind == "bm25":
        return java.java_class("io.anserini.analysis.DefaultEnglishAnalyzer").newDefaultInstance()
    tokenizer_options = java.java_map({"maxTokenLen": "65536"})
    filter_options = java.java_map({"delimiter": DELIMITER})
    builder = java.java_class("org.apache.lucene.analysis.custom.CustomAnalyzer").builder()
    builder.withTokenizer("whitespace", tokenizer_options)
    builder.addTokenFilter("delimitedTermFrequency", filter_options)
    return builder.build()


# ------------------------------------------------------------------------------------------------ searching


class Reader:
    """An open Lucene index, safe to use from several threads; a context manager.

    ``find_ids``: gives the doc_ids of document numbers; without it (an index that Pyserini built) they are read from
    Lucene's stored fields. Raises ``DamagedError`` when Lucene cannot open the folder.
    """

    def __init__(
        self, folder: Path, kind: Kind, find_ids: Callable[[Sequence[int]], list[str]] | None = None,
        parameters: Bm25 | None = None,
    ) -> None:
        with java.translated_errors(f"{folder} cannot be opened as a Lucene index", DamagedError):
            self._directory = _open_directory(folder)
            opened = java.java_class("org.apache.lucene.index.DirectoryReader").open(self._directory)
        self._reader = java.cast("org.apache.lucene.index.IndexReader", opened)
        limits = java.java_class("org.apache.lucene.search.IndexSearcher")
        limits.setMaxClauseCount(2**31 - 1)  # Lucene refuses more than 1,024 query terms by default
        parameters = parameters or Bm25()
        similarity = _similarity(kind, parameters)
        self._fields = {FIELD: 1.0, TITLE_FIELD: parameters.title} if parameters.title else {FIELD: 1.0}
        self._searcher, self._scanner = (searcher_class(self._reader) for searcher_class in _searcher_classes())
        for searcher in (self._searcher, self._scanner):
            searcher.setSimilarity(similarity)
            searcher.setQueryCache(None)
        self._make_manager = _manager_maker()
        self._generator = java.java_class("io.anserini.search.query.BagOfWordsQueryGenerator")()
        self._analyzer = _analyzer("bm25") if kind == "bm25" else None
        self._writer, self._boosts_reader = _hits_writer(), _boosts_reader()
        self._lists, self._sum = java.java_class("java.util.Arrays"), _sum_class()
        # not a method of this object, which would keep it alive after its last use, and with it Java's objects
        self._found_term = functools.lru_cache(maxsize=_KEPT_TERMS)(functools.partial(_find_term, self._searcher))
        self._find_ids = find_ids or self.stored_ids
        self.num_documents = int(self._reader.numDocs())

    def search_terms(self, terms: Sequence[str], boosts: Sequence[int], k: int) -> Hits:
        """The ``k`` best documents for ``sum boost x impact`` over the given Lucene terms; no terms give no hits."""
        if not terms:
            return Hits([], np.empty(0, np.float32))
        return self._top(self._impact_query(terms, boosts), k, len(terms))

    def find_candidates(self, terms: Sequence[str], boosts: Sequence[int], count: int) -> np.ndarray:
        """Numbers of the ``count`` best documents for the given Lucene terms, int64; ties by ascending number."""
        if not terms or not self.num_documents:
            return np.empty(0, np.int64)
        query, wanted = self._impact_query(terms, boosts), min(count, self.num_documents)
        return np.asarray(self._collect(query, wanted, _finds_all(count, len(terms)))[0], dtype=np.int64)

    def rank(self, numbers: np.ndarray, scores: np.ndarray, k: int) -> Hits:
        """The ``k`` best of documents ``(N,)`` that were scored elsewhere, float32 ``(N,)``, by the tie rule."""
        best = np.argsort(-scores, kind="stable")
        return self._order(numbers[best].tolist(), scores[best].tolist(), k)

    def search_text(self, text: str, k: int) -> Hits:
        """The ``k`` best documents by BM25 for an analysed text; a text without terms gives no hits."""
        return self._top(self._text_query(text), k)

    def score(self, doc_id: str, terms: Sequence[str], boosts: Sequence[int]) -> float:
        """The engine's score of one document; 0.0 when no term matches."""
        return self._score_within(doc_id, self._impact_query(terms, boosts))

    def score_text(self, doc_id: str, text: str) -> float:
        """The engine's BM25 score of one document for an analysed text; 0.0 when no term matches."""
        return self._score_within(doc_id, self._text_query(text))

    def score_terms(self, doc_id: str, boosts: Mapping[str, int]) -> dict[tuple[str, str], float]:
        """``(field, Lucene term)`` -> the engine's score of one document for this term alone, where it matches."""
        found = {}
        for field, weight in self._fields.items():
            for term, boost in boosts.items():
                query = _boosted(_term_query(field, term), boost * weight)
                if score := self._score_within(doc_id, query):
                    found[field, term] = score
        return found

    def has_document(self, doc_id: str) -> bool:
        """True when the index holds a document of this id."""
        place = java.java_class("org.apache.lucene.index.Term")(ID_FIELD, doc_id)
        return int(self._reader.docFreq(place)) > 0

    def statistics(self) -> dict[str, int]:
        """Whole-index counts as Lucene keeps them: documents, terms, postings, sum of the impacts; of all fields."""
        fields = [java.java_class("org.apache.lucene.index.MultiTerms").getTerms(self._reader, field)
                  for field in self._fields]
        filled = [terms for terms in fields if terms is not None]
        return {"documents": self.num_documents, "terms": sum(map(_count_terms, filled)),
                "postings": sum(int(terms.getSumDocFreq()) for terms in filled),
                "sum_impacts": sum(int(terms.getSumTotalTermFreq()) for terms in filled)}

    def document_frequencies(self, terms: Iterable[str]) -> dict[str, int]:
        """Documents that hold each Lucene term, summed over the fields that are searched; 0 for an unknown term."""
        term_class, found = java.java_class("org.apache.lucene.index.Term"), {}
        for term in terms:
            places = [term_class(field, term) for field in self._fields]
            found[term] = sum(int(self._reader.docFreq(place)) for place in places)
        return found

    def stored_ids(self, numbers: Sequence[int]) -> list[str]:
        """The stored doc_id of each document number, read from Lucene itself."""
        fields = self._reader.storedFields()
        documents = [fields.document(number) for number in map(int, numbers)]
        return [str(document.get(ID_FIELD)) for document in documents]

    def close(self) -> None:
        """Free the files and the memory map; using the reader afterwards is an error."""
        self._reader.close()
        self._directory.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _text_query(self, text: str) -> Any:
        data.check_text(text)
        where = FIELD if len(self._fields) == 1 else java.java_map(self._fields)
        return self._generator.buildQuery(where, self._analyzer, text)

    def _score_within(self, doc_id: str, query: Any) -> float:
        """The score of one document alone."""
        occur = java.java_class("org.apache.lucene.search.BooleanClause$Occur")
        builder = java.java_class("org.apache.lucene.search.BooleanQuery$Builder")()
        roles = (query, occur.MUST), (_term_query(ID_FIELD, doc_id), occur.FILTER)
        for part, role in roles:
            builder.add(part, role)
        restricted = builder.build()
        return float(np.float32(sum(self._collect(restricted, 1)[1])))

    def _impact_query(self, terms: Sequence[str], boosts: Sequence[int]) -> Any:
        """The sum over the terms. Java is called twice, not for each term: that would cost more than to search.

        Terms that count once, as under a folded rule, were found before; with boosts they come over as a JSON object.
        """
        if boosts.count(1) == len(boosts) == len(terms) == len(set(terms)):
            parts = [self._found_term(term) for term in terms]
            clauses = self._lists.asList(*parts)
            return self._sum(clauses, 1.0)  # the largest clause, and once the others: Lucene makes it a plain sum
        weights = dict.fromkeys(terms, 0)
        for term, boost in zip(terms, boosts, strict=True):
            weights[term] += boost
        text = json.dumps(weights)
        boosts_by_term = self._boosts_reader.readValue(text)
        return self._generator.buildQuery(FIELD, boosts_by_term)

    def _top(self, query: Any, k: int, num_terms: int = 1) -> Hits:
        """Lucene breaks ties by document number, so hits that tie with the last one are fetched until all are here."""
        if k < 1:
            raise DataError(f"{k} hits are not allowed; ask for at least 1")
        wanted = k + 4 + k // 8  # with room for hits that tie with the last: enough for 97 of 100 questions
        while True:
            wanted = max(1, min(wanted, self.num_documents))
            numbers, scores = self._collect(query, wanted, _finds_all(k, num_terms))
            if len(numbers) < wanted or wanted == self.num_documents or scores[-1] < scores[k - 1]:
                break
            wanted *= 4
        return self._order(numbers, scores, k)

    def _order(self, numbers: Sequence[int], scores: Sequence[float], k: int) -> Hits:
        """Hits in the order of the tie rule; the scores, descending, already stand right.

        Plain lists: for ten hits, as for a thousand, they are faster than arrays that numpy has to make first.
        """
        tied = bisect.bisect_right(scores, -scores[k - 1], key=operator.neg) if len(scores) > k else len(scores)
        doc_ids, scores = self._find_ids(numbers[:tied]), scores[:tied]
        if len(set(scores)) < tied:
            end = 0
            for _, group in itertools.groupby(scores):
                start, end = end, end + len(list(group))
                if end - start > 1:
                    doc_ids[start:end] = sorted(doc_ids[start:end], reverse=True)
        return Hits(doc_ids[:k], np.array(scores[:k], dtype=np.float32))

    def _collect(self, query: Any, k: int, find_all: bool = False) -> tuple[list[int], list[float]]:
        """Document numbers and scores of one search, brought over in a single transfer as JSON text.

        ``find_all``: score every match instead of passing over documents that cannot be among the best.
        """
        with java.translated_errors("the search failed", DamagedError):
            if find_all:
                manager = self._make_manager(k)
                found = self._scanner.search(query, manager)
            else:
                found = self._searcher.search(query, k)
            text = self._writer.writeValueAsString(found)
        (hits,) = json.loads(text)
        return [number for _, number in hits], [score for score, _ in hits]


def _count_terms(terms: Any) -> int:
    """Distinct terms; Lucene knows the number of one segment, those of several have to be walked."""
    known = int(terms.size())
    if known >= 0:
        return known
    walker = terms.iterator()
    count = 0
    while walker.next() is not None:  # not iter(walker.next, None): a kept method forgets its receiver
        count += 1
    return count


def _term_query(field: str, term: str) -> Any:
    return java.java_class("org.apache.lucene.search.TermQuery")(
        java.java_class("org.apache.lucene.index.Term")(field, term)
    )


def _find_term(searcher: Any, term: str) -> Any:
    """The query of one term, and with it the term's place in the index, which is then looked up no more."""
    place = java.java_class("org.apache.lucene.index.Term")(FIELD, term)
    with java.translated_errors("the search failed", DamagedError):
        states = java.java_class("org.apache.lucene.index.TermStates").build(searcher, place, True)
    return java.java_class("org.apache.lucene.search.TermQuery")(place, states)


def _finds_all(k: int, num_terms: int) -> bool:
    """True where it takes longer to find out what can be passed over than to score it.

    So it is for long queries, by a third, and for many hits, by up to a fifth; for few hits of short ones it is not,
    and the less so the larger the collection.
    """
    return k >= _MANY_HITS or num_terms > _MANY_TERMS


@functools.lru_cache(maxsize=1)
def _searcher_classes() -> tuple[Any, Any]:
    """``IndexSearcher`` for the best hits only, and for a collector manager."""
    query, shared = "Lorg/apache/lucene/search/Query;", {
        "setSimilarity": "(Lorg/apache/lucene/search/similarities/Similarity;)V",
        "setQueryCache": "(Lorg/apache/lucene/search/QueryCache;)V"}
    searches = (f"({query}I)Lorg/apache/lucene/search/TopDocs;",
                f"({query}Lorg/apache/lucene/search/CollectorManager;)Ljava/lang/Object;")
    name, constructor = "org.apache.lucene.search.IndexSearcher", "(Lorg/apache/lucene/index/IndexReader;)V"
    best, every = (java.narrow_class(name, constructor, search=search, **shared) for search in searches)
    return best, every


def _manager_maker() -> Callable[[int], Any]:
    """Makes what collects the ``k`` best of all matches; Lucene 10 has a class for it, Lucene 9 a method."""
    whole = 2**31 - 1  # hits that are counted, and therefore found, before any is passed over
    try:
        manager_class = java.java_class("org.apache.lucene.search.TopScoreDocCollectorManager")
    except JavaError:
        collector_class = java.java_class("org.apache.lucene.search.TopScoreDocCollector")
        return lambda k: collector_class.createSharedManager(k, None, whole)
    return lambda k: manager_class(k, whole)


@functools.lru_cache(maxsize=1)
def _sum_class() -> Any:
    return java.narrow_class("org.apache.lucene.search.DisjunctionMaxQuery", "(Ljava/util/Collection;F)V")


def _hits_writer() -> Any:
    """Writes ``TopDocs`` as ``[[[score, document number], ...]]``: half the time and a third of the text of objects."""
    writer = java.java_class("com.fasterxml.jackson.databind.ObjectMapper")()
    array = java.java_class("com.fasterxml.jackson.annotation.JsonFormat$Shape").ARRAY
    form = java.java_class("com.fasterxml.jackson.annotation.JsonFormat$Value").forShape(array)
    for name, unused in (("TopDocs", "totalHits"), ("ScoreDoc", "shardIndex")):
        ignored = java.java_class("com.fasterxml.jackson.annotation.JsonIgnoreProperties$Value")
        left_out = ignored.forIgnoredProperties(unused)
        written = java.class_object(f"org.apache.lucene.search.{name}")
        override = writer.configOverride(written)
        override.setFormat(form)
        override.setIgnorals(left_out)
    return writer


def _boosts_reader() -> Any:
    """Reads a JSON object as a Java map from terms to Floats."""
    mapper = java.java_class("com.fasterxml.jackson.databind.ObjectMapper")()
    number = java.class_object("java.lang.Float")
    return mapper.readerForMapOf(number)


def _boosted(query: Any, boost: float) -> Any:
    return java.java_class("org.apache.lucene.search.BoostQuery")(query, float(boost))


# ------------------------------------------------------------------------------------------------ analysis


def analyze(texts: Iterable[str]) -> Iterator[list[str]]:
    """The terms of each text in order, repetitions kept: the analysis that ``write_texts`` and ``search_text`` use.

    Anserini's default for English: standard tokens, lower case, stop words out, Porter's stems. An empty text gives an
    empty list. Raises ``DataError`` for a text with a lone surrogate, which Java cannot take.
    """
    analyzer, mapper = _analyzer("bm25"), java.java_class("com.fasterxml.jackson.databind.ObjectMapper")()
    utilities = java.java_class("io.anserini.analysis.AnalyzerUtils")
    for position, text in enumerate(texts):
        with java.translated_errors(f"text {position} could not be analysed"):
            data.check_text(text, f"text {position}")
            found = utilities.analyze(analyzer, text)
            terms = mapper.writeValueAsString(found)
        yield json.loads(terms)


# ------------------------------------------------------------------------------------------------ checking and threads


def check_index(folder: Path) -> None:
    """Run Lucene's CheckIndex over every file; raises ``DamagedError`` with its finding."""
    with java.translated_errors(f"{folder} is damaged", DamagedError):
        directory = _open_directory(folder)
        try:
            checker = java.java_class("org.apache.lucene.index.CheckIndex")(directory)
            log = java.java_class("java.io.ByteArrayOutputStream")()
            stream = java.java_class("java.io.PrintStream")(java.cast("java.io.OutputStream", log))
            checker.setInfoStream(stream)
            clean = bool(checker.checkIndex().clean)
            checker.close()
        finally:
            directory.close()
    if not clean:
        problems = [line.strip() for line in log.toString().splitlines() if "FAILED" in line or "Exception" in line]
        raise DamagedError(f"{folder} is damaged: {'; '.join(problems[:2]) or 'CheckIndex says it is not clean'}")


def lucene_version() -> str:
    """The version of Lucene in Pyserini's jar, for example ``9.9.1``."""
    version = java.java_class("org.apache.lucene.util.Version").LATEST
    return str(version.toString())


def run_threads(tasks: Sequence[Callable[[], None]]) -> None:
    """Run every task in a thread of its own that leaves Java in order; the first exception is raised here."""
    failures: list[BaseException] = []

    def guarded(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:  # handed to the caller below
            failures.append(error)
        finally:
            java.detach_thread()

    threads = [threading.Thread(target=guarded, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
