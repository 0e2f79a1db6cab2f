"""Tokenizers: rules, vocabulary, special tokens, lengths, folded terms.

L tokens of a text, V vocabulary.
"""

from __future__ import annotations

import functools
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer, normalizers
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from sparse_ir import extras
from sparse_ir.errors import DataError, ModelError, SparseIRWarning, first_line
from sparse_ir.models import model_files
from sparse_ir.storage import files, reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PLAIN_TEXT = re.compile(r"[A-Za-z0-9 !\"'(),\-./:;?]*")
_PLAIN_WORD = re.compile(r"[a-z0-9]+|[^a-z0-9 ]")
_NO_LIMIT = 10**9  # transformers writes 1e30 for a tokenizer without a limit
_SMALLEST_COVERAGE = 0.9  # share of the output rows that have a token


class Tokens(NamedTuple):
    """A text as a network reads it; only the states at ``pooled`` positions count (None: all)."""

    ids: np.ndarray  # integers [L]
    pooled: np.ndarray | None = None

    @property
    def pooled_positions(self) -> np.ndarray:
        """The positions that count."""
        return np.arange(len(self.ids)) if self.pooled is None else self.pooled

    @property
    def pooled_ids(self) -> np.ndarray:
        """The ids at the positions that count."""
        return self.ids if self.pooled is None else self.ids[self.pooled]


class TermPlace(NamedTuple):
    """A term in a text: its name, its first character, and the one after its last."""

    name: str
    start: int
    end: int


def load_hf_tokenizer(folder: Path, network: Path | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of transformers in a folder, and check that it belongs to its network.

    Args:
        folder: Where the tokenizer is.
        network: The folder of the network if that is another one. Its ``config.json`` states how
            many rows the output layer has.

    Raises ``ModelError`` when there is no tokenizer, when it has no fast form, and when
    ``check_tokenizer`` refuses it.
    """
    with extras.importing():
        import transformers

    model_files.check_tokenizer_files(folder)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    # the tokenizers library raises bare Exception for every defect of tokenizer.json
    except Exception as error:
        raise ModelError(
            f"{folder}: the tokenizer cannot be loaded ({first_line(error)})"
        ) from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            f"{folder}: {type(tokenizer).__name__} has no fast form (tokenizer.json); convert it "
            "first"
        )
    check_tokenizer(backend, model_files.stated_vocabulary_size(network or folder), folder)
    return tokenizer


def check_tokenizer(tokenizer: Tokenizer, rows: int | None, folder: Path) -> None:
    """Check that a tokenizer knows words, and that its tokens reach the rows of an output layer.

    Args:
        tokenizer: The tokenizer.
        rows: The number of rows, None if it is not known.
        folder: Where the tokenizer is, for messages.

    Raises ``ModelError`` for a tokenizer that has special tokens only, and for one whose tokens
    reach less than 90 % of the rows. Warns when they reach less than all.
    """
    token_ids = set(tokenizer.get_vocab(with_added_tokens=True).values())
    if token_ids <= set(special_token_ids(tokenizer)):
        raise ModelError(
            f"{folder}: the tokenizer knows no words, only {len(token_ids)} special tokens; copy "
            f"the tokenizer files of the model ({model_files.VOCABULARY_NAMES}) into the folder"
        )
    if rows is None:
        return
    reached = sum(1 for token_id in token_ids if token_id < rows)
    if reached < _SMALLEST_COVERAGE * rows:
        raise ModelError(
            f"{folder}: the tokens of the tokenizer reach {reached} of the {rows} rows of the "
            "output layer, so it belongs to another model; they must reach at least 90 %"
        )
    if reached < rows:
        warnings.warn(
            f"{folder}: no token reaches {rows - reached} of the {rows} rows of the output layer",
            SparseIRWarning,
            stacklevel=2,
        )


def rules_of(hf_tokenizer: PreTrainedTokenizerBase, lowercase: bool) -> Tokenizer:
    """Return a private copy of a tokenizer's rules without padding.

    ``lowercase`` puts a lower-casing step before its normalizer, unless that has one.
    """
    rules: Tokenizer = Tokenizer.from_str(hf_tokenizer.backend_tokenizer.to_str())
    rules.no_padding()
    if lowercase:
        steps = _normalizer_steps(rules.normalizer)
        if not any(isinstance(step, normalizers.Lowercase) for step in steps):
            rules.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])
    return rules


def _normalizer_steps(normalizer: Any) -> list[Any]:
    if normalizer is None:
        return []
    return list(normalizer) if type(normalizer).__name__ == "Sequence" else [normalizer]


def cut_at(tokenizer: Tokenizer, max_length: int | None) -> Tokenizer:
    """Return a copy that cuts texts at ``max_length`` tokens, or not at all."""
    copy: Tokenizer = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    if max_length is not None:
        copy.enable_truncation(max_length)
    return copy


def without_state(tokenizer: Tokenizer) -> Tokenizer:
    """Return a private copy without padding and truncation.

    Both are state that a file or another user has switched on and that must not leak in.
    """
    copy = cut_at(tokenizer, None)
    copy.no_padding()
    return copy


def stated_length(hf_tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the tokenizer's own limit, None for no limit."""
    limit = hf_tokenizer.model_max_length
    return int(limit) if limit < _NO_LIMIT else None


@functools.lru_cache(maxsize=4)
def _copy_without_state(tokenizer: Tokenizer) -> Tokenizer:
    """``without_state`` of tokenizers that are asked often: a copy takes milliseconds."""
    return without_state(tokenizer)


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of the tokenizer's JSON without padding and truncation."""
    rules = json.loads(tokenizer.to_str())
    rules.update(padding=None, truncation=None)
    return files.sha256_of_json(rules)


def find_terms(tokenizer: Tokenizer, names: Sequence[str], text: str) -> list[TermPlace]:
    """Return the place of each token in a text of any length; ``names`` are by token id."""
    encoding = _copy_without_state(tokenizer).encode(text, add_special_tokens=False)
    return [
        TermPlace(names[token_id], start, end)
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
    ]


def vocabulary_of(tokenizer: Tokenizer, size: int) -> list[str]:
    """Return ``size`` distinct token strings, position = token id.

    An id without a token is named ``[unused-<id>]``.
    """
    token_ids = tokenizer.get_vocab(with_added_tokens=True)
    names: list[str | None] = [None] * size
    for token, token_id in token_ids.items():
        names[token_id] = token
    return [
        _reserved_name(position, token_ids) if name is None else name
        for position, name in enumerate(names)
    ]


def fold_vocabulary(tokenizer: Tokenizer, size: int) -> tuple[list[str], np.ndarray]:
    """Return the folded terms, and the term of each token, int64 ``[V]``.

    Tokens whose text is the same without surrounding white space and case are one term (``Ġthe``,
    ``the``, ``The``). It is named by the token that is that text already, else by its first.
    Special tokens, white space and pieces of characters stay alone. Every name is a token of the
    vocabulary, so names stay distinct.
    """
    tokens = vocabulary_of(tokenizer, size)
    special = set(special_token_ids(tokenizer))
    special.update(range(id_limit(tokenizer), size))
    groups: dict[tuple[bool, str], list[int]] = {}
    for token_id, token in enumerate(tokens):
        text = ""
        if token_id not in special:
            text = _text_of(tokenizer, token).strip().casefold()
        key = (bool(text), text or token)
        groups.setdefault(key, []).append(token_id)
    term_of_token_V = np.empty(size, dtype=np.int64)
    names = []
    for term, ((_, text), members) in enumerate(groups.items()):
        term_of_token_V[members] = term
        is_token = any(tokens[member] == text for member in members)
        names.append(text if is_token else tokens[members[0]])
    return names, term_of_token_V


def _text_of(tokenizer: Tokenizer, token: str) -> str:
    """Return the text of a token; nothing for a piece of a character."""
    text: str = token
    if tokenizer.decoder is not None:
        text = tokenizer.decoder.decode([token])
    return "" if "\ufffd" in text else text


class WordTable:
    """Token ids of plain English text by looking up its words.

    Most words of a query are tokens themselves. Looking them up and tokenizing only the others
    takes 17 instead of 66 microseconds per query. On Cranfield (1,400 documents, 225 queries, k =
    10, the lexical model) a search takes 14 % longer without it (744 instead of 653 microseconds,
    medians over queries, best of ten alternating rounds).
    """

    def __init__(self, tokenizer: Tokenizer, id_of_word: Mapping[str, int]) -> None:
        self._tokenizer = tokenizer
        self._id_of_word = id_of_word

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> WordTable | None:
        """Return the table of a tokenizer, None where looking up words could give other tokens.

        It is safe for BERT's tokenizer with lower case: letters and digits form a word, any other
        sign is one by itself, and WordPiece takes a word whole if the vocabulary has it. No added
        token may occur in a plain text.
        """
        model = tokenizer.model
        normalizer = tokenizer.normalizer
        if not isinstance(model, WordPiece) or not isinstance(normalizer, BertNormalizer):
            return None
        if not normalizer.lowercase or not isinstance(tokenizer.pre_tokenizer, BertPreTokenizer):
            return None
        for added in tokenizer.get_added_tokens_decoder().values():
            if added.normalized or _PLAIN_TEXT.fullmatch(added.content):
                return None
        longest = model.max_input_chars_per_word
        id_of_word = {}
        for token, token_id in tokenizer.get_vocab(with_added_tokens=False).items():
            if len(token) <= longest and _PLAIN_WORD.fullmatch(token):
                id_of_word[token] = token_id
        return cls(tokenizer, id_of_word)

    def read(self, text: str) -> list[int] | None:
        """Return the token ids of a text in no particular order; None if it is not plain."""
        if not _PLAIN_TEXT.fullmatch(text):
            return None
        id_of_word = self._id_of_word
        words = _PLAIN_WORD.findall(text.lower())
        ids = [id_of_word[word] for word in words if word in id_of_word]
        if len(ids) < len(words):
            others = " ".join([word for word in words if word not in id_of_word])
            ids += self._tokenizer.encode(others, add_special_tokens=False).ids
        return ids


def special_token_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the ascending ids of the special tokens and of the unknown token."""
    added = tokenizer.get_added_tokens_decoder()
    special = {token_id for token_id, token in added.items() if token.special}
    unknown = getattr(tokenizer.model, "unk_token", None)
    unknown_id = tokenizer.token_to_id(unknown) if unknown else None
    if type(tokenizer.model).__name__ == "Unigram":  # has the id in its JSON only
        unknown_id = json.loads(tokenizer.to_str())["model"]["unk_id"]
    if unknown_id is not None:
        special.add(unknown_id)
    return sorted(special)


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a ``tokenizer.json``. Raises ``DataError`` when it is missing or broken."""
    with reading.reading(path, "a tokenizer.json of the tokenizers library", DataError):
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))


def id_limit(tokenizer: Tokenizer) -> int:
    """Return the number above the largest token id."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def _reserved_name(token_id: int, taken: Mapping[str, int]) -> str:
    name = f"[unused-{token_id}]"
    while name in taken:
        name = f"[{name}]"
    return name
