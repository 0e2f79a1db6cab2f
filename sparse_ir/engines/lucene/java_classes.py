"""Java classes in the narrow form in which a search calls them, and the JSON that crosses over.

A call from Python to Java costs microseconds, so hits come back as one JSON text and the boosts of
a query go over as another. Narrow classes declare one signature for each method that is called,
which saves pyjnius the choice between overloads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from sparse_ir.engines.lucene import java
from sparse_ir.errors import JavaError

_QUERY = "Lorg/apache/lucene/search/Query;"
_SHARED_METHODS = {
    "setSimilarity": "(Lorg/apache/lucene/search/similarities/Similarity;)V",
    "setQueryCache": "(Lorg/apache/lucene/search/QueryCache;)V",
}
_COUNT_ALL = 2**31 - 1  # hits to count, and so to score, before any may be skipped


@functools.lru_cache(maxsize=1)
def top_searcher_class() -> Any:
    """``IndexSearcher`` whose ``search(query, k)`` may skip documents outside the best ``k``."""
    return _searcher_class(f"({_QUERY}I)Lorg/apache/lucene/search/TopDocs;")


@functools.lru_cache(maxsize=1)
def collecting_searcher_class() -> Any:
    """``IndexSearcher`` whose ``search(query, manager)`` takes a collector manager."""
    return _searcher_class(
        f"({_QUERY}Lorg/apache/lucene/search/CollectorManager;)Ljava/lang/Object;"
    )


@functools.lru_cache(maxsize=1)
def explaining_searcher_class() -> Any:
    """``IndexSearcher`` that says how scores come about: ``explain(weight, number)``.

    Java keeps this method from other packages, since it goes around the public one, which prepares
    the query again for each document.
    """
    name = "org.apache.lucene.search.IndexSearcher"
    constructor = "(Lorg/apache/lucene/index/IndexReader;)V"
    weight = "Lorg/apache/lucene/search/Weight;"
    return java.narrow_class(
        name,
        constructor,
        rewrite=f"({_QUERY}){_QUERY}",
        createWeight=f"({_QUERY}Lorg/apache/lucene/search/ScoreMode;F){weight}",
        explain=f"({weight}I)Lorg/apache/lucene/search/Explanation;",
        **_SHARED_METHODS,
    )


def _searcher_class(search: str) -> Any:
    name = "org.apache.lucene.search.IndexSearcher"
    constructor = "(Lorg/apache/lucene/index/IndexReader;)V"
    return java.narrow_class(name, constructor, search=search, **_SHARED_METHODS)


@functools.lru_cache(maxsize=1)
def sum_query_class() -> Any:
    """``DisjunctionMaxQuery``, which Lucene rewrites to a plain sum for a tie breaker of 1."""
    name = "org.apache.lucene.search.DisjunctionMaxQuery"
    return java.narrow_class(name, "(Ljava/util/Collection;F)V")


def collector_maker() -> Callable[[int], Any]:
    """A function that makes the collector of the ``k`` best of all matches.

    Lucene 10 has a class for it, Lucene 9 a method.
    """
    try:
        manager_class = java.java_class("org.apache.lucene.search.TopScoreDocCollectorManager")
    except JavaError:
        collector_class = java.java_class("org.apache.lucene.search.TopScoreDocCollector")
        return lambda k: collector_class.createSharedManager(k, None, _COUNT_ALL)
    return lambda k: manager_class(k, _COUNT_ALL)


def hits_writer() -> Any:
    """A Jackson mapper that writes ``TopDocs`` as ``[[[score, document number], ...]]``.

    That takes half the time and a third of the text of JSON objects.
    """
    writer = java.java_class("com.fasterxml.jackson.databind.ObjectMapper")()
    array = java.java_class("com.fasterxml.jackson.annotation.JsonFormat$Shape").ARRAY
    form = java.java_class("com.fasterxml.jackson.annotation.JsonFormat$Value").forShape(array)
    ignored = java.java_class("com.fasterxml.jackson.annotation.JsonIgnoreProperties$Value")
    for name, unused in (("TopDocs", "totalHits"), ("ScoreDoc", "shardIndex")):
        left_out = ignored.forIgnoredProperties(unused)
        written = java.class_object(f"org.apache.lucene.search.{name}")
        override = writer.configOverride(written)
        override.setFormat(form)
        override.setIgnorals(left_out)
    return writer


def boosts_reader() -> Any:
    """A Jackson reader that turns a JSON object into a Java map from terms to Floats."""
    mapper = java.java_class("com.fasterxml.jackson.databind.ObjectMapper")()
    number = java.class_object("java.lang.Float")
    return mapper.readerForMapOf(number)


def term_query(field: str, term: str) -> Any:
    """A ``TermQuery`` of one term in a Lucene field."""
    place = java.java_class("org.apache.lucene.index.Term")(field, term)
    return java.java_class("org.apache.lucene.search.TermQuery")(place)


def boosted(query: Any, boost: float) -> Any:
    """A query whose scores are multiplied by ``boost``."""
    return java.java_class("org.apache.lucene.search.BoostQuery")(query, float(boost))
