"""A folder that one process at a time works in; a process that has ended, however, holds nothing."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import weakref
from pathlib import Path
from typing import IO

from sam_d2.errors import UserError

logger = logging.getLogger(__name__)

_CANNOT_LOCK = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


class FileLock:
    """A file that says which process is at work in its folder.

    The lock is the system's (``flock``), so it is gone with its process, also after SIGKILL, and the file alone means
    nothing. On a network disk it holds between machines where the server takes such locks, as those of NFS version 4
    do; where it takes none, a warning says so.

    Args:
        path: of the file; it is there while the lock is held.
        hint: what the one who is refused can do, beside waiting.
    """

    def __init__(self, path: Path, hint: str = "") -> None:
        self.path = path
        self.hint = hint
        self._file: IO[str] | None = None

    def acquire(self, *, wait: bool = False) -> None:
        """Take the lock, unless this object has it.

        Args:
            wait: until another process has given it back, instead of being refused.

        Raises:
            UserError: another process has it.
        """
        while self._file is None:
            file = self.path.open("a+", encoding="utf-8")
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise UserError(
                    f"{self.path.parent}: another process is at work on it ({file.read().strip() or 'just begun'}). "
                    f"Wait until it has ended{self.hint}."
                ) from None
            except OSError as error:
                if error.errno not in _CANNOT_LOCK:
                    raise
                logger.warning("%s cannot be locked (%s): see to it that one process uses it", self.path.parent, error)
            if self._is_in_place(file):
                self._file = file
            else:  # the one who had it has just removed it
                file.close()
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()
        _held.add(self)

    def release(self) -> None:
        """Give the lock back and remove its file."""
        if self._file is not None:
            if self._is_in_place(self._file):
                self.path.unlink()
            self._file.close()
            self._file = None

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def forget(self) -> None:
        """Let go of the lock in a process that was forked off: it would outlive the one that works."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _is_in_place(self, file: IO[str]) -> bool:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return False
        own = os.fstat(file.fileno())
        return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)


def _forget_all() -> None:
    for lock in list(_held):
        lock.forget()


os.register_at_fork(after_in_child=_forget_all)
