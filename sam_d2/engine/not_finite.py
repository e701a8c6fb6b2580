"""A loss or gradient that is not a number: what to tell the user, and the images of the step, kept to look into it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detectron2.engine import HookBase
from sam_d2.atomic import write_atomically
from sam_d2.engine.checkpoint import Checkpointer
from sam_d2.engine.graceful_stop import how_to_go_on
from sam_d2.engine.whole_checkpoint import last_checkpoint


def not_finite_text(
    step: int,
    losses: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    clip_gradient_norm: float | None,
    hooks: Iterable[HookBase],
    kept: Path | None = None,
    *,
    gradient: bool = False,
) -> str:
    """Return one line: the step, its losses, what usually causes it, and where to begin again.

    Args:
        step: counted from 1.
        losses: of the step, scalars; none where the model gave up before them, as Detectron2's RPN does.
        optimizer: of the training.
        clip_gradient_norm: of the training; None where gradients are not clipped.
        hooks: of the training; the run folder is that of their checkpointer.
        kept: file with the images of the step.
        gradient: whether it is the gradient, and the losses of all processes are numbers.
    """
    values = {name: float(loss) for name, loss in losses.items()}
    shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if not math.isfinite(value))
    elsewhere = "on another process" if values else "the region proposals hold values that are no numbers"
    what = "gradient" if gradient else "loss"
    details = "its losses are" if gradient else shown or elsewhere
    rate = max(group["lr"] for group in optimizer.param_groups)
    clipping = (
        "clip gradients (train.clip_gradient_norm=1.0)"
        if clip_gradient_norm is None
        else f"clip more than at train.clip_gradient_norm={clip_gradient_norm:g}"
    )
    folder = run_folder(hooks)
    last = last_checkpoint(folder) if folder else None
    images = f"; {kept} has its images" if kept else ""
    again = f"--resume goes on from {last}" if last else "there is no checkpoint to go on from yet"
    return (
        f"The {what} of step {step} is not finite ({details}); its step was not taken{images}. Take a "
        f"lower optimizer.lr (the rate of this step is {rate:.3g}), or {clipping}, or leave such steps out "
        f"(train.on_not_finite=skip); {again}."
    )


def run_folder(hooks: Iterable[HookBase]) -> Path | None:
    """Return the folder of a training's checkpoints, None where it writes none."""
    found = (getattr(hook, "checkpointer", None) for hook in hooks)
    return next((Path(item.save_dir) for item in found if isinstance(item, Checkpointer)), None)


def batch_record(losses: Mapping[str, Tensor], samples: Sequence[Mapping[str, Any]], *, process: int) -> dict[str, Any]:
    """Return what a process knows of a step: its losses, and the images with the seeds of their random choices.

    Args:
        losses: of the step, scalars.
        samples: of all its batches.
        process: rank.
    """
    return {
        "process": process,
        # NaN and Infinity are no JSON
        "losses": {name: str(float(loss)) for name, loss in losses.items()},
        "images": [
            {key: sample[key] for key in ("image_id", "file_name", "seed") if key in sample} for sample in samples
        ],
    }


def is_the_gradient(processes: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether a step that is not finite has losses, all of them numbers, so that its gradient is at fault.

    Args:
        processes: :func:`batch_record` of each; one without losses gave up before them.
    """
    return all(
        process["losses"] and all(math.isfinite(float(loss)) for loss in process["losses"].values())
        for process in processes
    )


def keep_batch(
    folder: Path, iteration: int, *, seed: int, rate: float, gradient: bool, processes: Sequence[dict[str, Any]]
) -> Path:
    """Write ``not_finite_<iteration>.json`` with the images of a step, and return its path.

    Args:
        folder: of the run.
        iteration: of the step, counted from 0, as in the names of the checkpoints.
        seed: of the run.
        rate: learning rate of the step.
        gradient: whether it is the gradient that is not finite, not a loss.
        processes: :func:`batch_record` of each.
    """
    path = folder / f"not_finite_{iteration:07d}.json"
    content = {
        "iteration": iteration,
        "seed": seed,
        "learning_rate": rate,
        "not_finite": "gradient" if gradient else "loss",
        # A resume comes to the same step with the same images, augmentations and prompts.
        "replay": how_to_go_on(folder),
        "processes": list(processes),
    }
    write_atomically(path, json.dumps(content, indent=1).encode() + b"\n")
    return path
