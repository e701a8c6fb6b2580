"""The learning rate: stored, then moved on."""

import logging
from collections import Counter
from typing import Any

import torch
from fvcore.common.param_scheduler import ParamScheduler
from torch.optim.lr_scheduler import LRScheduler as TorchScheduler

from detectron2.solver import LRMultiplier

from ..train_loop import HookBase

_logger = logging.getLogger(__package__)


class LRScheduler(HookBase):
    """Store ``lr`` after each iteration, the rate that it was done with, and step the schedule.

    The rate of the largest parameter group stands for all; where every group holds a single parameter, the
    commonest rate does.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: TorchScheduler | ParamScheduler | None = None,
    ) -> None:
        """Keep the parts; one that is None is the trainer's.

        Args:
            optimizer: holds the rates.
            scheduler: torch's kind, or fvcore's, whose values multiply the initial rates.
        """
        self._optimizer = optimizer
        self._scheduler = scheduler

    @property
    def scheduler(self) -> Any:
        """The schedule in use: this hook's own or the trainer's."""
        return self._scheduler or self.trainer.scheduler

    def before_train(self) -> None:
        """Attach an fvcore schedule to the optimizer, from the trainer's iteration on."""
        self._optimizer = self._optimizer or self.trainer.optimizer
        if isinstance(self.scheduler, ParamScheduler):
            self._scheduler = LRMultiplier(
                self._optimizer, self.scheduler, self.trainer.max_iter, last_iter=self.trainer.iter - 1
            )
        self._best_param_group_id = LRScheduler.get_best_param_group_id(self._optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer: torch.optim.Optimizer) -> int:
        """Return the index of the parameter group whose rate stands for all."""
        groups = optimizer.param_groups
        sizes = [len(group["params"]) for group in groups]
        if max(sizes) != 1:
            return sizes.index(max(sizes))
        rates = [group["lr"] for group in groups]
        commonest, _ = Counter(rates).most_common(1)[0]
        return rates.index(commonest)

    def after_step(self) -> None:
        """Store the rate, then step."""
        assert self._optimizer is not None
        rate = self._optimizer.param_groups[self._best_param_group_id]["lr"]
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule's state; empty where it is a bare fvcore schedule."""
        return self.scheduler.state_dict() if isinstance(self.scheduler, TorchScheduler) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the schedule, where it has a state."""
        if isinstance(self.scheduler, TorchScheduler):
            _logger.info("Restoring the learning-rate schedule from the checkpoint.")
            self.scheduler.load_state_dict(state_dict)
