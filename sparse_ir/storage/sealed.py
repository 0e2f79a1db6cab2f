"""JSON records that carry their own checksum, so that a changed or cut record is noticed."""

from __future__ import annotations

from typing import Any

from sparse_ir.storage import files

_SEAL = "sha256"


def seal(record: dict[str, Any]) -> dict[str, Any]:
    """The record with the checksum of everything else in it as its last field, ``sha256``."""
    return record | {_SEAL: files.sha256_of_json(record)}


def is_intact(record: dict[str, Any]) -> bool:
    """True when the checksum of a sealed record fits the rest of it."""
    facts = {name: value for name, value in record.items() if name != _SEAL}
    return files.sha256_of_json(facts) == record.get(_SEAL)
