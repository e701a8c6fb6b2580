"""Seconds per iteration."""

import logging
import time
from datetime import timedelta

from fvcore.common.timer import Timer

from ..train_loop import HookBase

_logger = logging.getLogger(__package__)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=int(seconds)))


class IterationTimer(HookBase):
    """Store ``time``, the seconds from its ``before_step`` to its ``after_step``, and sum up at the end.

    Registered first it measures the step alone, because other hooks do their slow work in ``after_step``.
    """

    def __init__(self, warmup_iter: int = 3) -> None:
        """Leave the first iterations out.

        Args:
            warmup_iter: so many iterations at the start do not count towards the average speed.
        """
        self._warmup_iter = warmup_iter
        self._step_timer = Timer()
        self._steps_timer = Timer()
        self._start_time = time.perf_counter()

    def before_train(self) -> None:
        """Start the clock of the whole training; the clock of the steps stands still between them."""
        self._restart()
        self._steps_timer.pause()

    def _restart(self) -> None:
        self._start_time = time.perf_counter()
        self._steps_timer.reset()

    def before_step(self) -> None:
        """Start timing a step."""
        self._step_timer.reset()
        self._steps_timer.resume()

    def after_step(self) -> None:
        """Store the step's seconds, or start anew while the warm-up lasts."""
        done = self.trainer.storage.iter - self.trainer.start_iter + 1
        if done < self._warmup_iter:
            self._restart()
        else:
            self.trainer.storage.put_scalars(time=self._step_timer.seconds())
        self._steps_timer.pause()

    def after_train(self) -> None:
        """Log the mean speed after the warm-up and the share of the hooks."""
        total = time.perf_counter() - self._start_time
        steps = self._steps_timer.seconds()
        # At the end storage.iter is max_iter; the one more is the warm-up's last, which is timed too.
        count = self.trainer.storage.iter + 1 - self.trainer.start_iter - self._warmup_iter
        if count > 0 and steps > 0:
            # Scripts search logs for the wording of these two lines.
            _logger.info(f"Overall training speed: {count} iterations in {_clock(steps)} ({steps / count:.4f} s / it)")
        _logger.info(f"Total training time: {_clock(total)} ({_clock(total - steps)} on hooks)")
