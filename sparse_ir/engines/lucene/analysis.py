"""Texts to terms by Lucene's analyzers: one for each language, and two that know no language.

A call from Python to Java costs microseconds and each Java object that comes back costs many, so an
analyzer and a JSON writer are joined inside Java to one function from a text to a JSON list.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sparse_ir.data import records
from sparse_ir.engines.lucene import java
from sparse_ir.errors import ConfigError

AnalyzerName = Literal["language", "standard", "whitespace"]
ANALYZERS: tuple[str, ...] = get_args(AnalyzerName)

_LUCENE = "org.apache.lucene.analysis."
_ENGLISH = "io.anserini.analysis.DefaultEnglishAnalyzer"  # the analyzer of the BM25 baseline
# the class of each language, by its ISO 639 code
LANGUAGES = {
    "ar": _LUCENE + "ar.ArabicAnalyzer",
    "bg": _LUCENE + "bg.BulgarianAnalyzer",
    "bn": _LUCENE + "bn.BengaliAnalyzer",
    "ca": _LUCENE + "ca.CatalanAnalyzer",
    "ckb": _LUCENE + "ckb.SoraniAnalyzer",
    "cs": _LUCENE + "cz.CzechAnalyzer",
    "da": _LUCENE + "da.DanishAnalyzer",
    "de": _LUCENE + "de.GermanAnalyzer",
    "el": _LUCENE + "el.GreekAnalyzer",
    "en": _ENGLISH,
    "es": _LUCENE + "es.SpanishAnalyzer",
    "et": _LUCENE + "et.EstonianAnalyzer",
    "eu": _LUCENE + "eu.BasqueAnalyzer",
    "fa": _LUCENE + "fa.PersianAnalyzer",
    "fi": _LUCENE + "fi.FinnishAnalyzer",
    "fr": _LUCENE + "fr.FrenchAnalyzer",
    "ga": _LUCENE + "ga.IrishAnalyzer",
    "gl": _LUCENE + "gl.GalicianAnalyzer",
    "hi": _LUCENE + "hi.HindiAnalyzer",
    "hu": _LUCENE + "hu.HungarianAnalyzer",
    "hy": _LUCENE + "hy.ArmenianAnalyzer",
    "id": _LUCENE + "id.IndonesianAnalyzer",
    "it": _LUCENE + "it.ItalianAnalyzer",
    "ja": _LUCENE + "ja.JapaneseAnalyzer",
    "ko": _LUCENE + "cjk.CJKAnalyzer",
    "lt": _LUCENE + "lt.LithuanianAnalyzer",
    "lv": _LUCENE + "lv.LatvianAnalyzer",
    "ne": _LUCENE + "ne.NepaliAnalyzer",
    "nl": _LUCENE + "nl.DutchAnalyzer",
    "no": _LUCENE + "no.NorwegianAnalyzer",
    "pl": _LUCENE + "morfologik.MorfologikAnalyzer",
    "pt": _LUCENE + "pt.PortugueseAnalyzer",
    "pt-br": _LUCENE + "br.BrazilianAnalyzer",
    "ro": _LUCENE + "ro.RomanianAnalyzer",
    "ru": _LUCENE + "ru.RussianAnalyzer",
    "sr": _LUCENE + "sr.SerbianAnalyzer",
    "sv": _LUCENE + "sv.SwedishAnalyzer",
    "ta": _LUCENE + "ta.TamilAnalyzer",
    "te": _LUCENE + "te.TeluguAnalyzer",
    "th": _LUCENE + "th.ThaiAnalyzer",
    "tr": _LUCENE + "tr.TurkishAnalyzer",
    "uk": _LUCENE + "uk.UkrainianMorfologikAnalyzer",
    "zh": _LUCENE + "cjk.CJKAnalyzer",
}
_WITHOUT_LANGUAGE = {
    "standard": _LUCENE + "standard.StandardAnalyzer",
    "whitespace": _LUCENE + "core.WhitespaceAnalyzer",
}


@dataclass(frozen=True)
class AnalyzerSettings:
    """Which analyzer reads texts and queries.

    ``analyzer``: "language" removes the stop words and the endings of ``language``; "standard" cuts
    words and lowers their case; "whitespace" only cuts at white space. The last two ignore
    ``language``. Raises ``ConfigError`` for an unknown name.
    """

    analyzer: str = "language"
    language: str = "en"

    def __post_init__(self) -> None:
        if self.analyzer not in ANALYZERS:
            raise ConfigError(
                f"analyzer is {self.analyzer!r}; it must be one of {', '.join(ANALYZERS)}"
            )
        if self.language not in LANGUAGES:
            raise ConfigError(
                f"language is {self.language!r}; it must be one of {', '.join(LANGUAGES)}"
            )

    @property
    def class_name(self) -> str:
        """The Java class of the analyzer."""
        if self.analyzer == "language":
            return LANGUAGES[self.language]
        return _WITHOUT_LANGUAGE[self.analyzer]


class TextAnalyzer:
    """An analyzer of texts; safe to use from several threads. Starts Java."""

    def __init__(self, settings: AnalyzerSettings | None = None) -> None:
        settings = settings or AnalyzerSettings()
        self._analyze = _make_function(settings.class_name)

    def terms(self, text: str) -> list[str]:
        """The terms of a text in order, repetitions kept.

        Raises ``DataError`` for a text with a lone surrogate, which Java cannot take.
        """
        records.check_text(text)
        with java.translated_errors("the text could not be analysed"):
            written = self._analyze.invokeWithArguments([text])
        terms: list[str] = json.loads(written)
        return terms


@functools.lru_cache(maxsize=len(LANGUAGES) + len(_WITHOUT_LANGUAGE))
def _make_function(class_name: str) -> Any:
    """A Java method handle from a text to the JSON list of its terms."""
    analyzer = make_analyzer(class_name)
    mapper = java.java_class("com.fasterxml.jackson.databind.ObjectMapper")()
    handles = java.java_class("java.lang.invoke.MethodHandles")
    types = java.java_class("java.lang.invoke.MethodType")
    analyzer_class = java.class_object("org.apache.lucene.analysis.Analyzer")
    list_class = java.class_object("java.util.List")
    object_class = java.class_object("java.lang.Object")
    string_class = java.class_object("java.lang.String")
    utilities = java.class_object("io.anserini.analysis.AnalyzerUtils")
    mapper_class = java.class_object("com.fasterxml.jackson.databind.ObjectMapper")
    lookup = handles.publicLookup()
    analyze_type = types.methodType(list_class, analyzer_class, string_class)
    unbound_analyze = lookup.findStatic(utilities, "analyze", analyze_type)
    analyze = unbound_analyze.bindTo(analyzer)
    write_type = types.methodType(string_class, object_class)
    unbound_write = lookup.findVirtual(mapper_class, "writeValueAsString", write_type)
    write_object = unbound_write.bindTo(mapper)
    write_list_type = types.methodType(string_class, list_class)
    write_list = write_object.asType(write_list_type)
    joined = handles.filterReturnValue(analyze, write_list)
    return java.narrow_cast(
        joined,
        "java.lang.invoke.MethodHandle",
        invokeWithArguments="([Ljava/lang/Object;)Ljava/lang/Object;",
    )


def make_analyzer(class_name: str = _ENGLISH) -> Any:
    """A Java analyzer with the defaults of its class."""
    analyzer_class = java.java_class(class_name)
    if class_name == _ENGLISH:
        return analyzer_class.newDefaultInstance()
    return analyzer_class()
