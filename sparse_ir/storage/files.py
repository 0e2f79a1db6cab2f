"""Writes that happen as a whole or not at all: files, folders, checksums and locks.

Everything this package stores goes through here: it is written aside, flushed to the disk, and
renamed. A reader sees the old bytes or the new ones, never a mixture, even after ``kill -9`` or a
power cut.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import filelock

from sparse_ir.errors import ConfigError, LockedError
from sparse_ir.storage import reading

_TEMPORARY_MARK = ".tmp-"
_DESCRIPTOR = re.compile(r"/dev/(stdout|stderr)|/(?:dev|proc/self)/fd/(\d+)")
_STANDARD_STREAMS = {"stdout": 1, "stderr": 2}
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_DISK_IS_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes; raises what ``reading`` raises."""
    with reading.reading(path, "bytes"), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def follow_links(path: Path) -> Path:
    """Return the place that links lead to, so that a link stays and its target is written."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def temporary_sibling(path: Path) -> Path:
    """A fresh name beside ``path`` that ``remove_leftovers`` recognises."""
    path = follow_links(path)
    return path.with_name(f".{path.name}{_TEMPORARY_MARK}{os.getpid()}-{secrets.token_hex(4)}")


def remove_leftovers(path: Path) -> None:
    """Delete what killed writers of ``path`` left; only for the holder of ``write_lock(path)``."""
    path = follow_links(path)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}{_TEMPORARY_MARK}*"):
        _remove(leftover)


def remove_leftovers_in(folder: Path) -> None:
    """Delete what killed writers left in ``folder``; only for the only writer there."""
    for leftover in folder.glob(f".*{_TEMPORARY_MARK}*"):
        _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def naming_disk_errors(path: Path) -> Iterator[None]:
    """Turn what safetensors says of a full disk into an ``OSError`` that names ``path``."""
    try:
        yield
    except Exception as error:
        match = re.search(r"\(os error (\d+)\)", str(error))
        if type(error).__name__ != "SafetensorError" or match is None:
            raise
        code = int(match[1])
        raise OSError(code, os.strerror(code), str(path)) from error


@contextlib.contextmanager
def atomic_writer(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that appears under ``path`` only when the block ends without an exception.

    Text is UTF-8 with ``\\n`` line ends. After an error, such as a full disk, the old file is
    unchanged. A link stays, and the file that it names is written. What cannot be replaced (a pipe,
    a device, standard output) is written to directly. Raises ``ConfigError`` for a folder.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; it must be the name of a file")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    if _is_stream(path):
        with _open_stream(path, mode, text) as stream:
            yield stream
        return
    path = follow_links(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(path)
    try:
        with temporary.open(mode, **text) as stream:  # type: ignore[call-overload]
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _DISK_IS_FULL and error.filename is None:
            error.filename = str(path)  # the system does not say which file
        raise
    _sync_folder(path.parent)


def _is_stream(path: Path) -> bool:
    """Return whether a path is not a place for a file: a pipe, a device, an open descriptor."""
    if _DESCRIPTOR.fullmatch(str(path)):
        return True
    return path.exists() and not path.is_file()


def _open_stream(path: Path, mode: str, text: dict[str, str]) -> IO[Any]:
    """Open a pipe or a device. An open descriptor is shared, so that nothing there is lost."""
    match = _DESCRIPTOR.fullmatch(str(path))
    if match is None:
        return path.open(mode, **text)  # type: ignore[call-overload,no-any-return]
    name, digits = match.groups()
    number = _STANDARD_STREAMS[name] if name else int(digits)
    return os.fdopen(os.dup(number), mode, **text)  # type: ignore[call-overload,no-any-return]


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented for people."""
    with atomic_writer(path) as stream:
        stream.write(format_json(value))


def format_json(value: Any) -> str:
    """The text that ``write_json`` writes."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises ``DamagedError`` when it is missing or broken, ``UncheckedError`` when the system refuses
    to read it.
    """
    return read_json_and_text(path)[0]


def read_json_and_text(path: Path) -> tuple[Any, str]:
    """The value and the text of a JSON file from one read; it may be replaced at any moment."""
    with reading.reading(path, "JSON"):
        text = path.read_text(encoding="utf-8")
        return json.loads(text), text


def check_folder(path: Path) -> None:
    """Raise ``ConfigError`` if a file is where a folder is to be written."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is a file; it must be the name of a folder")


def swap_folder(new: Path, target: Path) -> None:
    """Replace ``target`` by the finished folder ``new`` in one step, and delete the old one.

    Where the kernel offers it (Linux, ``RENAME_EXCHANGE``) the two names change places atomically,
    so that ``target`` exists at every moment. Elsewhere the old folder is first renamed aside.
    """
    target = follow_links(target)
    _sync_tree(new)
    if not target.exists():
        new.rename(target)
    elif _exchange(new, target):
        shutil.rmtree(new)
    else:
        aside = temporary_sibling(target)
        target.rename(aside)
        new.rename(target)
        shutil.rmtree(aside)
    _sync_folder(target.parent)


@contextlib.contextmanager
def building(target: Path) -> Iterator[Path]:
    """A folder to build in; it replaces ``target`` when the block ends without an exception.

    Raises ``ConfigError`` when ``target`` is a file.
    """
    check_folder(target)
    target = follow_links(target)
    folder = temporary_sibling(target)
    folder.mkdir(parents=True)
    try:
        with naming_disk_errors(target):
            yield folder
        swap_folder(folder, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextlib.contextmanager
def write_lock(path: Path, timeout: float = 0.0) -> Iterator[None]:
    """Hold the right to write ``path``; the kernel releases it when the process dies.

    Raises ``LockedError`` when another process holds it for longer than ``timeout`` seconds.
    """
    path = follow_links(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=timeout)
    except filelock.Timeout as error:
        raise LockedError(
            f"{path}: another process is writing here; wait for it to end, or choose another output"
        ) from error
    try:
        yield
    finally:
        lock.release()


def remove_folder(path: Path) -> None:
    """Delete a folder; nobody sees it half deleted under its own name."""
    aside = temporary_sibling(path)
    path.rename(aside)
    shutil.rmtree(aside)


def folder_size(path: Path) -> int:
    """Bytes of all files below ``path``."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _exchange(first: Path, second: Path) -> bool:
    """Let two names change places; False where the kernel cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second))
    return bool(rename(*names, _RENAME_EXCHANGE) == 0)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        else:
            _sync_folder(path)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
