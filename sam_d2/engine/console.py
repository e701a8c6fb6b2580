"""What a run shows on the terminal: what its user needs; ``log.txt`` keeps everything."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

from sam_d2.visible_text import printable

_INTERNAL = re.compile(
    r"Serializ(ing|ed) "  # how the dataset dicts are kept in memory
    r"|Distribution of instances among all "  # sam_d2.data says it in a line
    r"|\[\w+\] Loading from +\.\.\.|No checkpoint found\. "  # no weights: sam_d2 says that they are random
    r"|\[Checkpointer\] Loading from "  # fvcore's, after the same line of Detectron2's checkpointer
    r"|Total inference (pure compute )?time: |Overall training speed: "  # the results and the progress line have it
)
_SAID_ONCE = ("sam_d2.data.", "sam_d2.evaluation.coco_evaluator")
_WARNED_ONCE = ("sam_d2.evaluation.coco_metrics",)
"""Of the ground truth, so that each evaluation finds the same."""


class ConsoleFilter(logging.Filter):
    """Keeps details of the machinery, and facts of the data that were said before, off the terminal.

    Warnings always pass, but for those that each evaluation repeats.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a record is shown."""
        text = record.getMessage()
        warning = record.levelno > logging.INFO
        if record.name.startswith(_WARNED_ONCE if warning else _SAID_ONCE):
            known = text in self._said
            self._said.add(text)
            return not known
        return warning or _INTERNAL.match(text) is None


class VisibleText(logging.Filter):
    """Spells out the control characters in sam_d2's own lines, whose names come with the data.

    Detectron2 and fvcore colour parts of theirs.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record, for all handlers; it is always shown."""
        if record.name.startswith("sam_d2"):
            record.msg, record.args = printable(record.getMessage()), None
        return True


def quiet_console() -> None:
    """Let the terminal's handlers show what :class:`ConsoleFilter` passes, from a fresh start.

    They and the log files show names as :class:`VisibleText` has them.
    """
    quiet, visible = ConsoleFilter(), VisibleText()
    for handler in _stream_handlers():
        handler.filters = [old for old in handler.filters if not isinstance(old, ConsoleFilter | VisibleText)]
        handler.addFilter(visible)
    for handler in console_handlers():
        handler.addFilter(quiet)


def console_handlers() -> list[logging.StreamHandler[Any]]:
    """Return the handlers of all loggers that write to this process's stdout or stderr."""
    return [handler for handler in _stream_handlers() if handler.stream in (sys.stdout, sys.stderr)]


def _stream_handlers() -> list[logging.StreamHandler[Any]]:
    names = ["", *logging.root.manager.loggerDict]
    handlers = [handler for name in names for handler in logging.getLogger(name or None).handlers]
    return [handler for handler in dict.fromkeys(handlers) if isinstance(handler, logging.StreamHandler)]
