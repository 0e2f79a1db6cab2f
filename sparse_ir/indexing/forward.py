"""The forward index: each document's impacts side by side, to score candidates exactly.

    forward/offsets.npy       int64 (N + 1,): where each document number begins
    forward/token_ids.npy     uint8, uint16 or uint32 (postings,): as narrow as the ids allow
    forward/impacts.npy       uint8 or uint16 (postings,): as narrow as the impacts allow
    forward/vocabulary.json   the token of each id; with several fields: {field: tokens}, whose ids
                              follow one another

It takes three bytes a posting for most models. It is read through memory maps, so opening costs
nothing and processes share it. Row numbers are the engine's document numbers.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from sparse_ir.engines.base import SPARSE
from sparse_ir.errors import DamagedError
from sparse_ir.storage import files, reading

FOLDER = "forward"
_OFFSETS = "offsets.npy"
_REMEDY = "; build the index again"
_TOKEN_IDS = "token_ids.npy"
_IMPACTS = "impacts.npy"
_VOCABULARY = "vocabulary.json"
# the types of the parts; the finished files are as narrow as the numbers allow
_PART_ID = np.uint32
_PART_IMPACT = np.uint16


class ForwardWriter:
    """Collects batches in any order, from any thread, and joins them by their numbers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts = folder / "parts"
        self._lengths: dict[int, np.ndarray] = {}
        self._largest_id = 0
        self._largest_impact = 0
        self._parts.mkdir(parents=True)

    def add(self, number: int, impacts: sparse.csr_matrix) -> None:
        """Keep batch ``number``: impacts int32 ``(N, V)`` in 1 to 65,535, no row empty."""
        impacts.indices.astype(_PART_ID).tofile(self._part(number, _TOKEN_IDS))
        impacts.data.astype(_PART_IMPACT).tofile(self._part(number, _IMPACTS))
        self._lengths[number] = np.diff(impacts.indptr).astype(np.int64)
        self._largest_id = max(self._largest_id, int(impacts.indices.max(initial=0)))
        self._largest_impact = max(self._largest_impact, int(impacts.data.max(initial=0)))

    def finish(self, vocabularies: Mapping[str, Sequence[str]]) -> None:
        """Write the files, rows in the order of the batches' numbers, and delete the parts.

        ``vocabularies``: the columns of each field, in the order in which they lie side by side.
        """
        lengths = [np.empty(0, np.int64)]
        for number in sorted(self._lengths):
            lengths.append(self._lengths[number])
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
        with files.atomic_writer(self._folder / _OFFSETS, "wb") as stream:
            np.save(stream, offsets)
        self._join(_TOKEN_IDS, _PART_ID, self._largest_id, int(offsets[-1]))
        self._join(_IMPACTS, _PART_IMPACT, self._largest_impact, int(offsets[-1]))
        stored: Any = {field: list(vocabulary) for field, vocabulary in vocabularies.items()}
        if list(stored) == [SPARSE]:
            stored = stored[SPARSE]
        files.write_json(self._folder / _VOCABULARY, stored)
        shutil.rmtree(self._parts)

    def _join(self, name: str, dtype: type[np.generic], largest: int, length: int) -> None:
        """Join the parts of one file, as narrow as its largest number allows."""
        numbers = sorted(self._lengths)
        arrays = (np.fromfile(self._part(number, name), dtype) for number in numbers)
        _write_array(self._folder / name, arrays, length, np.min_scalar_type(largest))

    def _part(self, number: int, name: str) -> Path:
        return self._parts / f"{number:06d}-{name}"


def _write_array(
    path: Path, arrays: Iterable[np.ndarray], length: int, dtype: np.dtype[Any]
) -> None:
    """One ``.npy`` file of all arrays, one of them in memory at a time."""
    with files.atomic_writer(path, "wb") as stream:
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": (length,),
        }
        np.lib.format.write_array_header_1_0(stream, header)
        for array in arrays:
            stream.write(array.astype(dtype).tobytes())


class ForwardIndex:
    """An open forward index; safe to use from several threads.

    ``vocabulary`` says what the token ids of queries mean, where it is not the index's own. The
    ids of a field begin at its number in ``first_ids``. Raises ``DamagedError`` when the files do
    not fit each other.
    """

    def __init__(self, folder: Path, vocabulary: Sequence[str] | None = None) -> None:
        stored = files.read_json(folder / _VOCABULARY)
        fields: dict[str, list[str]] = stored if isinstance(stored, dict) else {SPARSE: stored}
        self.vocabulary: list[str] = []
        self.first_ids: dict[str, int] = {}  # field -> the id of its first token in queries
        for field, tokens in fields.items():
            self.first_ids[field] = len(self.vocabulary)
            self.vocabulary.extend(tokens)
        self._own_ids = None
        if vocabulary is not None:
            sparse_tokens = fields[SPARSE]
            rest = np.arange(len(sparse_tokens), len(self.vocabulary))
            self._own_ids = np.concatenate([_translation(vocabulary, sparse_tokens), rest])
            for field in list(self.first_ids)[1:]:
                self.first_ids[field] += len(vocabulary) - len(sparse_tokens)
        self._offsets = reading.load_array(folder / _OFFSETS, remedy=_REMEDY)
        self._token_ids = _mapped(folder / _TOKEN_IDS)
        self._impacts = _mapped(folder / _IMPACTS)
        if (np.diff(self._offsets) < 0).any():
            raise DamagedError(
                f"{folder / _OFFSETS}: documents end before they begin; build the index again"
            )
        if not len(self._token_ids) == len(self._impacts) == self._offsets[-1]:
            raise DamagedError(
                f"{folder}: {self._offsets[-1]} postings are promised, but there are "
                f"{len(self._token_ids)} token ids and {len(self._impacts)} impacts"
            )
        self._weights = _Scratch(len(self.vocabulary))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def vector(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and impacts of one document, int64."""
        part = slice(self._offsets[number], self._offsets[number + 1])
        return self._token_ids[part].astype(np.int64), self._impacts[part].astype(np.int64)

    def field_of(self, token_id: int) -> str:
        """The field to which a token id belongs."""
        field = SPARSE
        for name, first_id in self.first_ids.items():
            if token_id >= first_id:
                field = name
        return field

    def scores(self, numbers: np.ndarray, token_ids: np.ndarray, boosts: np.ndarray) -> np.ndarray:
        """``sum boost x impact`` of some documents: exact, int64, in the order of ``numbers``.

        ``token_ids`` and ``boosts``: the query, whole numbers ``(T,)``, each token once.
        """
        if not len(numbers):
            return np.empty(0, np.int64)
        if self._own_ids is not None:
            own_ids = self._own_ids[token_ids]
            token_ids = own_ids[own_ids >= 0]
            boosts = boosts[own_ids >= 0]
        starts = self._offsets[numbers]
        lengths = self._offsets[np.asarray(numbers) + 1] - starts
        ends = np.cumsum(lengths)
        places = np.arange(ends[-1]) + np.repeat(starts - ends + lengths, lengths)
        weights = self._weights.array
        weights[token_ids] = boosts
        products = weights[self._token_ids[places]]
        weights[token_ids] = 0
        products *= self._impacts[places]
        return np.add.reduceat(products, ends - lengths)

    def statistics(self) -> dict[str, int]:
        """Documents, postings and the sum of impacts, as engines count them."""
        return {
            "documents": len(self),
            "postings": len(self._token_ids),
            "sum_impacts": int(self._impacts.sum(dtype=np.int64)),
        }


class _Scratch(threading.local):
    """A thread's own query vector, zero between two uses.

    Clearing a whole vocabulary would cost more than a search.
    """

    def __init__(self, size: int) -> None:
        self.array = np.zeros(size, np.int64)


def _translation(theirs: Sequence[str], ours: Sequence[str]) -> np.ndarray:
    """Our id of each of their tokens, int64; -1 for a token that no document has."""
    ids = {token: token_id for token_id, token in enumerate(ours)}
    return np.array([ids.get(token, -1) for token in theirs], dtype=np.int64)


def _mapped(path: Path) -> np.ndarray:
    """A read-only array of the file; a plain view, because ``memmap`` slows every look-up."""
    return np.asarray(reading.load_array(path, mmap_mode="r", remedy=_REMEDY))
