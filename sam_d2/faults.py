"""Faults of the machine that a user can mend, told by their exceptions: a full disk, a process without memory."""

from __future__ import annotations

import errno
import os
import re
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sam_d2.errors import UserError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FAILED = {errno.EROFS, errno.EIO, errno.ESTALE}
_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: (\w+)|exited unexpectedly)"
)


def explained(error: BaseException, folder: Path | None = None) -> str | None:
    """Return what a user can do about an error, None where it is no known fault of the machine.

    Args:
        error: that was raised.
        folder: that was being written to; where the error itself names a file, that counts.
    """
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.errno in _NO_ROOM | _FAILED:
            return _disk_text(found, folder)
        found = found.__cause__ or found.__context__
    if isinstance(error, RuntimeError) and (worker := _WORKER.search(str(error))):
        return _worker_text(f" (pid {worker[1]})", worker[2])
    if isinstance(error, ConnectionError | EOFError) and _is_from_loader(error):
        return _worker_text("", None)  # it died while it handed a sample over
    return None


@contextmanager
def told(folder: Path | None = None) -> Iterator[None]:
    """Raise what :func:`explained` knows as a UserError.

    Args:
        folder: that the block writes to.

    Raises:
        UserError: the machine has such a fault.
    """
    try:
        yield
    except (OSError, RuntimeError, EOFError) as error:
        text = explained(error, folder)
        if text is None:
            raise
        raise UserError(text) from error


def _disk_text(error: OSError, folder: Path | None) -> str:
    path = Path(os.fsdecode(error.filename)) if error.filename else folder
    where = f"{path}: " if path else ""
    reason = error.strerror or str(error)
    if error.errno in _FAILED:
        return f"{where}the disk has failed ({reason}). Files that were written before are whole."
    room = ""
    if path is not None:
        nearest = next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
        room = f", {shutil.disk_usage(nearest).free / 2**20:.0f} MiB free"
    return (
        f"{where}no room to write ({reason}{room}). Files that were written before are whole. Free some space or name "
        "another place; a training then goes on with --resume."
    )


def _is_from_loader(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return any(Path(frame.filename).parts[-4:] == ("torch", "utils", "data", "dataloader.py") for frame in frames)


def _worker_text(process: str, signal_name: str | None) -> str:
    if signal_name in ("Bus error", "Bus"):
        cause = "shared memory is used up: give the container more (docker run --shm-size=8g or --ipc=host)"
    elif signal_name and signal_name != "Killed":
        cause = f"it was ended by the signal {signal_name}"
    else:
        cause = "nearly always the system has ended it for want of memory (dmesg tells)"
    return (
        f"A process that reads images{process} died: {cause}. Take fewer of them (dataloader.train.num_workers, "
        "dataloader.test.num_workers; 0 reads in the training process), smaller images or batches, or a machine with "
        "more memory; a training then goes on with --resume."
    )
