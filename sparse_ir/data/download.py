"""Files from the network: patiently fetched, checked, and unpacked safely."""

from __future__ import annotations

import hashlib
import itertools
import re
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from tqdm import tqdm

from sparse_ir.errors import DataError
from sparse_ir.storage import files

ATTEMPTS = 4
PAUSE_SECONDS = 2.0  # before the second attempt; doubled before each further one
TIMEOUT_SECONDS = (30.0, 120.0)  # to connect, to wait for the next bytes
_CHUNK_BYTES = 1 << 20
_LONGEST_NAME = 255  # bytes: that of a file system
_MOST_MEMBERS = 10_000


class Download(NamedTuple):
    """A file of the network."""

    url: str
    megabytes: float  # more than this is not read: about a tenth above the published size
    md5: str | None  # as published; None: unknown, then only the observed checksums are recorded


def download_file(download: Download, path: Path, progress: bool) -> dict[str, Any]:
    """Write the file to ``path`` and check it; what was observed."""
    size = _read_patiently(download, path, progress)
    with path.open("rb") as stream:
        md5 = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if download.md5 is not None and md5 != download.md5:
        raise DataError(
            f"{download.url}: md5 is {md5}, allowed: {download.md5}; the file was "
            "changed on its way or at "
            "its source"
        )
    return {
        "url": download.url,
        "bytes": size,
        "md5": md5,
        "md5_published": download.md5,
        "sha256": files.sha256_of_file(path),
    }


def _read_patiently(download: Download, path: Path, progress: bool) -> int:
    """Bytes written; a server that is busy, and a connection that breaks, are tried again, from
    where it broke.
    """
    import requests

    path.unlink(missing_ok=True)
    condition: dict[str, str] = {}
    for attempt in itertools.count(1):
        try:
            return _read_once(download, path, progress, condition)
        except requests.RequestException as error:
            status = error.response.status_code if error.response is not None else 500
            if attempt == ATTEMPTS or (status < 500 and status != 429):
                raise DataError(
                    f"{download.url} cannot be downloaded ({error}); try again later, "
                    "or put the data set "
                    "into the data folder yourself"
                ) from error
        time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
    raise AssertionError("unreachable")


def _read_once(download: Download, path: Path, progress: bool, condition: dict[str, str]) -> int:
    """Bytes in the file at the end. ``condition`` is empty at first, then how to ask for the rest
    of the same file.
    """
    import requests

    limit = int(download.megabytes * 1e6)
    begun = path.stat().st_size if condition and path.is_file() else 0
    asked = {
        "Accept-Encoding": "identity",
        **({**condition, "Range": f"bytes={begun}-"} if begun else {}),
    }
    with requests.get(
        download.url, headers=asked, stream=True, timeout=TIMEOUT_SECONDS
    ) as response:
        response.raise_for_status()
        begun = begun if response.status_code == requests.codes.partial_content else 0
        condition |= _condition(response.headers)
        promised = begun + int(response.headers.get("Content-Length", 0))
        _check_size(download, promised, limit)
        with (
            path.open("ab" if begun else "wb") as stream,
            tqdm(
                desc=path.name,
                total=promised or None,
                initial=begun,
                unit="B",
                unit_scale=True,
                disable=None if progress else True,
            ) as bar,
        ):
            for chunk in response.iter_content(_CHUNK_BYTES):
                stream.write(chunk)
                bar.update(len(chunk))
                _check_size(download, stream.tell(), limit)
            return stream.tell()


def _condition(headers: Mapping[str, str]) -> dict[str, str]:
    """The header that asks for a part of a file only while the file is the one whose answer had
    these headers.
    """
    tag = headers.get("ETag", "")
    mark = headers.get("Last-Modified") if not tag or tag.startswith("W/") else tag
    return {"If-Range": mark} if mark else {}


def _check_size(download: Download, size: int, limit: int) -> None:
    if size > limit:
        raise DataError(
            f"{download.url} is larger than {download.megabytes} MB, which is all "
            "that is allowed for it"
        )


def extract_archive(archive: Path, folder: Path, limit: int, *, name: str | None = None) -> None:
    """Unpack a zip file into ``folder``, of at most ``limit`` bytes in all; ``name`` stands for it
    in messages.

    Every member is looked at before any is written. Raises ``DataError`` for a file that is no
    whole zip, a member that would leave the folder (``..``, an absolute name, a link), that is
    encrypted or stands there twice, for too many members, and for more bytes than the limit.
    """
    name = name or str(archive)
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
            _check_members(name, members, limit)
            for member in members:
                if not member.is_dir():
                    _write_member(opened, member, folder / member.filename)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DataError(f"{name} is not a whole zip file ({error}); download it again") from error


def _check_members(name: str, members: list[zipfile.ZipInfo], limit: int) -> None:
    if len(members) > _MOST_MEMBERS:
        raise DataError(f"{name}: {len(members)} members, allowed: {_MOST_MEMBERS}")
    seen: set[str] = set()
    for member in members:
        if reason := _danger(member, seen):
            raise DataError(
                f"{name}: member {member.orig_filename!r} {reason}; nothing was unpacked"
            )
        seen.add(str(PurePosixPath(member.filename)))
    folders = {
        str(folder) for member in members for folder in PurePosixPath(member.filename).parents
    }
    if both := folders & {
        str(PurePosixPath(member.filename)) for member in members if not member.is_dir()
    }:
        raise DataError(
            f"{name}: member {min(both)!r} is a file and a folder at once; nothing was unpacked"
        )
    total = sum(member.file_size for member in members)
    if total > limit:
        raise DataError(
            f"{name} would unpack to {total} bytes, allowed: {limit}; nothing was unpacked"
        )


def _danger(member: zipfile.ZipInfo, seen: set[str]) -> str | None:
    """What is wrong with a member of an archive; None for a plain file or
    folder that stays inside.
    """
    path = PurePosixPath(member.orig_filename)
    kind = stat.S_IFMT(member.external_attr >> 16)
    if (
        path.is_absolute()
        or "\\" in member.orig_filename
        or re.match(r"[A-Za-z]:", member.orig_filename)
    ):
        return "has an absolute name or a backslash"
    if ".." in path.parts:
        return "leaves the folder"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    if member.flag_bits & 1:
        return "is encrypted"
    if (
        "\0" in member.orig_filename
        or max(map(len, member.orig_filename.encode().split(b"/"))) > _LONGEST_NAME
    ):
        return f"has a zero in its name, or more than {_LONGEST_NAME} bytes between two slashes"
    return "stands there twice" if str(PurePosixPath(member.filename)) in seen else None


def _write_member(opened: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    source: IO[bytes]
    # reads no more than the size that was looked at
    with opened.open(member) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target, _CHUNK_BYTES)
