"""One file over HTTP, appended to what an earlier connection has left of it."""

from __future__ import annotations

import errno
import http.client
import io
import logging
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import unquote, urlsplit

import sam_d2
from sam_d2.errors import UserError

logger = logging.getLogger(__name__)

SCHEMES = ("http", "https")

_TIMEOUT = 30.0  # seconds without a byte
_BLOCK = 1 << 20
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers that may be another one later


@dataclass(frozen=True)
class Source:
    """A file on the web.

    Attributes:
        url: http or https.
        sha256: that the file must have; None where nobody says.
        size: bytes that it must have; None where nobody says.
    """

    url: str
    sha256: str | None
    size: int | None

    @property
    def file_name(self) -> str:
        """The last part of the URL's path."""
        return PurePosixPath(unquote(urlsplit(self.url).path)).name


class _BrokenError(Exception):
    """A request that failed in a way that may not repeat itself."""


class Transfer:
    """One file on its way from a URL to a partial file.

    Args:
        source: what is downloaded.
        file: the partial file, open for appending.
        path: of the partial file.
        show: is told of the progress.
    """

    def __init__(self, source: Source, file: io.FileIO, path: Path, show: Callable[[int, int | None], None]) -> None:
        self.source, self.file, self.path, self.show = source, file, path, show
        self.length = os.fstat(file.fileno()).st_size
        # The server's mark of the version that the first part is of; without one only the sha256 can tell.
        self._version: str | None = None
        self.continued = self.length > 0

    def restart(self) -> None:
        """Throw away what has arrived."""
        self.file.truncate(0)
        self.length = 0
        self.continued = False

    def complete(self, attempts: int, pause: float) -> None:
        """Request again and again until the file is complete.

        Args:
            attempts: failed requests in a row, none of which brought the file further, after which it gives up.
            pause: seconds before the second attempt; doubled before each further one.

        Raises:
            UserError: it gave up, or another attempt would not help.
        """
        furthest, failures = self.length, 0
        while True:
            try:
                return self._request()
            except _BrokenError as error:
                if self.length > furthest:
                    furthest, failures = self.length, 0
                failures += 1
                if failures >= attempts:
                    again = "again" if self.source.sha256 is None else f"again: it goes on after {self.length:,} bytes"
                    raise UserError(
                        f"{self.source.url}: gave up after {attempts} attempts ({error}). Run the command {again}."
                    ) from error
                logger.warning("%s: %s; trying again", self.source.file_name, error)
                time.sleep(pause * 2 ** (failures - 1))

    def _request(self) -> None:
        """Ask for what is missing and append it.

        Raises:
            _BrokenError: it ended before the file was complete.
            UserError: another attempt would not help.
        """
        if self.length and self.length == self.source.size:
            return
        headers = {"Accept-Encoding": "identity", "User-Agent": f"sam_d2/{sam_d2.__version__}"}
        if self.length and (self.source.sha256 or self._version):
            headers["Range"] = f"bytes={self.length}-"
            if self._version:
                headers["If-Range"] = self._version
        try:
            response = _OPENER.open(urllib.request.Request(self.source.url, headers=headers), timeout=_TIMEOUT)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error)
            return
        except (OSError, http.client.HTTPException) as error:
            raise _BrokenError(_reason(error)) from error
        with response:
            self._receive(response, self._begin(response))

    def _refused(self, error: urllib.error.HTTPError) -> None:
        if error.code == 416 and self.length:
            return  # nothing lies behind the bytes that are there; the sha256 tells whether they are the file
        if error.code in _PASSING:
            raise _BrokenError(f"HTTP {error.code} {error.reason}")
        raise UserError(
            f"{self.source.url}: HTTP {error.code} {' '.join(str(error.reason).split())}. Check the address in a "
            "browser; a proxy or a company's network may refuse it."
        ) from error

    def _begin(self, response: Any) -> int | None:
        """Make the file ready for the body; returns the bytes of the whole, None where the server does not say."""
        length = response.headers.get("Content-Length", "")
        body = int(length) if length.isdigit() else None
        if response.status == 206:
            part = response.headers.get("Content-Range", "")
            if not part.startswith(f"bytes {self.length}-"):
                self.restart()
                raise _BrokenError(f"the server sent another part than was asked for ({part})")
            total = _total(part)
            if total is None and body is not None:
                total = self.length + body
        else:
            total = body
        if self.source.size is not None and total not in (None, self.source.size):
            raise UserError(
                f"{self.source.url}: the server offers {total:,} bytes, the published file has {self.source.size:,}. "
                "It may be the page of a proxy or a login; open the address in a browser."
            )
        if response.status == 206:
            self.continued = True
        else:
            self.restart()
        tag = response.headers.get("ETag", "")
        self._version = tag if tag.startswith('"') else response.headers.get("Last-Modified")
        if total is not None:
            self._check_space(total)
        return total

    def _check_space(self, total: int) -> None:
        free = shutil.disk_usage(self.path.parent).free
        if free < total - self.length:
            raise UserError(
                f"{self.path.parent}: {total - self.length:,} bytes are needed and {free:,} are free. Make room, or "
                "take another folder."
            )

    def _receive(self, response: Any, total: int | None) -> None:
        limit = self.source.size
        total = total or limit
        self.show(self.length, total)
        while limit is None or self.length <= limit:  # beyond, the sha256 cannot be right: no need to fill the disk
            try:
                block = response.read1(_BLOCK)
            except (OSError, http.client.HTTPException) as error:
                raise _BrokenError(f"{_reason(error)} after {self.length:,} bytes") from error
            if not block:
                break
            self._append(block)
            self.show(self.length, total)
        if total is not None and self.length < total:
            raise _BrokenError(f"the connection ended after {self.length:,} of {total:,} bytes")

    def _append(self, block: bytes) -> None:
        view = memoryview(block)
        while view:
            try:
                written = self.file.write(view)
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                raise UserError(
                    f"{self.path}: {'the disk is full' if full else error.strerror} after {self.length:,} bytes. "
                    "Make room and run the same command again: it goes on from there."
                ) from error
            self.length += written
            view = view[written:]


def _total(content_range: str | None) -> int | None:
    """Return the bytes of the whole file in a Content-Range header; None where it does not say."""
    found = re.search(r"/(\d+)$", content_range or "")
    return int(found[1]) if found else None


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return " ".join(str(reason).split()) or type(error).__name__


class _WebRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to the web only; urllib would go on to FTP as well."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme not in SCHEMES:
            raise urllib.error.HTTPError(req.full_url, code, f"redirects to {newurl}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_WebRedirects)
