"""The state of a training's parts, as a file holds it: it fits them, or an error says why it does not.

A file from anywhere may hold anything in its place, and torch takes most of it without a look: a list in the place of
an optimizer's moments ends the first step, far from the file that is at fault.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sam_d2.engine.whole_checkpoint import TAG
from sam_d2.errors import UserError
from sam_d2.faults import explained

_ADAM = {"step", "exp_avg", "exp_avg_sq"}
_MOMENTS: tuple[tuple[type[torch.optim.Optimizer], set[str]], ...] = (
    (torch.optim.AdamW, _ADAM),
    (torch.optim.Adam, _ADAM),
    (torch.optim.SGD, {"momentum_buffer"}),
)
"""What these optimizers keep of a parameter, which they have stepped; of others their own words are taken."""


def load_state(file: str | Path, name: str, owner: Any, state: Any) -> None:
    """Let a part of a training go on from what a file holds of it.

    Args:
        file: that it is from, for the message.
        name: of the part in it.
        owner: has ``state_dict`` and ``load_state_dict``.
        state: what the file holds under the name.

    Raises:
        UserError: it is no state of that part.
    """
    try:
        check_like(state, owner.state_dict(), name)
        owner.load_state_dict(state)
    except UserError:
        raise
    except Exception as error:  # what is no state makes torch stumble over anything
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or explained(error):
            raise
        reason = " ".join(f"{error or ''}".split())[:200] or type(error).__name__
        if isinstance(error, KeyError):
            reason = f"it has no {reason}"
        folder = Path(file).parent
        raise UserError(
            f"{file}: its state of the {name} is none to go on from ({reason}). Write the name of another model_*.pth "
            f"of that folder into {folder / TAG}."
        ) from error


def check_like(saved: Any, own: Any, where: str) -> None:
    """Compare a saved state with the one that it is to replace; what one of them lacks is not looked at.

    Raises:
        ValueError: a group, list, number or tensor of it is something else in the file.
    """
    if isinstance(own, dict):
        if not isinstance(saved, dict):
            raise ValueError(f"{where} is no group of values")
        for key in own.keys() & saved.keys():
            check_like(saved[key], own[key], f"{where}.{key}")
    elif isinstance(own, list):
        if not isinstance(saved, list) or len(saved) != len(own):
            raise ValueError(f"{where} is no list of {len(own)}")
        for place, (one, other) in enumerate(zip(saved, own, strict=True)):
            check_like(one, other, f"{where}.{place}")
    elif _is_number(own) and not _is_number(saved):
        raise ValueError(f"{where} is no number")


def check_iteration(saved: Any) -> None:
    """Check the step that a training goes on behind.

    Raises:
        ValueError: it counts no steps.
    """
    if type(saved) is not int or not 0 <= saved < 2**62:
        raise ValueError("its iteration is no number of a step")


def check_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Check what an optimizer is to go on from, before it takes any of it.

    Args:
        optimizer: whose parameters, in their order, the state is of.
        state: as its ``state_dict`` returned it.

    Raises:
        ValueError: it holds moments of other shapes, or other things in the place of numbers.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    if numbers != list(range(len(parameters))) or any("lr" not in group for group in state["param_groups"]):
        raise ValueError("its groups of parameters are others")
    kept = next((names for kind, names in _MOMENTS if isinstance(optimizer, kind)), None)
    for number, moments in state["state"].items() if kept is not None else ():
        shape = tuple(parameters[number].shape)
        if moments and not kept <= moments.keys():
            raise ValueError(f"of parameter {number} it lacks {', '.join(sorted(kept - moments.keys()))}")
        for name, value in moments.items():
            if name == "step":
                sound = isinstance(value, int | float | Tensor) and math.isfinite(value) and value >= 0
            else:
                sound = is_dense(value, shape) or (value is None and name == "momentum_buffer")
            if not sound:
                expected = "count" if name == "step" else f"tensor of {shape}"
                raise ValueError(f"of parameter {number} {name} is no {expected}")


def is_dense(value: Any, shape: tuple[int, ...]) -> bool:
    """Tell whether a value is a dense tensor of real numbers of a shape, on the CPU, where files are read to."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        return False
    return tuple(value.shape) == shape and value.is_floating_point()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
