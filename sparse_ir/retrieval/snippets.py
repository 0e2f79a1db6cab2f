"""Snippets: the passage of a document that says why it was found.

A word of the document counts with what its terms add to the score. The passage is the stretch of
text whose distinct terms add most. Words that the query has as well are highlighted, except those
that add next to nothing (``the``). Terms that matched in another way (the encoder gave them to the
query, to the document, or to both) are listed beside the passage.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

PASSAGE_CHARACTERS = 240

# A word is a run of letters and digits; a sign of Chinese or Japanese is a word by itself.
_FIRST_SIGN = "\u3040"
_LAST_SIGN = "\u9fff"
_SIGNS = f"{_FIRST_SIGN}-{_LAST_SIGN}"
_WORD = re.compile(f"[{_SIGNS}]|[^\\W_{_SIGNS}]+")
# what is no letter or digit of ASCII -> a blank
_BLANKS = {code: " " for code in range(128) if not chr(code).isalnum()}
_SENTENCE_END = re.compile(r"[.!?]\s+|\n\s*\n|[。！？]")
_HIGHLIGHTED_SHARE = 0.1  # of the largest contribution: what a highlighted term adds at least
_KEPT_WORDS = 50_000  # whose terms are remembered, about 20 MB

_NO_WORDS: frozenset[str] = frozenset()

Span = tuple[int, int]  # the first character and the one after the last
Place = tuple[str, int, int]  # a term and its span in a text
FindTerms = Callable[[str], Sequence[Place]]


@dataclass(frozen=True)
class Snippet:
    """A passage of a document's text. Characters are counted as Python counts them."""

    text: str  # the passage as the document has it
    start: int  # its first character in the text of the document
    end: int  # the one after its last
    highlights: list[Span] = field(default_factory=list)  # in characters of the passage
    title_highlights: list[Span] = field(default_factory=list)  # in characters of the title
    # terms that are not in both texts -> what each adds to the score, the largest first
    expansions: dict[str, float] = field(default_factory=dict)

    def marked(self, before: str = "**", after: str = "**") -> str:
        """The passage with marks around each highlight."""
        return mark(self.text, self.highlights, before, after)

    def to_dict(self) -> dict[str, Any]:
        """The snippet for ``json.dumps``."""
        return asdict(self)


def mark(text: str, spans: Sequence[Span], before: str, after: str) -> str:
    """A text with marks around some spans, which are ascending and do not overlap."""
    parts = []
    reached = 0
    for start, end in spans:
        parts.append(text[reached:start])
        parts.append(f"{before}{text[start:end]}{after}")
        reached = end
    parts.append(text[reached:])
    return "".join(parts)


class _Table(NamedTuple):
    """The terms of the words that were read so far."""

    lengths: dict[str, dict[str, int]]  # word -> its terms and the characters that each covers
    words: dict[str, set[str]]  # term -> the words that have it


class WordTerms:
    """The terms in words, remembered from text to text; safe to use from several threads.

    ``find_terms`` says which terms a text holds, and where.
    """

    def __init__(self, find_terms: FindTerms) -> None:
        self._find_terms = find_terms
        self._table = _Table({}, {})

    def look_up(self, words: set[str]) -> _Table:
        """The terms of these words, and of others."""
        table = self._table
        unknown = words.difference(table.lengths)  # a difference of keys would copy them all
        if not unknown:
            return table
        if len(table.lengths) > _KEPT_WORDS:
            unknown = words
            table = _Table({}, {})
            self._table = table
        for word, terms in self._read(sorted(unknown)).items():
            for term in terms:
                table.words.setdefault(term, set()).add(word)
            table.lengths[word] = terms
        return table

    def _read(self, words: list[str]) -> dict[str, dict[str, int]]:
        """The terms of distinct words; each follows a blank, as in a text."""
        text = "".join(f" {word}" for word in words)
        places = iter(sorted(self._find_terms(text), key=lambda place: place[1:]))
        place = next(places, None)
        read: dict[str, dict[str, int]] = {}
        end = 0
        for word in words:
            start = end + 1
            end = start + len(word)
            lengths: dict[str, int] = {}
            while place is not None and place[1] < end:
                term, first, stop = place
                length = min(stop, end) - max(first, start)
                if length > 0:
                    lengths[term] = lengths.get(term, 0) + length
                place = next(places, None)
            read[word] = lengths
        return read


class _Word(NamedTuple):
    """A word in a text that has terms of the query."""

    start: int
    end: int
    terms: list[str]


def make_snippet(
    title: str, text: str, query: str, contributions: Mapping[str, float], word_terms: WordTerms
) -> Snippet:
    """The snippet of a document; ``contributions``: what each term adds to its score."""
    words = _words_of(text)
    title_words = _words_of(title)
    query_words = _words_of(query)
    table = word_terms.look_up(words | title_words | query_words)
    matched: dict[str, list[str]] = {}  # word -> its terms that score
    literal = set()
    for term in contributions:
        holders = table.words.get(term, _NO_WORDS)
        held = (words & holders) | (title_words & holders)
        for word in held:
            matched.setdefault(word, []).append(term)
        if held and not query_words.isdisjoint(holders):
            literal.add(term)
    scoring = {word: terms for word, terms in matched.items() if _covers(table, word, terms)}
    least = _HIGHLIGHTED_SHARE * max(contributions.values(), default=0.0)
    shown = {term for term in literal if contributions[term] >= least}
    highlighted = set()
    for word, terms in matched.items():
        if _covers(table, word, [term for term in terms if term in shown]):
            highlighted.add(word)

    found = _find_words(text, scoring)
    start, end = _find_passage(text, _best_words(found, contributions))
    highlights = []
    for place in found:
        is_inside = start <= place.start and place.end <= end
        if is_inside and text[place.start : place.end] in highlighted:
            highlights.append((place.start - start, place.end - start))
    title_places = _find_words(title, {word: scoring[word] for word in highlighted & title_words})
    title_highlights = [(place.start, place.end) for place in title_places]
    expansions = {term: part for term, part in contributions.items() if term not in literal}
    return Snippet(text[start:end], start, end, highlights, title_highlights, expansions)


def _words_of(text: str) -> set[str]:
    """The distinct words of a text."""
    if text.isascii():  # ten times faster than the pattern
        return set(text.translate(_BLANKS).split())
    return set(_WORD.findall(text))


def _covers(table: _Table, word: str, terms: Sequence[str]) -> bool:
    """True when the terms cover half of a word, so that a common ending alone is no match."""
    lengths = table.lengths[word]
    return bool(terms) and 2 * sum(lengths[term] for term in terms) >= len(word)


def _find_words(text: str, wanted: Mapping[str, list[str]]) -> list[_Word]:
    """Every place of some words in a text, in order. Searching for each beats reading all words."""
    found = []
    for word, terms in wanted.items():
        is_sign = _FIRST_SIGN <= word[0] <= _LAST_SIGN
        start = text.find(word)
        while start >= 0:
            end = start + len(word)
            is_whole = is_sign or not (
                _joins(text[start - 1 : start]) or _joins(text[end : end + 1])
            )
            if is_whole:
                found.append(_Word(start, end, terms))
            start = text.find(word, end)
    found.sort()
    return found


def _joins(neighbour: str) -> bool:
    """True when a neighbouring character belongs to the same word."""
    return neighbour.isalnum() and not _FIRST_SIGN <= neighbour <= _LAST_SIGN


def _best_words(words: Sequence[_Word], contributions: Mapping[str, float]) -> Span:
    """From where to where the words are whose distinct terms add most; (0, 0) without words."""
    best: Span = (0, 0)
    best_sum = 0.0
    left = 0
    inside: Counter[str] = Counter()
    total = 0.0
    for right, word in enumerate(words):
        for term in word.terms:
            if not inside[term]:
                total += contributions[term]
            inside[term] += 1
        while left < right and word.end - words[left].start > PASSAGE_CHARACTERS:
            for term in words[left].terms:
                inside[term] -= 1
                if not inside[term]:
                    total -= contributions[term]
            left += 1
        if total > best_sum * (1 + 1e-9):
            best = (words[left].start, word.end)
            best_sum = total
    return best


def _find_passage(text: str, words: Span) -> Span:
    """A passage around some words: from the start of a sentence if one is near, in whole words."""
    first, last = words
    last = min(last, first + PASSAGE_CHARACTERS)
    room = PASSAGE_CHARACTERS - (last - first)
    earliest = max(0, first - room)
    start = earliest
    sentence_ends = [match.end() for match in _SENTENCE_END.finditer(text, earliest, first)]
    if sentence_ends:
        start = sentence_ends[-1]
    elif earliest:
        start = _next_word(text, first - room // 2, first)
    end = start + PASSAGE_CHARACTERS
    if end < len(text):
        end = _previous_word_end(text, last, end)
    passage = text[start:end]
    start += len(passage) - len(passage.lstrip())
    return start, start + len(passage.strip())


def _next_word(text: str, start: int, limit: int) -> int:
    """The first start of a word from ``start`` on; ``start`` if no blank comes before ``limit``."""
    for position in range(start, limit):
        if text[position].isspace():
            return position + 1
    return start


def _previous_word_end(text: str, limit: int, end: int) -> int:
    """The last end of a word up to ``end``; ``end`` if no blank comes after ``limit``."""
    for position in range(end, limit - 1, -1):
        if text[position].isspace():
            return position
    return end
