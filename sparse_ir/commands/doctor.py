"""The command ``doctor``."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Unpack

from sparse_ir.commands.arguments import Source, StrPath, command
from sparse_ir.data.options import CorpusSource, InputOptions
from sparse_ir.errors import ConfigError
from sparse_ir.models.options import DEFAULT_MODEL, LEXICAL_MODEL
from sparse_ir.reports import DoctorReport


@command
def doctor(
    model: Source,
    *,
    input: CorpusSource | None = None,
    revision: str | None = None,
    device: str | None = None,
    max_length: int | None = None,
    decoder: StrPath | None = None,
    allow_pickle: bool = False,
    progress: bool = False,
    **options: Unpack[InputOptions],
) -> DoctorReport:
    """Check whether a model is healthy before you invest in it.

    Each finding has its evidence and a remedy. The exit code is 1 if a fault was found, else 0.

    Args:
        model: Hub name or folder of a model, or "default" (the model inside this package).
        input: A corpus, as in encode, whose first texts replace the built-in English texts.
        revision: Commit of a hub model.
        device: Device of the encoder: cpu, cuda, ... The default is the accelerator if there is
            one.
        max_length: Maximum number of tokens read per document. The default is the model's own
            limit.
        decoder: A sparse_ir.json file that says how to read a decoder model. It takes precedence
            over the file in the model's folder.
        allow_pickle: Read an older pytorch_model.bin (weights only) if the model has no safetensors
            file.
        progress: Show a progress bar.
    """

    from sparse_ir.data.corpus import Corpus
    from sparse_ir.diagnosis import examination
    from sparse_ir.models import decoder_settings
    from sparse_ir.models.catalog import shipped_model

    if model == LEXICAL_MODEL:
        raise ConfigError("the lexical model is not a neural network; there is nothing to examine")
    settings = None
    if decoder is not None:
        settings = decoder_settings.read_decoder_file(Path(decoder))
    texts = None
    if input is not None:
        documents = Corpus(input, options).read(with_metadata=False)
        first = itertools.islice(documents, examination.MAX_USER_TEXTS)
        texts = [document.contents for document in first]
    report = examination.examine(
        str(shipped_model() if model == DEFAULT_MODEL else model),
        texts=texts,
        progress=progress,
        revision=revision,
        device=device,
        max_length=max_length,
        decoder=settings,
        allow_pickle=allow_pickle,
    )
    return DoctorReport(model=str(model), **report)
