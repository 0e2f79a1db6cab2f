"""Opening a stored query side, static or neural."""

from __future__ import annotations

from pathlib import Path

from sparse_ir import extras
from sparse_ir.errors import ConfigError, DamagedError
from sparse_ir.models.interfaces import QueryEncoder
from sparse_ir.models.static_queries import FORMAT, QUERY_FILE, load_static_side
from sparse_ir.storage import files


def load_query_encoder(folder: Path, *, model: str | Path | None = None) -> QueryEncoder:
    """The query encoder that ``save`` wrote into ``folder``, with its hashes checked.

    A static one needs nothing else. A neural one is a pointer to a checkpoint; ``model`` names
    another place where the same checkpoint lies now. Raises ``DamagedError`` for broken files and
    ``IndexMismatch`` when the checkpoint found is not the recorded one.
    """
    record = files.read_json(folder / QUERY_FILE)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise DamagedError(
            f"{folder / QUERY_FILE}: format is not {FORMAT}, the only one this version reads"
        )
    if record.get("kind") == "neural":
        with extras.importing():
            from sparse_ir.models.encoder import load_neural_query_encoder

        return load_neural_query_encoder(record, model=model)
    if record.get("kind") != "static":
        raise DamagedError(
            f"{folder / QUERY_FILE}: kind {record.get('kind')!r} is unknown; known: neural, static"
        )
    if model is not None:
        raise ConfigError(
            f"{folder} holds a query side without a neural model; drop model={str(model)!r}"
        )
    return load_static_side(folder, record)
