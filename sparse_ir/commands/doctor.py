"""The command ``doctor``."""

from __future__ import annotations

import itertools
from pathlib import Path

from sparse_ir import extras
from sparse_ir.data import readers
from sparse_ir.errors import ConfigError
from sparse_ir.models import decoder_settings
from sparse_ir.models.catalog import DEFAULT_MODEL, LEXICAL_MODEL, shipped_model
from sparse_ir.reports import Report


def doctor(
    model: str,
    *,
    input: str | None = None,
    revision: str | None = None,
    device: str | None = None,
    max_length: int | None = None,
    decoder: Path | None = None,
    allow_pickle: bool = False,
    progress: bool = False,
) -> Report:
    """Tell whether a model is sane, before money is spent on it; exit code 1 when a fault was
    found, else 0.

    Args:
        model: Hub name or folder of a model, or "default", the one inside this package.
        input: A corpus whose first texts are read instead of the built-in English ones.
        revision: Commit of a hub model.
        device: cpu, cuda, ...; default: the accelerator when there is one.
        max_length: Tokens read of each document; default: what the model states.
        decoder: A sparse_ir.json that says how a decoder is read; for models that have none, or to
            read one otherwise.
        allow_pickle: Read an older pytorch_model.bin (weights only) when there is no safetensors
            file.
        progress: Show a progress bar.
    """
    with extras.importing():
        from sparse_ir.diagnosis import examination
        from sparse_ir.diagnosis.checks import OWN_TEXTS

    if model == LEXICAL_MODEL:
        raise ConfigError("the lexical model is no neural network; there is nothing to examine")
    settings = None if decoder is None else decoder_settings.read_decoder_file(Path(decoder))
    texts = (
        None
        if input is None
        else [
            document.contents
            for document in itertools.islice(readers.read_documents(input), OWN_TEXTS)
        ]
    )
    found = examination.examine(
        str(shipped_model()) if model == DEFAULT_MODEL else model,
        texts=texts,
        progress=progress,
        revision=revision,
        device=device,
        max_length=max_length,
        decoder=settings,
        allow_pickle=allow_pickle,
    )
    return {"model": model, **found}
