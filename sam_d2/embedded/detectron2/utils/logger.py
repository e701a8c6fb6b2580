"""Loggers with Detectron2's format, and logging that does not repeat itself."""

import atexit
import functools
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Hashable
from types import FrameType
from typing import IO, Any

from tabulate import tabulate
from termcolor import colored

from detectron2.utils.file_io import PathManager

__all__ = ["create_small_table", "log_every_n", "log_every_n_seconds", "log_first_n", "setup_logger"]

_DATE_FORMAT = "%m/%d %H:%M:%S"


class _ColorFormatter(logging.Formatter):
    """Formatter for a terminal: abbreviates the logger's root name, marks warnings and errors in red."""

    def __init__(self, root_name: str, abbreviation: str) -> None:
        super().__init__(colored("[%(asctime)s %(name)s]: ", "green") + "%(message)s", datefmt=_DATE_FORMAT)
        self._prefix = root_name + "."
        self._short_prefix = abbreviation + "." if abbreviation else ""

    def formatMessage(self, record: logging.LogRecord) -> str:
        # The record itself is changed: the log file, written after the terminal, has the short name too.
        record.name = record.name.replace(self._prefix, self._short_prefix)
        text = super().formatMessage(record)
        if record.levelno == logging.WARNING:
            return colored("WARNING", "red", attrs=["blink"]) + " " + text
        if record.levelno in (logging.ERROR, logging.CRITICAL):
            return colored("ERROR", "red", attrs=["blink", "underline"]) + " " + text
        return text


@functools.cache  # a second call with the same arguments must not add the handlers again
def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "detectron2",
    abbrev_name: str | None = None,
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Give a logger the level DEBUG, a handler to stdout on rank 0, and a log file on every rank.

    Args:
        output: a file that ends in ``.txt`` or ``.log``, or a folder in which ``log.txt`` is written; None
            for no file. The rank is appended to the file's name on other ranks than 0.
        distributed_rank: rank of this process.
        color: use colours, and abbreviated names, on stdout.
        name: the root logger of the package.
        abbrev_name: what stands for the root name in the log, "" to leave it out. By default "d2" for
            detectron2 and the name itself otherwise.
        enable_propagation: pass records on to the parent logger.
        configure_stdout: log to stdout at all.

    Returns:
        the logger.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = enable_propagation
    if abbrev_name is None:
        abbrev_name = "d2" if name == "detectron2" else name
    plain = logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt=_DATE_FORMAT)

    if configure_stdout and distributed_rank == 0:
        _add_handler(logger, sys.stdout, _ColorFormatter(name, str(abbrev_name)) if color else plain)
    if output is not None:
        file_name = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")  # noqa: PTH118
        if distributed_rank > 0:
            file_name += f".rank{distributed_rank}"
        _add_handler(logger, _open_log(file_name), plain)
    return logger


def _add_handler(logger: logging.Logger, stream: IO[str], formatter: logging.Formatter) -> None:
    handler = logging.StreamHandler(stream)
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(formatter)
    logger.addHandler(handler)


@functools.cache  # loggers of several packages write to one file through one handle
def _open_log(file_name: str) -> IO[str]:
    PathManager.mkdirs(os.path.dirname(file_name))  # noqa: PTH120  may be a URL
    stream = PathManager.open(file_name, "a")
    atexit.register(stream.close)
    return stream


_counts: Counter[Hashable] = Counter()
_last_times: dict[Hashable, float] = {}


def _caller() -> tuple[str, tuple[Any, ...]]:
    """Return the module that called a function of this file, and a key for the line of the call."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    assert frame is not None
    module = frame.f_globals["__name__"]
    key = (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
    return ("detectron2" if module == "__main__" else module), key


def log_first_n(
    lvl: int, msg: str, n: int = 1, *, name: str | None = None, key: str | tuple[str, ...] = "caller"
) -> None:
    """Log only the first ``n`` times.

    Args:
        lvl: logging level.
        msg: what to log.
        n: how often.
        name: the logger; the caller's module where none is given.
        key: what makes two calls the same: "caller" (the line of the call), "message", or both in a tuple.
    """
    parts = (key,) if isinstance(key, str) else key
    assert len(parts) > 0
    module, line = _caller()
    identity = (line if "caller" in parts else ()) + ((msg,) if "message" in parts else ())
    _counts[identity] += 1
    if _counts[identity] <= n:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log the first of every ``n`` calls from the same line.

    Args:
        lvl: logging level.
        msg: what to log.
        n: calls per message.
        name: the logger; the caller's module where none is given.
    """
    module, line = _caller()
    _counts[line] += 1
    if n == 1 or _counts[line] % n == 1:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n_seconds(lvl: int, msg: str, n: float = 1, *, name: str | None = None) -> None:
    """Log at most once in ``n`` seconds from the same line.

    Args:
        lvl: logging level.
        msg: what to log.
        n: seconds between two messages.
        name: the logger; the caller's module where none is given.
    """
    module, line = _caller()
    now = time.time()
    if line not in _last_times or now - _last_times[line] >= n:
        logging.getLogger(name or module).log(lvl, msg)
        _last_times[line] = now


def create_small_table(small_dict: dict[str, Any]) -> str:
    """Return a pipe table of one row, with the dict's keys as header and three decimals."""
    return tabulate(
        [list(small_dict.values())],
        headers=list(small_dict),
        tablefmt="pipe",
        floatfmt=".3f",
        stralign="center",
        numalign="center",
    )
