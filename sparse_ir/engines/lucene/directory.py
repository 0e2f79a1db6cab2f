"""Lucene directories, and the similarity and analyzer of each kind of index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparse_ir.engines.lucene import java
from sparse_ir.engines.lucene.terms import DELIMITER


def open_directory(folder: Path) -> Any:
    """A Lucene directory over a folder."""
    # Java's current folder is the one in which its machine was started
    name = str(folder.absolute())
    path = java.java_class("java.nio.file.Paths").get(name)
    return java.java_class("org.apache.lucene.store.FSDirectory").open(path)


def open_directory_without_lock(folder: Path) -> Any:
    """A Lucene directory whose locks are not taken, for readers that must not write."""
    name = str(folder.absolute())
    path = java.java_class("java.nio.file.Paths").get(name)
    no_lock = java.java_class("org.apache.lucene.store.NoLockFactory").INSTANCE
    factory = java.cast("org.apache.lucene.store.LockFactory", no_lock)
    return java.java_class("org.apache.lucene.store.FSDirectory").open(path, factory)


def impact_similarity() -> Any:
    """Anserini's similarity for impacts: ``frequency x boost``."""
    return java.java_class("io.anserini.search.similarity.ImpactSimilarity")()


def impact_analyzer() -> Any:
    """An analyzer that reads ``term DELIMITER frequency`` pairs, separated by white space."""
    tokenizer_options = java.java_map({"maxTokenLen": "65536"})
    filter_options = java.java_map({"delimiter": DELIMITER})
    builder = java.java_class("org.apache.lucene.analysis.custom.CustomAnalyzer").builder()
    builder.withTokenizer("whitespace", tokenizer_options)
    builder.addTokenFilter("delimitedTermFrequency", filter_options)
    return builder.build()
