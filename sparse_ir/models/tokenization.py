"""Tokenizers: rules, vocabulary, special tokens, lengths."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer, normalizers

from sparse_ir import extras
from sparse_ir.errors import DataError, ModelError, first_line
from sparse_ir.storage import files


class Tokens(NamedTuple):
    """A text as a network reads it; only the states at ``pooled`` positions count (None: all of
    them).
    """

    ids: np.ndarray  # int32
    pooled: np.ndarray | None = None


def load_owner(folder: Path) -> Any:
    with extras.importing():
        import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"{folder}: the tokenizer cannot be loaded ({first_line(error)})"
        ) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelError(
            f"{folder}: {type(tokenizer).__name__} has no fast form "
            "(tokenizer.json); convert it first"
        )
    return tokenizer


def rules_of(owner: Any, lowercase: bool) -> Tokenizer:
    """A private copy of the tokenizer; ``lowercase`` goes before its own normalizer unless that
    does so already.
    """
    copy = Tokenizer.from_str(owner.backend_tokenizer.to_str())
    copy.no_padding()
    if lowercase:
        steps: Any = copy.normalizer
        sequence = type(steps).__name__ == "Sequence"
        listed = list(steps) if sequence else [] if steps is None else [steps]
        if not any(isinstance(step, normalizers.Lowercase) for step in listed):
            copy.normalizer = normalizers.Sequence([normalizers.Lowercase(), *listed])
    return copy


def cut_at(tokenizer: Tokenizer, max_length: int | None) -> Tokenizer:
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    if max_length is not None:
        copy.enable_truncation(max_length)
    return copy


def stated_length(owner: Any) -> int | None:
    """The tokenizer's own limit; transformers writes 1e30 for none."""
    return int(owner.model_max_length) if owner.model_max_length < 10**9 else None


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 of the tokenizer's JSON without its padding and truncation, which are state and not
    rules.
    """
    rules = json.loads(tokenizer.to_str())
    rules.update(padding=None, truncation=None)
    return files.sha256_of_json(rules)


def find_terms(tokenizer: Tokenizer, names: Sequence[str], text: str) -> list[tuple[str, int, int]]:
    """``(name of the token, start, end)`` in characters for each token of a text; ``names`` are by
    token id.
    """
    found = without_state(tokenizer).encode(text, add_special_tokens=False)
    return [
        (names[token_id], *place) for token_id, place in zip(found.ids, found.offsets, strict=True)
    ]


def vocabulary_of(tokenizer: Tokenizer, size: int) -> list[str]:
    """``size`` distinct token strings, position = token id; ids without a token are named
    ``[unused-<id>]``.
    """
    names: list[str | None] = [None] * size
    taken = tokenizer.get_vocab(with_added_tokens=True)
    for token, token_id in taken.items():
        names[token_id] = token
    return [
        _reserved_name(position, taken) if name is None else name
        for position, name in enumerate(names)
    ]


def special_token_ids(tokenizer: Tokenizer) -> list[int]:
    """Ascending ids of the special tokens and of the unknown token."""
    special = {
        token_id
        for token_id, token in tokenizer.get_added_tokens_decoder().items()
        if token.special
    }
    unknown = getattr(tokenizer.model, "unk_token", None)
    unknown_id = tokenizer.token_to_id(unknown) if unknown else None
    if type(tokenizer.model).__name__ == "Unigram":  # names it by its id, and only in its JSON
        unknown_id = json.loads(tokenizer.to_str())["model"]["unk_id"]
    return sorted(special if unknown_id is None else special | {unknown_id})


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a ``tokenizer.json``; raises ``DataError`` when it is missing or broken."""
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    # the tokenizers library raises bare Exception for every defect of the file
    except Exception as error:
        raise DataError(
            f"{path} is no tokenizer.json of the tokenizers library ({error})"
        ) from error


def without_state(tokenizer: Tokenizer) -> Tokenizer:
    """A private copy: padding and truncation that a file or another user has switched on must not
    leak in.
    """
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_padding()
    copy.no_truncation()
    return copy


def id_limit(tokenizer: Tokenizer) -> int:
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def _reserved_name(token_id: int, taken: Mapping[str, int]) -> str:
    name = f"[unused-{token_id}]"
    while name in taken:
        name = f"[{name}]"
    return name
