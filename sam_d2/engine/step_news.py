"""What the processes of a training tell one another once a step: requests to stop, bad images, bad losses."""

from __future__ import annotations

import signal
from typing import NamedTuple

import torch


class News(NamedTuple):
    """Of one step, summed over the processes.

    Attributes:
        interrupts: processes that Ctrl-C has reached.
        terminations: processes that SIGTERM has reached.
        bad_images: images that could not be read, with others in their places.
        not_finite: processes with a loss or gradient that is not a number.
    """

    interrupts: int
    terminations: int
    bad_images: int
    not_finite: int

    @property
    def stop(self) -> int | None:
        """The signal to end with, the same in all processes; None to go on."""
        if self.terminations:
            return int(signal.SIGTERM)
        return int(signal.SIGINT) if self.interrupts else None


class StepNews:
    """Sums small numbers over the processes, on the CPU: no process waits for its GPU, only for the slowest other one.

    Make it in all processes of a run; one process alone exchanges nothing.
    """

    def __init__(self) -> None:
        self._group: torch.distributed.ProcessGroup | None = None
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            group = torch.distributed.new_group(backend="gloo")
            assert isinstance(group, torch.distributed.ProcessGroup)  # this process is in it
            self._group = group

    def exchange(self, *, received: int | None, bad_images: int, not_finite: bool) -> News:
        """Return the sums; all processes call it once a step.

        Args:
            received: signal that has asked this process to stop.
            bad_images: of this process in this step.
            not_finite: whether a loss of this process, or its gradient, is not a number.
        """
        own = [received == signal.SIGINT, received == signal.SIGTERM, bad_images, not_finite]
        if self._group is None:
            return News(*map(int, own))
        sums = torch.tensor(own, dtype=torch.int64)
        torch.distributed.all_reduce(sums, group=self._group)
        return News(*sums.tolist())
