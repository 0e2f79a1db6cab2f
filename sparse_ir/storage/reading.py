"""Reading files that may be missing, cut, or not what their names say.

Every error of a stored file is made here, so that "damaged" is said only of bytes that were read.
A file that the system does not hand out (no permission, a failing disk) is an ``UncheckedError``.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sparse_ir.errors import DamagedError, SparseIRError, UncheckedError, first_line

if TYPE_CHECKING:
    import numpy as np

LFS_START = b"version https://git-lfs.github.com/spec/"
_LFS_FAULT = "a pointer of git-lfs, not the file itself; run `git lfs pull`"
_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@contextlib.contextmanager
def reading(
    path: Path,
    kind: str,
    error_class: type[SparseIRError] = DamagedError,
    remedy: str = "",
) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into an error that names the file.

    Args:
        path: The file.
        kind: What its content must be, such as ``"JSON"``.
        error_class: The error for a file that is missing or holds something else.
        remedy: What the user can do, with the semicolon before it.

    Raises ``UncheckedError`` when the system refuses to read the file.
    """
    try:
        yield
    except SparseIRError:
        raise
    except Exception as error:
        raise_refusal(path, error)
        raise error_class(f"{describe_fault(path, kind, error)}{remedy}") from error


def raise_refusal(path: Path, error: Exception) -> None:
    """Raise ``UncheckedError`` if an error is the system's refusal to hand out a file."""
    refusal = _find_refusal(error)
    if refusal is not None:
        raise UncheckedError(
            f"{path} cannot be read ({refusal}), so it could not be checked"
        ) from error


def check_file(path: Path, error_class: type[SparseIRError]) -> None:
    """Raise ``error_class`` for a folder, and for a pointer of git-lfs in the place of a file."""
    if path.is_dir():
        raise error_class(f"{path} is a folder; it must be a file")
    if is_lfs_pointer(path):
        raise error_class(f"{path} is {_LFS_FAULT}")


def describe_fault(path: Path, kind: str, error: Exception) -> str:
    """Say why a file is not readable as what it must be."""
    if path.is_dir():
        return f"{path} is a folder; it must be a file"
    if not path.exists():
        return f"{path} is missing"
    if is_lfs_pointer(path):
        return f"{path} is {_LFS_FAULT}"
    return f"{path} is not readable as {kind} ({first_line(error)})"


def is_lfs_pointer(path: Path) -> bool:
    """Return whether a file is the text that git-lfs leaves in the place of a large file."""
    if not path.is_file():
        return False  # reading from a pipe would take its first bytes away
    try:
        with path.open("rb") as stream:
            return stream.read(len(LFS_START)) == LFS_START
    except OSError:
        return False


@contextlib.contextmanager
def checking(folder: Path) -> Iterator[None]:
    """Turn a refusal of the system into an ``UncheckedError`` about a folder."""
    try:
        yield
    except OSError as error:
        if isinstance(error, SparseIRError):
            raise
        place = error.filename or folder
        raise UncheckedError(
            f"{folder} could not be checked: {place}: {error.strerror or error}"
        ) from error


def load_array(
    path: Path, *, mmap_mode: Literal["r"] | None = None, remedy: str = ""
) -> np.ndarray[Any, Any]:
    """Read a numpy file without pickled objects; raises what ``reading`` raises."""
    import numpy as np

    with reading(path, "a numpy array", remedy=remedy):
        array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            array.close()
            raise TypeError("an archive of arrays")
        return array


def load_tensors(path: Path, *, remedy: str = "") -> dict[str, np.ndarray[Any, Any]]:
    """Read the arrays of a safetensors file; raises what ``reading`` raises."""
    from safetensors.numpy import load_file

    with reading(path, "safetensors", remedy=remedy):
        return load_file(path)


def _find_refusal(error: Exception) -> str | None:
    """The system's reason for not handing out a file; None for errors of the content."""
    if isinstance(error, _ABSENT):
        return None
    if isinstance(error, OSError) and error.errno is not None:
        return error.strerror or str(error)
    match = _OS_ERROR.search(str(error))  # libraries in Rust have no OSError
    if match is None or type(error).__name__ != "SafetensorError":
        return None
    return os.strerror(int(match[1]))
