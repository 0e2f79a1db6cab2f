"""Opening a stored query side, static or neural."""

from __future__ import annotations

from pathlib import Path

from sparse_ir import extras
from sparse_ir.errors import ConfigError, DamagedError
from sparse_ir.models.interfaces import QueryEncoder
from sparse_ir.models.static_queries import FORMAT, QUERY_FILE, load_static_side
from sparse_ir.storage import files


def load_query_encoder(folder: Path, *, model: str | Path | None = None) -> QueryEncoder:
    """Return the query encoder that ``save`` wrote into ``folder``, after checking its hashes.

    A static one needs nothing else. A neural one is a pointer to a checkpoint; ``model`` names
    another place where the same checkpoint lies now. Raises ``DamagedError`` for broken files and
    ``IndexMismatch`` when the checkpoint is not the recorded one.
    """
    path = folder / QUERY_FILE
    record = files.read_json(path)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise DamagedError(f"{path}: format is not {FORMAT}, the only one that can be read")
    kind = record.get("kind")
    if kind == "neural":
        with extras.importing():
            from sparse_ir.models.encoder import load_neural_query_encoder

        return load_neural_query_encoder(record, model=model)
    if kind != "static":
        raise DamagedError(f"{path}: kind is {kind!r}; it must be neural or static")
    if model is not None:
        raise ConfigError(
            f"{folder} holds a query side without a neural model; drop model={str(model)!r}"
        )
    return load_static_side(folder, record)
