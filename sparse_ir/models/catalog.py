"""A model's name (``default``, ``lexical``, a folder, a hub name) becomes its encoders."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sparse_ir import extras
from sparse_ir.data.records import Document
from sparse_ir.errors import ConfigError
from sparse_ir.models import decoder_settings
from sparse_ir.models.idf import compute_idf
from sparse_ir.models.options import DEFAULT_MODEL, LEXICAL_MODEL, EncodeOptions
from sparse_ir.models.static_queries import StaticQueryEncoder

_DEFAULT_SHARE = 0.5  # of the collection's IDF with the shipped model
_NOT_FOR_THE_NETWORK = {"shard_size", "query_side", "idf", "allow_unknown", "collection_idf"}


def shipped_model() -> Path:
    """The trained model inside this package."""
    return Path(str(importlib.resources.files("sparse_ir"))) / "resources" / "model"


def load_encoder(
    model: str,
    read: Callable[[], Iterator[Document]] | None,
    options: EncodeOptions,
) -> tuple[Any, Any]:
    """The document encoder and the query encoder that were asked for; without a corpus to read,
    they know none.
    """
    model, share = (
        str(shipped_model()) if model == DEFAULT_MODEL else model,
        find_share(model, options),
    )
    chosen = {key: value for key, value in options.items() if key not in _NOT_FOR_THE_NETWORK}
    if model == LEXICAL_MODEL:
        return _fit_lexical(read or (lambda: iter(())), chosen, options)
    with extras.importing():
        from sparse_ir.models.encoder import Encoder

    if (place := chosen.get("decoder")) is not None:
        chosen["decoder"] = decoder_settings.read_decoder_file(Path(str(place)))
    encoder = Encoder.load(model, **chosen)  # type: ignore[arg-type]
    side, path = options.get("query_side", "auto"), options.get("idf")
    query_encoder = encoder.query_encoder(
        None if side == "auto" else side,
        idf=Path(path) if path else None,
        allow_unknown=options.get("allow_unknown", False),
    )
    return encoder, adapt(query_encoder, read, share) if share and read else query_encoder


def find_share(model: str, options: EncodeOptions) -> float:
    """The share of the collection's IDF in static query weights: as asked for, or what suits the
    model.
    """
    share, side = options.get("collection_idf"), options.get("query_side", "auto")
    if share is not None or model not in (DEFAULT_MODEL, str(shipped_model())):
        return share or 0.0
    return 0.0 if side == "neural" else _DEFAULT_SHARE


def adapt(query_encoder: Any, read: Callable[[], Iterator[Document]], share: float) -> Any:
    """Static query weights that know how rare a token is in this collection."""
    if not isinstance(query_encoder, StaticQueryEncoder):
        raise ConfigError(
            "collection_idf is for static query weights, and these queries are read by a network"
        )
    idf = compute_idf(
        (document.contents for document in read()), query_encoder.tokenizer, unseen=None
    )
    return query_encoder.adapted(idf, share)


def _fit_lexical(
    read: Callable[[], Iterator[Document]], chosen: dict[str, Any], options: EncodeOptions
) -> Any:
    from sparse_ir.models.lexical import LexicalEncoder

    if extra := sorted(key for key in {**chosen, **options} if key != "shard_size"):
        raise ConfigError(
            f"the lexical model does not take {', '.join(extra)}; name a neural model or drop them"
        )
    encoder = LexicalEncoder.fit(lambda: (document.contents for document in read()))
    return encoder, encoder.query_encoder()
