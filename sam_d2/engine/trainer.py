"""The training step: Detectron2's, with mixed precision on any device and a clear end on a bad loss."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from sam_d2.errors import UserError


class Trainer(SimpleTrainer):
    """Detectron2's SimpleTrainer with autocast, gradient clipping and a measure of throughput.

    Detectron2's AMPTrainer asserts CUDA; this one autocasts on the device of the model. A gradient scaler is used
    for float16 only.

    Args:
        model: returns a dict of scalar losses.
        data_loader: iterable of batches, lists of samples.
        optimizer: over the trainable parameters.
        amp_dtype: ``torch.bfloat16`` or ``torch.float16``; None trains in full precision.
        clip_gradient_norm: largest norm of the gradient over all parameters; None does not clip.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict[str, Any]]],
        optimizer: torch.optim.Optimizer,
        *,
        amp_dtype: torch.dtype | None = None,
        clip_gradient_norm: float | None = None,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.device = next(model.parameters()).device
        self.amp_dtype = amp_dtype
        self.clip_gradient_norm = clip_gradient_norm
        self.grad_scaler = torch.amp.GradScaler(
            self.device.type, enabled=amp_dtype == torch.float16 and self.device.type == "cuda"
        )

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the iterations ``start_iter`` to ``max_iter - 1``.

        Raises:
            UserError: a step met bad input. Detectron2's loop would log it with its traceback, which helps nobody.
        """
        loop_log = logging.getLogger("detectron2.engine.train_loop")
        loop_log.addFilter(_is_no_user_error)
        try:
            super().train(start_iter, max_iter)
        finally:
            loop_log.removeFilter(_is_no_user_error)

    def run_step(self) -> None:
        """Take one batch through forward, backward and the optimizer's step.

        Raises:
            FloatingPointError: a loss is infinite or NaN; no step is taken.
        """
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            losses = self.model(data)
            total = sum(losses.values())
        self.optimizer.zero_grad()
        self.grad_scaler.scale(total).backward()
        if self.clip_gradient_norm is not None:
            self.grad_scaler.unscale_(self.optimizer)
            trained = [p for group in self.optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(trained, self.clip_gradient_norm)
        self.after_backward()
        # Before the step: a NaN loss must not reach the weights.
        self._write_metrics(losses, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        get_event_storage().put_scalar("images", len(data) * comm.get_world_size(), smoothing_hint=False)

    def state_dict(self) -> dict[str, Any]:
        """Return iteration, hooks, optimizer and gradient scaler."""
        state = super().state_dict()
        state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        if self.grad_scaler.is_enabled():
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def _is_no_user_error(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], UserError))
