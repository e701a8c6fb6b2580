"""The line that says how a training goes: rewritten in place on a terminal, logged now and then elsewhere."""

from __future__ import annotations

import datetime
import logging
import resource
import sys
import time
from typing import TextIO

import torch

from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage
from sam_d2.engine.console import console_handlers

logger = logging.getLogger(__name__)

_REDRAW_SECONDS = 0.25
_SMOOTHING = 20


class ProgressLine(HookBase):
    """Show step, ETA, losses, learning rate, images per second and memory.

    Args:
        period: iterations between two lines of the log.
        stream: terminal to draw the live line on; where it is none, only the log is written.
    """

    def __init__(self, period: int, stream: TextIO | None = None) -> None:
        self.period = period
        self.stream = stream if stream is not None else sys.stderr
        self.live = self.stream.isatty()
        self._drawn_at = 0.0
        self._marks: list[tuple[float, int]] = []
        self._filter = _ClearLine(self)

    def before_train(self) -> None:
        """Take the time, and make room for log records above the live line."""
        self._marks = [(time.perf_counter(), self.trainer.iter)]
        if self.live:
            for handler in console_handlers():
                handler.addFilter(self._filter)

    def after_step(self) -> None:
        """Draw or log the line where it is due."""
        done = self.trainer.iter + 1
        now = time.perf_counter()
        self._marks = [*self._marks[-_SMOOTHING:], (now, done)]
        if done % self.period == 0 or done == self.trainer.max_iter:
            logger.info(self._text(self.trainer.storage, done))
        if self.live and now - self._drawn_at > _REDRAW_SECONDS:
            self._drawn_at = now
            self.stream.write(f"\r\x1b[K{self._text(self.trainer.storage, done)}")
            self.stream.flush()

    def after_train(self) -> None:
        """Remove the live line."""
        self.clear()
        for handler in console_handlers():
            handler.removeFilter(self._filter)

    def clear(self) -> None:
        """Erase the live line, so that something else can be written there."""
        if self.live and self._drawn_at:
            self.stream.write("\r\x1b[K")
            self.stream.flush()

    def _text(self, storage: EventStorage, done: int) -> str:
        (then, before), (now, current) = self._marks[0], self._marks[-1]
        seconds = (now - then) / max(current - before, 1)
        eta = datetime.timedelta(seconds=int(seconds * (self.trainer.max_iter - done)))
        latest = storage.latest_with_smoothing_hint(_SMOOTHING)
        losses = "  ".join(
            f"{name} {value:.4g}"
            for name, (value, _) in latest.items()
            if name == "total_loss" or name.startswith("loss_")
        )
        parts = [f"step {done}/{self.trainer.max_iter}", f"eta {eta}", losses]
        if "lr" in latest:
            parts.append(f"lr {latest['lr'][0]:.2e}")
        if "images" in latest and seconds > 0:
            parts.append(f"{latest['images'][0] / seconds:.1f} images/s")
        parts.append(f"memory {_memory_mib():.0f} MiB")
        return "  ".join(part for part in parts if part)


def _memory_mib() -> float:
    """Return the peak memory: the GPU's where one is used, this process's elsewhere."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class _ClearLine(logging.Filter):
    def __init__(self, line: ProgressLine) -> None:
        super().__init__()
        self.line = line

    def filter(self, record: logging.LogRecord) -> bool:
        self.line.clear()
        return True
