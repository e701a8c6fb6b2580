"""One model, one data source, one optimizer: forward, backward, update."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import nn

from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from .base import TrainerBase

_logger = logging.getLogger(__package__)

Losses = Mapping[str, torch.Tensor]


class SimpleTrainer(TrainerBase):
    """The usual step: losses of the next batch, their gradients, one optimizer step.

    To accumulate, clip or scale gradients, wrap the optimizer; to change batches or losses, wrap the loader
    or the model. All else (schedule, checkpoints, logs, evaluation) is hooks.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        """Put the model in training mode and keep the parts.

        Args:
            model: called with a batch, returns a dict of scalar losses or one scalar loss.
            data_loader: iterable of batches; its iterator is made at the first step.
            optimizer: steps the model's parameters.
            gather_metric_period: the ranks' metrics are averaged and stored each so many iterations.
            zero_grad_before_forward: clear gradients before the forward pass instead of after it.
            async_write_metrics: store metrics in a thread, off the step's critical path.
        """
        super().__init__()
        model.train()
        self.model = model
        self.data_loader = data_loader
        self._data_loader_iter_obj: Iterator | None = None
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self.async_write_metrics = async_write_metrics
        # One worker, so that metrics arrive in the order of the iterations.
        self.concurrent_executor = ThreadPoolExecutor(max_workers=1)

    def run_step(self) -> None:
        """Do one iteration: batch, losses, gradients, ``after_backward`` hooks, metrics, update."""
        assert self.model.training, f"[{type(self).__name__}] model was changed to eval mode!"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        loss_dict, total = self._forward(data)
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        self._backward(total)
        self.after_backward()

        if self.async_write_metrics:
            # self.iter may have moved on when the thread runs, so the number goes along.
            self.concurrent_executor.submit(self._write_metrics, loss_dict, data_time, iter=self.iter)
        else:
            self._write_metrics(loss_dict, data_time)
        self._update()

    def _forward(self, data: Any) -> tuple[Losses, Any]:
        """Return the named losses of a batch and their sum."""
        losses = self.model(data)
        if isinstance(losses, torch.Tensor):
            return {"total_loss": losses}, losses
        return losses, sum(losses.values())

    def _backward(self, total: torch.Tensor) -> None:
        total.backward()

    def _update(self) -> None:
        self.optimizer.step()

    @property
    def _data_loader_iter(self) -> Iterator:
        """The running iterator of the loader, made when first asked for."""
        if self._data_loader_iter_obj is None:
            self._data_loader_iter_obj = iter(self.data_loader)
        return self._data_loader_iter_obj

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable]) -> None:
        """Replace the loader by what the builder returns; the old one is let go before the builder runs."""
        del self.data_loader
        self.data_loader = data_loader_builder()
        self._data_loader_iter_obj = None

    def _write_metrics(self, loss_dict: Losses, data_time: float, prefix: str = "", iter: int | None = None) -> None:
        cur_iter = self.iter if iter is None else iter
        if (cur_iter + 1) % self.gather_metric_period:
            return
        try:
            SimpleTrainer.write_metrics(loss_dict, data_time, cur_iter, prefix)
        except Exception:
            # In a thread nobody asks for the result, so this line is all that is seen of the failure.
            _logger.exception("Exception in writing metrics: ")
            raise

    @staticmethod
    def write_metrics(loss_dict: Losses, data_time: float, cur_iter: int, prefix: str = "") -> None:
        """Store ``total_loss``, each loss (where there are several), ``data_time`` and ``rank_data_time``.

        Losses are means over the ranks; the data time is the slowest rank's, since the others wait for it.

        Args:
            loss_dict: scalar losses of this rank.
            data_time: seconds that this rank waited for its batch.
            cur_iter: iteration to store the values under.
            prefix: put before ``total_loss``.

        Raises:
            FloatingPointError: the summed loss is not finite (seen on the main rank only).
        """
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time, cur_iter=cur_iter)
        own = {name: loss.detach().cpu().item() for name, loss in loss_dict.items()}
        by_rank = comm.gather((own, data_time))
        if not comm.is_main_process():
            return

        storage.put_scalar("data_time", max(seconds for _, seconds in by_rank), cur_iter=cur_iter)
        rank_losses = [losses for losses, _ in by_rank]
        # Kept as numpy numbers: Python's sum() compensates its own floats, which changes last digits.
        means = {name: np.mean([losses[name] for losses in rank_losses]) for name in rank_losses[0]}
        total = sum(means.values())
        if not np.isfinite(total):
            raise FloatingPointError(f"Loss became infinite or NaN at iteration={cur_iter}!\nloss_dict = {means}")
        storage.put_scalar(f"{prefix}total_loss", total, cur_iter=cur_iter)
        if len(means) > 1:
            storage.put_scalars(cur_iter=cur_iter, **means)

    def state_dict(self) -> dict[str, Any]:
        """Return the loop's state and ``optimizer``."""
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the loop and the optimizer."""
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])

    def after_train(self) -> None:
        """Run the hooks' ``after_train``, then wait for metrics that are still being written."""
        super().after_train()
        self.concurrent_executor.shutdown(wait=True)
