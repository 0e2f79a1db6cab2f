"""Files from the network: fetched with retries, resumed where they broke, and checked.

A file is read up to a size cap. After a broken connection the download resumes, but only if the
server proves (``ETag`` or ``Last-Modified``) that the file is still the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import tenacity
from tqdm import tqdm

from sparse_ir.errors import DataError
from sparse_ir.storage import files

if TYPE_CHECKING:
    import requests

ATTEMPTS = 4
PAUSE_SECONDS = 2.0  # before the second attempt; doubled before each further one
TIMEOUT_SECONDS = (30.0, 120.0)  # to connect, to wait for the next bytes
_CHUNK_BYTES = 1 << 20
_TOO_MANY_REQUESTS = 429


class Download(NamedTuple):
    """A file on the network."""

    url: str
    megabytes: float  # the size cap: about a tenth above the published size
    md5: str | None  # as published; None: not published, so the checksums are only recorded


@dataclasses.dataclass(frozen=True)
class Observed:
    """What was observed about a downloaded file."""

    url: str
    bytes: int
    md5: str
    md5_published: str | None
    sha256: str


def download_file(download: Download, path: Path, progress: bool) -> Observed:
    """Write the file to ``path``, check it, and return what was observed.

    Raises ``DataError`` for a file that cannot be downloaded, is larger than its cap, or differs
    from its published checksum.
    """
    import requests

    path.unlink(missing_ok=True)
    transfer = _Transfer(download, path, progress)
    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=tenacity.wait_exponential(PAUSE_SECONDS),
        retry=tenacity.retry_if_exception(_is_worth_a_retry),
        reraise=True,
    )
    try:
        size = retrying(transfer.read)
    except requests.RequestException as error:
        raise DataError(
            f"{download.url} cannot be downloaded ({error}); try again later, or put the data set "
            "into the data folder yourself"
        ) from error
    with path.open("rb") as stream:
        md5 = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if download.md5 is not None and md5 != download.md5:
        raise DataError(
            f"{download.url}: md5 is {md5}, but must be {download.md5}; the file was changed on "
            "its way or at its source"
        )
    return Observed(download.url, size, md5, download.md5, files.sha256_of_file(path))


def _is_worth_a_retry(error: BaseException) -> bool:
    """Whether a later attempt may succeed: broken connections, busy and failing servers."""
    import requests

    if not isinstance(error, requests.RequestException):
        return False
    if error.response is None:
        return True
    status = error.response.status_code
    return status >= 500 or status == _TOO_MANY_REQUESTS


class _Transfer:
    """One file on its way, over several connections."""

    def __init__(self, download: Download, path: Path, progress: bool) -> None:
        self._download = download
        self._path = path
        self._progress = progress
        self._condition: dict[str, str] = {}  # the header that asks for the rest of the same file

    def read(self) -> int:
        """Read the file to its end, from where the last connection broke; its bytes in all."""
        import requests

        begun = 0
        if self._condition and self._path.is_file():
            begun = self._path.stat().st_size
        headers = {"Accept-Encoding": "identity"}
        if begun:
            headers |= self._condition | {"Range": f"bytes={begun}-"}
        url = self._download.url
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
            response.raise_for_status()
            if response.status_code != requests.codes.partial_content:
                begun = 0
            self._condition |= _condition(response.headers)
            return self._write(response, begun)

    def _write(self, response: requests.Response, begun: int) -> int:
        promised = begun + int(response.headers.get("Content-Length", 0))
        self._check_size(promised)
        mode = "ab" if begun else "wb"
        bar = tqdm(
            desc=self._path.name,
            total=promised or None,
            initial=begun,
            unit="B",
            unit_scale=True,
            disable=None if self._progress else True,
        )
        with self._path.open(mode) as stream, bar:
            for chunk in response.iter_content(_CHUNK_BYTES):
                stream.write(chunk)
                bar.update(len(chunk))
                self._check_size(stream.tell())
            return stream.tell()

    def _check_size(self, size: int) -> None:
        if size > int(self._download.megabytes * 1e6):
            raise DataError(
                f"{self._download.url} is larger than {self._download.megabytes} MB, the most that "
                "is read of it"
            )


def _condition(headers: Mapping[str, str]) -> dict[str, str]:
    """The header that asks for a part of a file only while the file is still the same."""
    mark = headers.get("ETag", "")
    if not mark or mark.startswith("W/"):  # a weak tag does not promise the same bytes
        mark = headers.get("Last-Modified", "")
    if not mark:
        return {}
    return {"If-Range": mark}
