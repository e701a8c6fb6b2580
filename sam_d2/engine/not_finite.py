"""What to tell a user whose training has come to a loss that is not a number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from detectron2.engine import HookBase
from sam_d2.engine.checkpoint import Checkpointer, last_checkpoint


def not_finite_text(
    step: int,
    losses: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    clip_gradient_norm: float | None,
    hooks: Iterable[HookBase],
) -> str:
    """Return one line: the step, its losses, what usually causes it, and where to begin again.

    Args:
        step: counted from 1.
        losses: of the step, scalars; none where the model gave up before them, as Detectron2's RPN does.
        optimizer: of the training.
        clip_gradient_norm: of the training; None where gradients are not clipped.
        hooks: of the training; the run folder is that of their checkpointer.
    """
    values = {name: float(loss) for name, loss in losses.items()}
    shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if not math.isfinite(value))
    elsewhere = "on another process" if values else "the region proposals hold values that are no numbers"
    rate = max(group["lr"] for group in optimizer.param_groups)
    clipping = (
        "clip gradients (train.clip_gradient_norm=1.0)"
        if clip_gradient_norm is None
        else f"clip more than at train.clip_gradient_norm={clip_gradient_norm:g}"
    )
    found = (getattr(hook, "checkpointer", None) for hook in hooks)
    folders = [Path(checkpointer.save_dir) for checkpointer in found if isinstance(checkpointer, Checkpointer)]
    last = last_checkpoint(folders[0]) if folders else None
    again = f"--resume goes on from {last}" if last else "there is no checkpoint to go on from yet"
    return (
        f"The loss of step {step} is not finite ({shown or elsewhere}); its step was not taken. Take a "
        f"lower optimizer.lr (the rate of this step is {rate:.3g}), or {clipping}; {again}."
    )
