"""Lucene terms for vocabulary tokens: reversible, whatever characters a token holds."""

from __future__ import annotations

import functools

from sparse_ir.engines.base import SPARSE
from sparse_ir.errors import DataError

CONTENTS_FIELD = "contents"  # the names that Anserini's readers expect
TITLE_FIELD = "title"
ID_FIELD = "id"
DELIMITER = "\x01"  # must not be white space to Java: 0x1c to 0x1f are
MAX_TERM_BYTES = 32766  # Lucene's own limit
_ESCAPE = "\u241b"  # SYMBOL FOR ESCAPE: rare, visible, and no white space


def lucene_field(field: str) -> str:
    """The Lucene field that holds a field of an index; Pyserini finds the sparse one."""
    return CONTENTS_FIELD if field == SPARSE else field


@functools.lru_cache(maxsize=2**16)
def term_of_token(token: str) -> str:
    """The Lucene term of a vocabulary token: reversible, and mostly the token itself.

    Only what Lucene or Pyserini would cut or lose is rewritten.
    White space, control characters, lone surrogates and the escape character become ``U+241B hex
    ;``; the empty token becomes ``U+241B ;``. Raises ``DataError`` for a term longer than Lucene's
    32,766 bytes.
    """
    if token.isascii() and token.isprintable() and " " not in token and token:
        term = token
    else:
        term = (
            "".join(f"{_ESCAPE}{ord(c):x};" if _needs_escape(c) else c for c in token)
            or f"{_ESCAPE};"
        )
    if len(term) * 3 > MAX_TERM_BYTES and len(term.encode()) > MAX_TERM_BYTES:
        raise DataError(
            f"token {token[:40]!r}... has {len(term.encode())} bytes; allowed are {MAX_TERM_BYTES}"
        )
    return term


def token_of_term(term: str) -> str:
    """The vocabulary token that ``term_of_token`` turned into ``term``."""
    if _ESCAPE not in term:
        return term
    first, *rest = term.split(_ESCAPE)
    return first + "".join(_unescape(part) for part in rest)


def _needs_escape(character: str) -> bool:
    code = ord(character)
    return (
        code < 0x20
        or 0x7F <= code < 0xA0
        or 0xD800 <= code < 0xE000
        or character.isspace()
        or character == _ESCAPE
    )


def _unescape(part: str) -> str:
    code, _, rest = part.partition(";")
    return (chr(int(code, 16)) if code else "") + rest
