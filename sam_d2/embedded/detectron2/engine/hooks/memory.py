"""CUDA memory in the log."""

import logging

import torch

from ..train_loop import HookBase

_logger = logging.getLogger(__package__)

_COUNTERS = {
    "max_reserved_mem": "max_memory_reserved",
    "reserved_mem": "memory_reserved",
    "max_allocated_mem": "max_memory_allocated",
    "allocated_mem": "memory_allocated",
}


class TorchMemoryStats(HookBase):
    """Log torch's CUDA memory each ``period`` iterations and after the last one; silent without CUDA."""

    def __init__(self, period: int = 20, max_runs: int = 10) -> None:
        """Say how often.

        Args:
            period: iterations between two lines.
            max_runs: the line of this number brings torch's full summary, and one more line is the last.
        """
        self._period = period
        self._max_runs = max_runs
        self._runs = 0

    def after_step(self) -> None:
        """Log where it is time to, and start the peak counters anew."""
        done = self.trainer.iter + 1
        due = done % self._period == 0 or done == self.trainer.max_iter
        if not due or self._runs > self._max_runs or not torch.cuda.is_available():
            return
        values = [f" {name}: {getattr(torch.cuda, counter)() / 2**20:.0f}MB " for name, counter in _COUNTERS.items()]
        _logger.info(f" iter: {self.trainer.iter} " + "".join(values))
        self._runs += 1
        if self._runs == self._max_runs:
            _logger.info("\n" + torch.cuda.memory_summary())
        torch.cuda.reset_peak_memory_stats()
