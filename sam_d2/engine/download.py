"""Download a file of weights: continued where it broke off, and named only once its content is verified."""

from __future__ import annotations

import fcntl
import io
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from sam_d2.engine.transfer import SCHEMES, Source, Transfer
from sam_d2.engine.weights import PUBLISHED, sha256_of
from sam_d2.errors import UserError

logger = logging.getLogger(__name__)


def download(
    name_or_url: str, folder: str | Path, *, sha256: str | None = None, attempts: int = 5, pause: float = 1.0
) -> Path:
    """Download published weights, or the file of a URL, into a folder.

    The content goes to ``NAME.partial``, which a later call continues, and gets its name after the sha256 has been
    verified. A file that is already there is verified and returned, and never overwritten. Without a known sha256 a
    partial file of an earlier call is not continued: it could be of another version.

    Args:
        name_or_url: of :data:`sam_d2.engine.weights.PUBLISHED` the short name or file name, or an http(s) URL.
        folder: made where it does not exist.
        sha256: that the file of a URL must have, or the beginning of it; published weights have their own.
        attempts: failed requests in a row, none of which brought the file further, after which it gives up.
        pause: seconds before the second attempt; doubled before each further one.

    Returns:
        The file.

    Raises:
        UserError: the name is unknown, the server has no such file or another one, the connection keeps breaking,
            the disk is full, or a file of that name is there and is another one.
    """
    source = _source(name_or_url, sha256)
    target = Path(folder) / source.file_name
    if target.exists():
        _check_existing(target, source)
        return target
    partial = target.with_name(f"{target.name}.partial")
    with _opened_alone(partial) as file, _progress(target.name) as show:
        transfer = Transfer(source, file, partial, show)
        for second in (False, True):
            transfer.complete(attempts, pause)
            found = sha256_of(partial)
            if found.startswith(source.sha256 or ""):
                os.fsync(file.fileno())
                partial.replace(target)
                return target
            if second or not transfer.continued:
                break
            logger.warning("%s: the parts do not belong together; it is downloaded anew", partial)
            transfer.restart()
        partial.unlink()
    raise UserError(
        f"{source.url}: the sha256 of what the server sends is {found}, expected {source.sha256}. It is not the file "
        "that was published, or it is changed on the way; nothing is kept. Try again from another network."
    )


def _source(name_or_url: str, sha256: str | None) -> Source:
    for file_name, published in PUBLISHED.items():
        if name_or_url in (file_name, published.name):
            return Source(published.url, published.sha256, published.size)
    try:
        parts = urlsplit(name_or_url)
        scheme, host = parts.scheme, parts.hostname
    except ValueError:
        scheme, host = "", None
    if scheme not in SCHEMES or not host:
        names = ", ".join(published.name for published in PUBLISHED.values())
        raise UserError(f"{name_or_url}: neither an http(s) URL nor one of {names}.")
    source = Source(name_or_url, sha256.lower() if sha256 else None, None)
    if source.file_name in ("", ".", ".."):
        raise UserError(f"{name_or_url}: the URL does not end in a file's name.")
    return source


def _check_existing(target: Path, source: Source) -> None:
    if not target.is_file():
        raise UserError(f"{target} exists and is not a file. Move it, or take another folder.")
    if source.sha256 is None:
        logger.warning("%s is there already; it cannot be verified without a sha256", target)
        return
    if source.size in (None, target.stat().st_size) and sha256_of(target).startswith(source.sha256):
        return
    raise UserError(
        f"{target} exists, but is not what {source.url} is known to hold (sha256 {source.sha256}). Delete or rename "
        "it and download again; it is left as it is."
    )


@contextmanager
def _opened_alone(partial: Path) -> Iterator[io.FileIO]:
    """Open a partial file for appending; two downloads into one file would mix their bytes."""
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: what has arrived is on the disk when the process is killed, and a full disk shows at once.
        file = partial.open("ab", buffering=0)
    except OSError as error:
        raise UserError(f"{partial}: cannot be written ({error.strerror}). Take another folder.") from error
    with file:
        busy = UserError(f"{partial}: another download is writing this file. Wait for it, or take another folder.")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        except OSError:
            logger.warning("%s: this file system has no locks; download it only once at a time", partial)
        if not partial.exists() or not os.path.samestat(os.fstat(file.fileno()), partial.stat()):
            raise busy  # the other one has just finished
        try:
            yield file
        finally:
            if os.fstat(file.fileno()).st_size == 0:
                partial.unlink(missing_ok=True)


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Draw a progress bar on a terminal; yields ``show(bytes so far, bytes of the file)``."""
    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    bar = Progress(
        TextColumn("{task.description}"), *columns, console=console, disable=not console.is_terminal, transient=True
    )
    with bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
