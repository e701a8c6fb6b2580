"""Ctrl-C and SIGTERM: a program ends with one line and 130 or 143, a training after the step that it is in."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECONDS_OF_ONE_REQUEST = 2.0
"""How long further signals are the same request, in one of several processes: the terminal or the scheduler sends it
to all of them, and their launcher hands on its own."""


class Interrupted(KeyboardInterrupt):
    """The program was asked to end.

    Args:
        signum: the signal that asked.
    """

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """What shells and schedulers expect: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.signum

    @property
    def told(self) -> str:
        """What the program says at its end."""
        return "interrupted" if self.signum == signal.SIGINT else "terminated"


class StopRequests:
    """The signals that have asked this process to end, and when that raises :class:`Interrupted`: at once or later.

    Signals belong to the process, so there is one object, :data:`stop_requests`.

    Attributes:
        received: the first signal that came in :meth:`handled`, None before and after.
        several: whether this is one of several processes of a run.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.several = False
        self._when = -math.inf
        self._notice: str | None = None
        self._finishing = False
        self._has_work = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Let a signal raise :class:`Interrupted` inside the block; one that the process was told to ignore stays so.

        While a module is loaded, outside of :meth:`deferred`, the signal ends the process instead, with the line and
        the exit code that it would have had.
        Does nothing in another thread than the main one, where signals cannot be handled.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        taken = [signum for signum in SIGNALS if signal.getsignal(signum) != signal.SIG_IGN]
        before = [signal.signal(signum, self._handle) for signum in taken]
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, taken)  # a program that starts this one may have held them back
            yield
        finally:
            for signum, handler in zip(taken, before, strict=True):
                signal.signal(signum, handler)
            self.received, self._when = None, -math.inf

    @contextmanager
    def deferred(self, notice: str = "") -> Iterator[None]:
        """Only note the first signal inside the block; the second raises.

        Args:
            notice: said on stderr when the first comes.
        """
        before = self._notice, self._has_work
        self._notice, self._has_work = notice, True
        try:
            yield
        finally:
            self._notice, self._has_work = before

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within :meth:`deferred`, let the first signal raise inside the block.

        Raises:
            Interrupted: one has come before.
        """
        if self.received is not None:
            raise Interrupted(self.received)
        self._notice, before = None, self._notice
        try:
            yield
        finally:
            self._notice = before

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Let no further SIGTERM disturb what is written in the block before the end; Ctrl-C still does.

        A launcher sends it to the processes that are left as soon as one has ended.
        """
        self._finishing = True
        try:
            yield
        finally:
            self._finishing = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.several and now - self._when < SECONDS_OF_ONE_REQUEST:
            return
        first = self.received is None
        self.received, self._when = self.received or signum, now
        if self._finishing and signum == signal.SIGTERM:
            return
        if first and self._notice is not None:
            if self._notice:
                os.write(2, f"\n{self._notice}\n".encode())  # print may be at work in the frame that this interrupts
            return
        request = Interrupted(signum)
        if not self._has_work and _is_importing(frame):
            if not self.several:  # else the first process or their launcher says it
                os.write(2, f"{request.told}\n".encode())
            os._exit(request.exit_code)
        raise request


def _is_importing(frame: FrameType | None) -> bool:
    """Tell whether a module is being loaded: those in C take an exception for a missing module, or crash by it."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


stop_requests = StopRequests()
