"""Parameter groups for the optimizer: what decays and what does not, and which part learns how fast."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from detectron2.config import instantiate
from sam_d2.errors import UserError

_NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
)


def build_optimizer(cfg: DictConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of a model.

    Args:
        cfg: ``optimizer`` of a config; its ``params.model`` is set to the model.
        model: not yet wrapped for several processes.

    Raises:
        UserError: the optimizer refuses a setting or does not know it.
    """
    cfg.params.model = model
    try:
        optimizer: torch.optim.Optimizer = instantiate(cfg)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"optimizer: it cannot be built with these settings ({reason}).") from error
    return optimizer


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    lr: float | None = None,
    lr_factors: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Group the trainable parameters: biases, norms, embeddings and what the model names are not decayed.

    Args:
        model: its ``no_weight_decay()``, where it has one, names further parameters that must not decay.
        weight_decay: for all others.
        lr: learning rate of what ``lr_factors`` does not name; None leaves it to the optimizer.
        lr_factors: by the name of a module, such as ``image_encoder`` or ``mask_decoder.transformer``, the factor on
            the learning rate of its parameters. The longest name that fits wins. The schedule multiplies the
            rate of each group.

    Returns:
        At most two groups for each factor, with ``params``, ``weight_decay`` and, where there are factors, ``lr``;
        each in the model's order of parameters. One that several modules share is in the group of the first of them.

    Raises:
        UserError: a name fits no parameter of the model, or none that trains, a factor is not a positive number, or
            nothing is trained.
    """
    exempt: set[str] = getattr(model, "no_weight_decay", set)()
    factors = _checked(model, lr, lr_factors or {})
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        undecayed_module = isinstance(module, (*_NORMS, nn.Embedding))
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            full_name = f"{module_name}.{name}" if module_name else name
            # One dimension: biases and the scales of norms of any class, such as SAM's LayerNorm2d.
            decays = not (undecayed_module or parameter.dim() <= 1 or full_name in exempt)
            fitting = [prefix for prefix in factors if _is_in(full_name, prefix)]
            factor = factors[max(fitting, key=len)] if fitting else 1.0
            groups.setdefault((factor, decays), []).append(parameter)
    if not groups:
        raise UserError("The model has no parameter to train. Take a part out of model.freeze.")
    result = []
    for (factor, decays), parameters in sorted(groups.items(), key=lambda group: group[0], reverse=True):
        group: dict[str, Any] = {"params": parameters, "weight_decay": weight_decay if decays else 0.0}
        if factors and lr is not None:
            group["lr"] = lr * factor
        result.append(group)
    return result


def _checked(model: nn.Module, lr: float | None, lr_factors: Mapping[str, float]) -> dict[str, float]:
    if lr_factors and lr is None:
        raise UserError("optimizer.params.lr_factors: optimizer.params.lr is not set; it is usually ${..lr}.")
    trains = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for prefix, factor in lr_factors.items():
        inside = [name for name in trains if _is_in(name, prefix)]
        if not inside:
            parts = ", ".join(name for name, _ in model.named_children())
            raise UserError(f"optimizer.params.lr_factors: the model has no parameters in {prefix!r} (it has {parts}).")
        if not any(trains[name] for name in inside):
            raise UserError(
                f"optimizer.params.lr_factors: all parameters in {prefix!r} are frozen. Take {prefix!r} out of it, or "
                "its part of the model out of model.freeze."
            )
        if not isinstance(factor, int | float) or not 0 < factor < math.inf:
            raise UserError(
                f"optimizer.params.lr_factors: {prefix} has {factor!r}, not a positive number. What must not be "
                "trained belongs into model.freeze."
            )
    return {prefix: float(factor) for prefix, factor in lr_factors.items()}


def _is_in(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")
