"""Building a folder aside, verifying it, and swapping it in."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from sparse_ir.errors import ConfigError
from sparse_ir.indexing.manifest import MANIFEST
from sparse_ir.indexing.verification import verify_index
from sparse_ir.storage import files

_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def building(output: Path) -> Iterator[Path]:
    """A folder beside ``output`` to build in; after the block it is verified and takes its place.

    A failure leaves the index at ``output`` as it was. Raises ``LockedError`` when another process
    builds the same index, ``ConfigError`` when something else is at ``output``.
    """
    output = output.resolve()  # a link stays a link: its target is replaced
    check_target(output)
    with files.write_lock(output):
        files.remove_leftovers(output)
        folder = files.temporary_sibling(output)
        folder.mkdir(parents=True)
        try:
            yield folder
            _LOG.debug("%s: verifying", output)
            verify_index(folder)
            files.swap_folder(folder, output)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def check_target(output: Path) -> None:
    """Raise ``ConfigError`` unless ``output`` is missing, an empty folder, or an index."""
    if not output.exists() or (output / MANIFEST).exists():
        return
    if output.is_dir() and not any(output.iterdir()):
        return
    raise ConfigError(f"{output} exists and is not an index; choose another output or delete it")
