"""Opening an index for a command, whoever built it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparse_ir import extras
from sparse_ir.errors import ConfigError
from sparse_ir.indexing import manifest
from sparse_ir.indexing.quantization import Rule
from sparse_ir.models.static_queries import StaticQueryEncoder
from sparse_ir.retrieval.searcher import Index


def open_index(
    folder: Path,
    query_model: str | None = None,
    scale: float | None = None,
    *,
    tuned: bool = False,
    ranking: str | None = None,
) -> Index:
    """Open an index of any kind for the queries of a command; see ``search`` for the options."""
    if not folder.exists():
        raise ConfigError(f"{folder} does not exist; build an index first")
    is_foreign = manifest.is_lucene_folder(folder)
    if not is_foreign and not manifest.needs_query_encoder(folder, ranking):
        if scale is not None:
            raise ConfigError(
                f"{folder} keeps its own rule; --scale is for indexes that Pyserini built"
            )
        return Index(folder, query_model=query_model, tuned=tuned, ranking=ranking)
    if query_model is None:
        return Index(folder, ranking=ranking)  # raises, saying what is missing
    with extras.importing():
        from sparse_ir.models.encoder import Encoder

    rule = Rule(scale) if scale is not None else None
    query_encoder = Encoder.load(query_model).query_encoder()
    if is_foreign:
        return Index(folder, query_encoder=query_encoder, rule=rule, tuned=tuned, ranking=ranking)
    return _open_without_query_side(folder, query_encoder, rule, tuned, ranking)


def _open_without_query_side(
    folder: Path,
    query_encoder: Any,
    rule: Rule | None,
    tuned: bool,
    ranking: str | None,
) -> Index:
    """An index from JSON vectors, whose scale only their maker knows."""
    static = isinstance(query_encoder, StaticQueryEncoder)
    if rule is None and not static and manifest.read_manifest(folder)["rule"]["scale"] == 1.0:
        raise ConfigError(
            f"{folder} was built from whole numbers: pass the scale that the weights were "
            "multiplied by (often 100), so that query weights can be multiplied by it too"
        )
    return Index(folder, query_encoder=query_encoder, query_rule=rule, tuned=tuned, ranking=ranking)
