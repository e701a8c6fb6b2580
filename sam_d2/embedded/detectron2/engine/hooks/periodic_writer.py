"""Metrics to their destinations, every so often."""

from collections.abc import Sequence

from detectron2.utils.events import EventWriter

from ..train_loop import HookBase


class PeriodicWriter(HookBase):
    """Call every writer's ``write`` each ``period`` iterations, after the last one, and at the end."""

    def __init__(self, writers: Sequence[EventWriter], period: int = 20) -> None:
        """Keep the writers.

        Args:
            writers: each gets the metrics in the order given.
            period: iterations between two writes; what a writer smooths over is its own affair.
        """
        for writer in writers:
            assert isinstance(writer, EventWriter), writer
        self._writers = writers
        self._period = period

    def _write(self) -> None:
        for writer in self._writers:
            writer.write()

    def after_step(self) -> None:
        """Write where the period or the training is full."""
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            self._write()

    def after_train(self) -> None:
        """Write what other hooks stored in their ``after_train``, and close."""
        for writer in self._writers:
            writer.write()
            writer.close()
