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

_ADAM = ({"step", "exp_avg", "exp_avg_sq"}, {"amsgrad": "max_exp_avg_sq"})
_RMSPROP = ({"step", "square_avg"}, {"momentum": "momentum_buffer", "centered": "grad_avg"})
_KEPT: dict[type, tuple[set[str], dict[str, str]]] = {
    torch.optim.AdamW: _ADAM,
    torch.optim.Adam: _ADAM,
    torch.optim.SGD: (set(), {}),
    torch.optim.RMSprop: _RMSPROP,
}
"""What these optimizers need of a parameter that they have stepped: always, and where a setting of its group is on.

Of others, their subclasses among them, nothing is known: they may keep more, less or other things.
"""
_MOMENTS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg"}
_CLIPPING = "WithGradientClip"
"""Ends the name of the subclass that Detectron2's ``maybe_add_gradient_clipping`` makes; it keeps the same."""


class OtherTrainingError(ValueError):
    """The file is sound, and of a training with other settings than this one."""


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
    folder = Path(file).parent
    try:
        _check_trained(state, owner.state_dict())
        check_like(state, owner.state_dict(), name)
        owner.load_state_dict(state)
    except UserError:
        raise
    except OtherTrainingError as error:
        raise UserError(
            f"{file}: {error}. Repeat the config that it was trained with (config.yaml beside it, or its command "
            "line), or begin another run with --output-dir DIR."
        ) from error
    except Exception as error:  # what is no state makes torch stumble over anything
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or explained(error):
            raise
        reason = " ".join(f"{error or ''}".split())[:200] or type(error).__name__
        if isinstance(error, KeyError):
            reason = f"it has no {reason}"
        raise UserError(
            f"{file}: its state of the {name} is none to go on from ({reason}). Either it was trained with another "
            "config: repeat that one. Or it is damaged: write the name of another model_*.pth of that folder into "
            f"{folder / TAG}."
        ) from error


def _check_trained(saved: Any, own: Any) -> None:
    """Compare the parameters that are trained, before anything that their number decides.

    Raises:
        OtherTrainingError: of the optimizer, or of the one of a trainer, the file has other groups.
    """
    if not isinstance(saved, dict) or not isinstance(own, dict):
        return
    if "optimizer" in own:
        _check_trained(saved.get("optimizer"), own["optimizer"])
    elif "param_groups" in own:
        groups = saved.get("param_groups")
        before = [group.get("params") if isinstance(group, dict) else None for group in groups or ()]
        now = [group["params"] for group in own["param_groups"]]
        counts = [len(numbers) for numbers in before if isinstance(numbers, list)]
        if before and len(counts) == len(before) and counts != [len(numbers) for numbers in now]:
            raise OtherTrainingError(
                f"other parameters are trained than in this file: its optimizer has {_in_groups(counts)}, that of the "
                f"config {_in_groups([len(numbers) for numbers in now])}"
            )


def _in_groups(counts: list[int]) -> str:
    return f"{sum(counts)} in {len(counts)} group" + ("s" if len(counts) > 1 else "")


def check_like(saved: Any, own: Any, where: str) -> None:
    """Compare a saved state with the one that it is to replace; what one of them lacks is not looked at.

    Raises:
        ValueError: a group, list, number or tensor of it is something else in the file.
    """
    if isinstance(own, dict):
        if not isinstance(saved, dict):
            raise ValueError(f"{where} is no group of values")
        for key in own:
            if key in saved:
                check_like(saved[key], own[key], f"{where}.{key}")
    elif isinstance(own, list):
        if not isinstance(saved, list) or len(saved) != len(own):
            raise ValueError(f"{where} is no list of {len(own)}")
        for place, (one, other) in enumerate(zip(saved, own, strict=True)):
            check_like(one, other, f"{where}.{place}")
    elif _is_number(own) and not _is_number(saved) and not _is_scalar(saved):
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
        OtherTrainingError: a setting is on that needs more than the file holds, since it was off.
        ValueError: it holds moments of other shapes, or other things in the place of numbers.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    if numbers != list(range(len(parameters))) or any("lr" not in group for group in state["param_groups"]):
        raise ValueError("its groups of parameters are others")
    kind = type(optimizer)
    if kind.__name__.endswith(_CLIPPING):
        kind = kind.__bases__[0]
    if kind not in _KEPT:
        return
    always, by_setting = _KEPT[kind]
    groups = [
        (before, now)
        for before, now in zip(state["param_groups"], optimizer.param_groups, strict=True)
        for _ in now["params"]
    ]
    for number, moments in state["state"].items():
        before, now = groups[number]
        if moments and (lacking := always - moments.keys()):
            raise ValueError(f"of parameter {number} it lacks {', '.join(sorted(lacking))}")
        # The settings of the file hold, or those of the config where a resume brings them back.
        for setting, needed in by_setting.items() if moments else ():
            if needed in moments or not (before.get(setting) or now.get(setting)):
                continue
            if before.get(setting):
                raise ValueError(f"of parameter {number} it lacks {needed}")
            raise OtherTrainingError(f"{setting} of the optimizer was off, and cannot be switched on on the way")
        _check_moments(number, moments, tuple(parameters[number].shape))


def _check_moments(number: int, moments: dict[str, Any], shape: tuple[int, ...]) -> None:
    for name, value in moments.items():
        if name == "step":
            sound = isinstance(value, int | float | Tensor) and math.isfinite(value) and value >= 0
        elif name in _MOMENTS:
            sound = is_dense(value, shape) or (value is None and name == "momentum_buffer")
        else:
            continue  # of another torch
        if not sound:
            expected = "count" if name == "step" else f"tensor of {shape}"
            raise ValueError(f"of parameter {number} {name} is no {expected}")


def is_dense(value: Any, shape: tuple[int, ...]) -> bool:
    """Tell whether a value is a dense tensor of real numbers of a shape, on the CPU, where files are read to."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        return False
    return tuple(value.shape) == shape and value.is_floating_point()


def _is_scalar(value: Any) -> bool:
    """Tell whether a value is one real number as a tensor, as an optimizer's rate may be."""
    return isinstance(value, Tensor) and (is_dense(value, ()) or (value.dim() == 0 and value.dtype == torch.int64))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
