"""The statistics that an index was built with: frozen, hashed, and carried by the index.

    INDEX/statistics.json         documents, the rule, and the checksum of the frequencies
    INDEX/statistics.sparse.npy   int64 (V,): the number of documents that hold each token

A search that leaves out terms by their frequency asks here and not the engine, so every engine and
every part of a divided index decides alike. Indexes from before this record do not have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparse_ir.engines.base import SPARSE
from sparse_ir.errors import DamagedError
from sparse_ir.indexing.quantization import Rule
from sparse_ir.storage import files, sealed

_FORMAT = 1
FILE = "statistics.json"
_FREQUENCIES = f"statistics.{SPARSE}.npy"


@dataclass(frozen=True)
class Statistics:
    """Statistics of a collection, as they were when its impacts were made."""

    documents: int  # with postings
    rule: Rule
    frequencies: np.ndarray  # int64 (V,)

    def save(self, folder: Path) -> None:
        """Write the record and its array into an index folder."""
        with files.atomic_writer(folder / _FREQUENCIES, "wb") as stream:
            np.save(stream, self.frequencies)
        record = {
            "format": _FORMAT,
            "documents": self.documents,
            "rule": self.rule.to_json(),
            "frequencies_sha256": files.sha256_of_file(folder / _FREQUENCIES),
        }
        files.write_json(folder / FILE, sealed.seal(record))

    @classmethod
    def load(cls, folder: Path) -> Statistics:
        """The record of an index folder; raises ``DamagedError`` when it was changed."""
        record = files.read_json(folder / FILE)
        intact = isinstance(record, dict) and sealed.is_intact(record)
        if not intact or record["format"] != _FORMAT:
            raise DamagedError(f"{folder / FILE} is damaged; build the index again")
        try:
            frequencies = np.load(folder / _FREQUENCIES)
        except (OSError, ValueError, EOFError) as error:
            raise DamagedError(f"{folder / _FREQUENCIES} cannot be read: {error}") from error
        return cls(int(record["documents"]), Rule.from_json(record["rule"]), frequencies)
