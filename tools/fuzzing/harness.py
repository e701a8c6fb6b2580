"""One input after the other, each within limits of time and memory, and watched for what no reader may do."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from fuzzing import Target
from fuzzing.configs import Overrides, YamlConfig
from fuzzing.data import Dataset, ManifestFile, Mend, Results
from fuzzing.report import Report
from fuzzing.resume import Resume
from fuzzing.weights import Checkpoint, Embedding

TARGETS: dict[str, type[Target]] = {
    target.name: target
    for target in (Dataset, Mend, Results, ManifestFile, Checkpoint, Resume, Embedding, Overrides, YamlConfig, Report)
}
SECONDS = 10.0
"""For an input: a thousand times what one takes."""
MEMORY = 1 << 30
"""Bytes of address space that a process may take beyond what it has after its imports."""
GROWTH = 1 << 28
"""Bytes of memory that are in use for one input, whatever becomes of it: inputs have some thousand."""
_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "ctypes.dlopen",
    "shutil.rmtree",
)


class _TimeUp(BaseException):  # no Exception: readers that turn those into errors of ours must not catch it
    pass


class Harness:
    """Runs inputs of one target in this process.

    Args:
        name: of the target.
        folder: where its files are written.
    """

    def __init__(self, name: str, folder: Path) -> None:
        import torch
        import torchvision  # noqa: F401  loads libraries, which no reader may

        import sam_d2  # noqa: F401  makes detectron2 importable

        logging.disable(logging.CRITICAL)
        sys.dont_write_bytecode = True  # of modules that a config names; it is no reader that would write it
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        self.target = TARGETS[name]()
        self.folder = folder.resolve()
        self.target.prepare(self.folder)
        self._escape = ""
        _watch()

    def make(self, seed: int, index: int) -> bytes:
        """Return an input, the same for the same numbers."""
        return self.target.make(Random(f"{seed} {self.target.name} {index}"))

    def run(self, content: bytes) -> tuple[str, str]:
        """Return the outcome of an input, and what to say of it: a traceback where it is a finding."""
        from sam_d2.errors import UserError

        self._escape = ""
        before = _most_resident()
        try:
            with _time_limit(), self._watched(), contextlib.redirect_stdout(io.StringIO()):
                self.target.read(content)
            outcome, text = "accepted", ""
        except UserError as error:
            outcome, text = "refused", str(error)
        except _TimeUp:
            outcome, text = "timeout", traceback.format_exc()
        except Exception as error:
            outcome, text = "memory" if isinstance(error, MemoryError) else "traceback", traceback.format_exc()
        if self._escape:
            return "escaped", self._escape
        if (grown := _most_resident() - before) > GROWTH:
            return "memory", f"{outcome}, but it took {grown >> 20} MiB\n{text}"
        if outcome == "refused" and not self.target.parses(content):
            outcome = "not parsed"
        return outcome, text

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        global _reading
        _reading = self
        try:
            yield
        finally:
            _reading = None

    def see(self, event: str, details: tuple[Any, ...]) -> None:
        """Keep the first event of Python's runtime that no reader may cause, with where it was."""
        if self._escape:
            return
        if event == "open":
            path, mode, flags = details
            writes = any(letter in str(mode or "") for letter in "wax+") or bool(
                (flags or 0) & (os.O_WRONLY | os.O_RDWR)
            )
            if isinstance(path, int) or not (writes or self.target.not_to_open):
                return
            file = Path(os.fsdecode(path)).resolve()
            if file not in self.target.not_to_open and not (writes and not file.is_relative_to(self.folder)):
                return
        elif not event.startswith(_FORBIDDEN):
            return
        self._escape = f"{event} {details}\n" + "".join(traceback.format_stack())


_reading: Harness | None = None  # whose input is read now


@functools.cache
def _watch() -> None:
    """Watch this process, once: a hook cannot be taken off, and each is called for every event there is."""

    def hook(event: str, details: tuple[Any, ...]) -> None:
        if _reading is not None:
            _reading.see(event, details)

    sys.addaudithook(hook)


def limit_memory() -> None:
    """Let this process take no more than :data:`MEMORY` beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)


@contextlib.contextmanager
def harness(name: str) -> Iterator[Harness]:
    """Give a harness in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix=f"fuzz_{name}_") as folder:
        yield Harness(name, Path(folder))


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise _TimeUp

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _most_resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
