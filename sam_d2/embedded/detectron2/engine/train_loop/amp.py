"""The step in mixed precision on CUDA."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from detectron2.utils.events import get_event_storage

from .simple import Losses, SimpleTrainer


class AMPTrainer(SimpleTrainer):
    """:class:`SimpleTrainer` with the forward pass under autocast and scaled gradients. CUDA only."""

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        grad_scaler: torch.amp.GradScaler | None = None,
        precision: torch.dtype = torch.float16,
        log_grad_scaler: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        """Keep the parts, as :class:`SimpleTrainer` does.

        Args:
            model: as in :class:`SimpleTrainer`; may be DistributedDataParallel of one device per process.
            data_loader: as in :class:`SimpleTrainer`.
            optimizer: as in :class:`SimpleTrainer`.
            gather_metric_period: as in :class:`SimpleTrainer`.
            zero_grad_before_forward: as in :class:`SimpleTrainer`.
            grad_scaler: scales the loss against underflow; torch's with its default settings where None.
            precision: dtype that autocast computes in.
            log_grad_scaler: store the scale as ``[metric]grad_scaler``.
            async_write_metrics: accepted and, as in Detectron2, without effect here.
        """
        one_device = not isinstance(model, DataParallel) and not (
            isinstance(model, DistributedDataParallel) and len(model.device_ids or ()) > 1
        )
        assert one_device, "AMPTrainer does not support single-process multi-device training!"
        super().__init__(model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward)
        self.grad_scaler = torch.amp.GradScaler("cuda") if grad_scaler is None else grad_scaler
        self.precision = precision
        self.log_grad_scaler = log_grad_scaler

    def run_step(self) -> None:
        """Do one iteration of :meth:`SimpleTrainer.run_step` in mixed precision."""
        assert torch.cuda.is_available(), "[AMPTrainer] CUDA is required for AMP training!"
        super().run_step()

    def _forward(self, data: Any) -> tuple[Losses, Any]:
        with torch.autocast("cuda", dtype=self.precision):
            return super()._forward(data)

    def _backward(self, total: torch.Tensor) -> None:
        self.grad_scaler.scale(total).backward()
        if self.log_grad_scaler:
            get_event_storage().put_scalar("[metric]grad_scaler", self.grad_scaler.get_scale())

    def _update(self) -> None:
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Return :class:`SimpleTrainer`'s state and ``grad_scaler``."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :class:`SimpleTrainer`'s state and the scaler."""
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
