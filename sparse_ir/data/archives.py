"""Zip files from strangers, unpacked safely: every member is checked before any is written."""

from __future__ import annotations

import re
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from sparse_ir.errors import DataError

LONGEST_NAME = 255  # bytes: the limit of a file system
MOST_MEMBERS = 10_000
_CHUNK_BYTES = 1 << 20
_ENCRYPTED = 1  # flag bit of a member


def extract_archive(archive: Path, folder: Path, limit: int, *, name: str | None = None) -> None:
    """Unpack a zip file into ``folder``, at most ``limit`` bytes in all.

    ``name`` stands for the archive in messages.

    Raises:
        DataError: the file is not a complete zip; a member would leave the folder (``..``, an
            absolute name, a link), is encrypted or appears twice; there are too many members, or
            more bytes than the limit.
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
        raise DataError(
            f"{name} is not a complete zip file ({error}); download it again"
        ) from error


def _check_members(name: str, members: list[zipfile.ZipInfo], limit: int) -> None:
    if len(members) > MOST_MEMBERS:
        raise DataError(f"{name} has {len(members)} members, but at most {MOST_MEMBERS} are read")
    places: set[str] = set()
    folders: set[str] = set()
    for member in members:
        path = PurePosixPath(member.filename)
        danger = _danger(member)
        if danger is None and str(path) in places:
            danger = "appears twice"
        if danger is not None:
            raise DataError(
                f"{name}: member {member.orig_filename!r} {danger}; nothing was unpacked"
            )
        places.add(str(path))
        folders.update(str(parent) for parent in path.parents)
    for member in members:
        place = str(PurePosixPath(member.filename))
        if not member.is_dir() and place in folders:
            raise DataError(
                f"{name}: member {place!r} is a file and a folder at once; nothing was unpacked"
            )
    total = sum(member.file_size for member in members)
    if total > limit:
        raise DataError(
            f"{name} would unpack to {total} bytes, but at most {limit} are written; nothing was "
            "unpacked"
        )


def _danger(member: zipfile.ZipInfo) -> str | None:
    """What is dangerous about a member; None for a plain file or folder that stays inside."""
    name = member.orig_filename
    path = PurePosixPath(name)
    longest = max(len(part) for part in name.encode().split(b"/"))
    if path.is_absolute() or "\\" in name or re.match(r"[A-Za-z]:", name):
        return "has an absolute name or a backslash"
    if ".." in path.parts:
        return "leaves the folder"
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    if member.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if "\0" in name or longest > LONGEST_NAME:
        return f"has a zero in its name, or more than {LONGEST_NAME} bytes between two slashes"
    return None


def _write_member(opened: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    """Write a member; zipfile reads no more than the size that was checked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with opened.open(member) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target, _CHUNK_BYTES)
