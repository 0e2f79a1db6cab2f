"""The statistics that an index was built with: frozen, hashed, and carried by the index.

    INDEX/statistics.json         documents, the rule, and the checksums of the frequencies
    INDEX/statistics.FIELD.npy    int64 (V,): the number of documents that hold each token
    INDEX/statistics.bm25.json    the terms of the field bm25, in the order of their frequencies

A search that leaves out terms by their frequency asks here and not the engine, so every engine and
every part of a divided index decides alike. Indexes from before this record do not have it. The
format is 1 for the sparse field alone, and 2 where there is a field bm25.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparse_ir.engines.base import SPARSE
from sparse_ir.errors import DamagedError
from sparse_ir.indexing.quantization import Rule
from sparse_ir.storage import files, reading, sealed

_ONE_FIELD = 1
_SEVERAL_FIELDS = 2
FILE = "statistics.json"
BM25_TERMS = "statistics.bm25.json"


@dataclass(frozen=True)
class TextStatistics:
    """What the weights of the field ``bm25`` were made with."""

    documents: int  # with a term
    tokens: int  # in all documents


@dataclass(frozen=True)
class Statistics:
    """Statistics of a collection, as they were when its impacts were made."""

    documents: int  # with postings
    rule: Rule
    frequencies: Mapping[str, np.ndarray]  # field -> int64 (V,)
    texts: TextStatistics | None = None  # where there is a field bm25

    def save(self, folder: Path) -> None:
        """Write the record and its arrays into an index folder."""
        checksums = {}
        for field, frequencies in self.frequencies.items():
            path = folder / _frequencies_file(field)
            with files.atomic_writer(path, "wb") as stream:
                np.save(stream, frequencies)
            checksums[field] = files.sha256_of_file(path)
        record: dict[str, Any] = {"documents": self.documents, "rule": self.rule.to_json()}
        if self.texts is None:
            record |= {"format": _ONE_FIELD, "frequencies_sha256": checksums[SPARSE]}
        else:
            texts = {"documents": self.texts.documents, "tokens": self.texts.tokens}
            record |= {"format": _SEVERAL_FIELDS, "fields": checksums, "texts": texts}
        files.write_json(folder / FILE, sealed.seal(record))

    @classmethod
    def load(cls, folder: Path) -> Statistics:
        """The record of an index folder; raises ``DamagedError`` when it was changed."""
        record = files.read_json(folder / FILE)
        intact = isinstance(record, dict) and sealed.is_intact(record)
        if not intact or record["format"] not in (_ONE_FIELD, _SEVERAL_FIELDS):
            raise DamagedError(f"{folder / FILE} is damaged; build the index again")
        fields = [SPARSE]
        texts = None
        if record["format"] == _SEVERAL_FIELDS:
            fields = list(record["fields"])
            texts = TextStatistics(record["texts"]["documents"], record["texts"]["tokens"])
        frequencies = {field: _read_frequencies(folder, field) for field in fields}
        rule = Rule.from_json(record["rule"])
        return cls(int(record["documents"]), rule, frequencies, texts)


def _frequencies_file(field: str) -> str:
    return f"statistics.{field}.npy"


def _read_frequencies(folder: Path, field: str) -> np.ndarray:
    path = folder / _frequencies_file(field)
    return reading.load_array(path, remedy="; build the index again")
