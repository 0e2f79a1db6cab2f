"""Small Java objects that writing, reading and checking share."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from sparse_ir.data import records
from sparse_ir.engines.base import Bm25
from sparse_ir.engines.lucene import java
from sparse_ir.engines.lucene.terms import DELIMITER
from sparse_ir.errors import DamagedError

Kind = Literal["impact", "bm25"]


def open_directory(folder: Path) -> Any:
    # Java's current folder stays where it was when its machine started
    name = str(folder.absolute())
    path = java.java_class("java.nio.file.Paths").get(name)
    return java.java_class("org.apache.lucene.store.FSDirectory").open(path)


def make_similarity(kind: Kind, parameters: Bm25) -> Any:
    if kind == "impact":
        return java.java_class("io.anserini.search.similarity.ImpactSimilarity")()
    return java.java_class("org.apache.lucene.search.similarities.BM25Similarity")(
        parameters.k1, parameters.b
    )


def make_analyzer(kind: Kind) -> Any:
    if kind == "bm25":
        return java.java_class("io.anserini.analysis.DefaultEnglishAnalyzer").newDefaultInstance()
    tokenizer_options = java.java_map({"maxTokenLen": "65536"})
    filter_options = java.java_map({"delimiter": DELIMITER})
    builder = java.java_class("org.apache.lucene.analysis.custom.CustomAnalyzer").builder()
    builder.withTokenizer("whitespace", tokenizer_options)
    builder.addTokenFilter("delimitedTermFrequency", filter_options)
    return builder.build()


def analyze(texts: Iterable[str]) -> Iterator[list[str]]:
    """The terms of each text in order, repetitions kept: the analysis that ``write_texts`` and
    ``search_text`` use.

    Anserini's default for English: standard tokens, lower case, stop words out, Porter's stems. An
    empty text gives an empty list. Raises ``DataError`` for a text with a lone surrogate, which
    Java cannot take.
    """
    analyzer, mapper = (
        make_analyzer("bm25"),
        java.java_class("com.fasterxml.jackson.databind.ObjectMapper")(),
    )
    utilities = java.java_class("io.anserini.analysis.AnalyzerUtils")
    for position, text in enumerate(texts):
        with java.translated_errors(f"text {position} could not be analysed"):
            records.check_text(text, f"text {position}")
            found = utilities.analyze(analyzer, text)
            terms = mapper.writeValueAsString(found)
        yield json.loads(terms)


def check_index(folder: Path) -> None:
    """Run Lucene's CheckIndex over every file; raises ``DamagedError`` with its finding."""
    with java.translated_errors(f"{folder} is damaged", DamagedError):
        directory = open_directory(folder)
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
        problems = [
            line.strip()
            for line in log.toString().splitlines()
            if "FAILED" in line or "Exception" in line
        ]
        raise DamagedError(
            f"{folder} is damaged: {'; '.join(problems[:2]) or 'CheckIndex says it is not clean'}"
        )


def lucene_version() -> str:
    """The version of Lucene in Pyserini's jar, for example ``9.9.1``."""
    version = java.java_class("org.apache.lucene.util.Version").LATEST
    return str(version.toString())


def run_threads(tasks: Sequence[Callable[[], None]]) -> None:
    """Run every task in a thread of its own that leaves Java in order; the first exception is
    raised here.
    """
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
