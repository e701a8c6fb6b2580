"""Parameter groups for the optimizer: what decays and what does not."""

from __future__ import annotations

from typing import Any

from torch import nn

_NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Group the trainable parameters: biases, norms, embeddings and what the model names are not decayed.

    Args:
        model: its ``no_weight_decay()``, where it has one, names further parameters that must not decay.
        weight_decay: for all others.

    Returns:
        At most two groups with ``params`` and ``weight_decay``, each in the model's order of parameters.
    """
    exempt: set[str] = getattr(model, "no_weight_decay", set)()
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for module_name, module in model.named_modules():
        undecayed_module = isinstance(module, (*_NORMS, nn.Embedding))
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            full_name = f"{module_name}.{name}" if module_name else name
            # One dimension: biases and the scales of norms of any class, such as SAM's LayerNorm2d.
            if undecayed_module or parameter.dim() <= 1 or full_name in exempt:
                kept.append(parameter)
            else:
                decayed.append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
