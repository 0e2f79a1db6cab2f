"""From a model's name (``default``, ``lexical``, a folder, a hub name) to its encoders."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from sparse_ir import extras
from sparse_ir.data.records import Document
from sparse_ir.errors import ConfigError, ModelError
from sparse_ir.models import decoder_settings
from sparse_ir.models.idf import compute_idf
from sparse_ir.models.interfaces import DocumentEncoder, QueryEncoder
from sparse_ir.models.model_files import shipped_model
from sparse_ir.models.options import DEFAULT_MODEL, LEXICAL_MODEL, EncodeOptions
from sparse_ir.models.static_queries import StaticQueryEncoder

__all__ = ["adapt", "find_bm25_share", "find_share", "load_encoder", "shipped_model"]

_BM25_SHARE = re.compile(r"^bm25_share:[ ]*(.*?)[ ]*$", re.MULTILINE)
_DEFAULT_SHARE = 0.5  # of the collection's IDF with the shipped model
_NOT_FOR_THE_NETWORK = {"shard_size", "query_side", "idf", "allow_unknown", "collection_idf"}
ReadDocuments = Callable[[], Iterator[Document]]


def load_encoder(
    model: str, read: ReadDocuments | None, options: EncodeOptions
) -> tuple[DocumentEncoder, QueryEncoder]:
    """Load the document encoder and the query encoder of a model.

    Args:
        model: "default", "lexical", a folder, or a hub name.
        read: Starts reading the collection, which the lexical model and the collection's IDF need.
            Without it they know no document.
        options: The options of the encoder.

    Raises ``ModelError`` for a model that cannot be used, ``ConfigError`` for an option.
    """
    chosen = {key: value for key, value in options.items() if key not in _NOT_FOR_THE_NETWORK}
    if model == LEXICAL_MODEL:
        return _fit_lexical(read, options)
    with extras.importing():
        from sparse_ir.models.encoder import Encoder

    place = chosen.get("decoder")
    if place is not None:
        chosen["decoder"] = decoder_settings.read_decoder_file(Path(str(place)))
    folder = str(shipped_model()) if model == DEFAULT_MODEL else model
    encoder = Encoder.load(folder, **chosen)  # type: ignore[arg-type]
    side = options.get("query_side", "auto")
    idf = options.get("idf")
    query_encoder = encoder.query_encoder(
        None if side == "auto" else side,
        idf=Path(idf) if idf else None,
        allow_unknown=options.get("allow_unknown", False),
    )
    share = find_share(model, options)
    if share and read is not None:
        query_encoder = adapt(query_encoder, read, share)
    return encoder, query_encoder


def find_share(model: str, options: EncodeOptions) -> float:
    """Return the share of the collection's IDF in static query weights.

    It is the option, else what suits the model.
    """
    share = options.get("collection_idf")
    if share is not None:
        return share
    is_default = model in (DEFAULT_MODEL, str(shipped_model()))
    if not is_default or options.get("query_side", "auto") == "neural":
        return 0.0
    return _DEFAULT_SHARE


def find_bm25_share(model: str) -> float:
    """Return the share of BM25 beside a model that its card states, else 1.

    The card is the README.md of the model's folder; the line ``bm25_share: NUMBER`` stands among
    its metadata. Raises ``ModelError`` if it is not a number above 0.
    """
    card = Path(model) / "README.md"
    if model in (DEFAULT_MODEL, LEXICAL_MODEL) or not card.is_file():
        return 1.0
    match = _BM25_SHARE.search(card.read_text(encoding="utf-8", errors="replace"))
    if match is None:
        return 1.0
    try:
        share = float(match[1])
    except ValueError:
        share = 0.0
    if not 0 < share < float("inf"):
        raise ModelError(f"{card}: bm25_share is {match[1]!r}; it must be a number above 0")
    return share


def adapt(query_encoder: QueryEncoder, read: ReadDocuments, share: float) -> StaticQueryEncoder:
    """Return static query weights that know how rare a token is in this collection.

    Raises ``ConfigError`` for neural queries, which have no weights.
    """
    if not isinstance(query_encoder, StaticQueryEncoder):
        raise ConfigError(
            "collection_idf needs static query weights, and these queries are read by a network"
        )
    texts = (document.contents for document in read())
    return query_encoder.adapted(compute_idf(texts, query_encoder.tokenizer, unseen=None), share)


def _fit_lexical(
    read: ReadDocuments | None, options: EncodeOptions
) -> tuple[DocumentEncoder, QueryEncoder]:
    from sparse_ir.models.lexical import LexicalEncoder

    extra = sorted(set(options) - {"shard_size"})
    if extra:
        raise ConfigError(
            f"the lexical model does not take {', '.join(extra)}; name a neural model or drop them"
        )

    def texts() -> Iterator[str]:
        if read is not None:
            for document in read():
                yield document.contents

    encoder = LexicalEncoder.fit(texts)
    return encoder, encoder.query_encoder()
