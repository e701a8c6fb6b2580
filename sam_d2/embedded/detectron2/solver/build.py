"""Groups of parameters that share their learning rate and weight decay."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

__all__ = ["get_default_optimizer_params", "reduce_param_groups"]

_NORM_LAYERS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: dict[str, dict[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Return the trainable parameters of a model in groups for the optimizer.

    What is None is left to the optimizer's own setting.

    Args:
        model: its parameters that require a gradient are taken, each once.
        base_lr: learning rate.
        weight_decay: weight decay.
        weight_decay_norm: weight decay in normalisation layers.
        bias_lr_factor: factor on the learning rate of parameters named "bias"; needs ``base_lr``.
        weight_decay_bias: weight decay of parameters named "bias".
        lr_factor_func: from a parameter's full name to the factor on its learning rate; needs ``base_lr``.
        overrides: ``{"pos_embed": {"weight_decay": 0.0}}`` sets values for all parameters whose last name is
            this one; it comes after everything else.

    Returns:
        groups for ``torch.optim``: dicts with ``params`` and the values.

    Raises:
        ValueError: ``base_lr`` is missing, or "bias" is overridden in two ways.
    """
    common = {"lr": base_lr, "weight_decay": weight_decay}
    common = {name: value for name, value in common.items() if value is not None}
    overrides = _with_bias(overrides or {}, base_lr, bias_lr_factor, weight_decay_bias)
    if lr_factor_func is not None and base_lr is None:
        raise ValueError("lr_factor_func requires base_lr")

    groups = []
    for module, module_name, name, parameter in _trainable_parameters(model):
        values: dict[str, Any] = dict(common)
        if weight_decay_norm is not None and isinstance(module, _NORM_LAYERS):
            values["weight_decay"] = weight_decay_norm
        if lr_factor_func is not None:
            values["lr"] *= lr_factor_func(f"{module_name}.{name}")
        values.update(overrides.get(name, {}))
        groups.append({"params": [parameter], **values})
    return reduce_param_groups(groups)


def _with_bias(
    overrides: dict[str, dict[str, float]],
    base_lr: float | None,
    lr_factor: float | None,
    weight_decay: float | None,
) -> dict[str, dict[str, float]]:
    bias = {}
    if lr_factor is not None and lr_factor != 1.0:
        if base_lr is None:
            raise ValueError("bias_lr_factor requires base_lr")
        bias["lr"] = base_lr * lr_factor
    if weight_decay is not None:
        bias["weight_decay"] = weight_decay
    if not bias:
        return overrides
    if "bias" in overrides:
        raise ValueError("Conflicting overrides for 'bias': give either an override or the arguments for bias")
    return {**overrides, "bias": bias}


def _trainable_parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, str, nn.Parameter]]:
    """Yield each trainable parameter once with its module, the module's name and its own name."""
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                yield module, module_name, name, parameter


def reduce_param_groups(params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join groups that have the same values, because torch steps fewer groups faster.

    Args:
        params: groups; where a parameter is in several, the values of the later ones win. ``param_names``,
            where given, goes with ``params``.

    Returns:
        the groups, and the parameters in them, in the order of their first appearance.
    """
    values_of: defaultdict[torch.Tensor, dict[str, Any]] = defaultdict(dict)
    name_of: dict[torch.Tensor, str] = {}
    for group in params:
        values = {name: value for name, value in group.items() if name not in ("params", "param_names")}
        for parameter in group["params"]:
            values_of[parameter].update(values)
        name_of.update(zip(group["params"], group.get("param_names", ()), strict=False))

    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for parameter, values in values_of.items():
        group = groups.setdefault(tuple(values.items()), {**values, "params": []})
        group["params"].append(parameter)
        if parameter in name_of:
            group.setdefault("param_names", []).append(name_of[parameter])
    return list(groups.values())
