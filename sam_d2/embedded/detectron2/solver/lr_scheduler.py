"""Learning rates as a multiple of the initial ones, by fvcore's schedules."""

from typing import Any

import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["LRMultiplier", "LRScheduler", "WarmupParamScheduler"]


class WarmupParamScheduler(CompositeParamScheduler):
    """A schedule whose beginning is replaced by a warm-up."""

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ) -> None:
        """Put a warm-up before a schedule.

        Args:
            scheduler: the schedule.
            warmup_factor: the warm-up begins with this multiple of the schedule's first value.
            warmup_length: part of the training, in [0, 1], that the warm-up takes.
            warmup_method: "linear" (up to the schedule's value) or "constant".
            rescale_interval: the schedule is compressed into what is left after the warm-up; otherwise the
                warm-up hides its beginning.

        Raises:
            ValueError: another method.
        """
        first = warmup_factor * scheduler(0.0)
        if warmup_method == "linear":
            warmup: ParamScheduler = LinearParamScheduler(first, scheduler(0.0 if rescale_interval else warmup_length))
        elif warmup_method == "constant":
            warmup = ConstantParamScheduler(first)
        else:
            raise ValueError(f"Unknown warmup method: {warmup_method}; expected linear or constant")
        super().__init__(
            [warmup, scheduler],
            lengths=[warmup_length, 1 - warmup_length],
            interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
        )


class LRMultiplier(LRScheduler):
    """A torch scheduler that multiplies the initial learning rate of each group by one fvcore schedule.

    ``step()`` is called once per iteration; torch's "epoch" means an iteration here.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, multiplier: ParamScheduler, max_iter: int, last_iter: int = -1
    ) -> None:
        """Set the schedule and how long the training is.

        Args:
            optimizer: its groups' learning rates are the initial ones.
            multiplier: the schedule, over [0, 1].
            max_iter: iterations of the training.
            last_iter: the iteration before the first one; torch's ``last_epoch``.

        Raises:
            ValueError: the multiplier is not a schedule of fvcore.
        """
        if not isinstance(multiplier, ParamScheduler):
            raise ValueError(f"multiplier must be a ParamScheduler of fvcore, not {multiplier!r}")
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return the learning rate of each group at the current iteration."""
        factor = self._multiplier(self.last_epoch / self._max_iter)
        return [base_lr * factor for base_lr in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the schedule itself has no state."""
        return {name: getattr(self, name) for name in ("base_lrs", "last_epoch")}
