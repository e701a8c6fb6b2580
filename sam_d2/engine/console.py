"""What a run shows on the terminal: what its user needs; ``log.txt`` keeps everything."""

from __future__ import annotations

import logging
import re
import sys

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


def quiet_console() -> None:
    """Let the terminal's handlers show what :class:`ConsoleFilter` passes, from a fresh start."""
    new = ConsoleFilter()
    for handler in console_handlers():
        handler.filters = [old for old in handler.filters if not isinstance(old, ConsoleFilter)]
        handler.addFilter(new)


def console_handlers() -> list[logging.Handler]:
    """Return the handlers of all loggers that write to this process's stdout or stderr."""
    names = ["", *logging.root.manager.loggerDict]
    handlers = [handler for name in names for handler in logging.getLogger(name or None).handlers]
    return [
        handler
        for handler in dict.fromkeys(handlers)
        if isinstance(handler, logging.StreamHandler) and handler.stream in (sys.stdout, sys.stderr)
    ]
