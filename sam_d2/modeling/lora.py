"""LoRA on a module's linear layers: low-rank matrices are trained beside frozen weights.

LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685, by way of peft. The state dict of an adapted
module has its original names and those of the matrices: weights without matrices load into it, and
:func:`merged_state_dict` gives weights that load where there is no LoRA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from sam_d2.errors import UserError

_ADAPTER = "default"
_BASE = "base_layer."
_MATRICES = (".lora_A.", ".lora_B.")


def lora_encoder(
    *,
    encoder: Callable[..., nn.Module],
    rank: int,
    alpha: int,
    targets: Iterable[str],
    dropout: float = 0.0,
    **encoder_arguments: Any,
) -> nn.Module:
    """Build an encoder and adapt it with :func:`add_lora`.

    For a config: the encoder's own arguments stay where they were, so that ``model.image_encoder.img_size`` is found
    by all that follows it.

    Args:
        encoder: class or function that builds it.
        rank: see :func:`add_lora`.
        alpha: see :func:`add_lora`.
        targets: see :func:`add_lora`.
        dropout: see :func:`add_lora`.
        **encoder_arguments: of ``encoder``.
    """
    return add_lora(encoder(**encoder_arguments), rank=rank, alpha=alpha, targets=targets, dropout=dropout)


def add_lora(module: nn.Module, *, rank: int, alpha: int, targets: Iterable[str], dropout: float = 0.0) -> nn.Module:
    """Freeze a module and give linear layers of it trainable matrices, in place: W x becomes W x + alpha/rank B A x.

    B is zero at first, so the module computes what it did before.

    Args:
        module: any; its own class and attributes stay.
        rank: r of A (r, in) and B (out, r).
        alpha: alpha/rank multiplies their product.
        targets: layers by the end of their name, such as ``qkv`` or ``attn.proj``.
        dropout: of the input to A, in training.

    Returns:
        The same module.

    Raises:
        UserError: peft is not installed, the rank is not positive, or no layer has such a name.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer
    except ImportError as error:
        raise UserError("LoRA needs peft: pip install 'sam_d2[lora]' (or pip install peft).") from error
    names = list(targets)
    if rank < 1:
        raise UserError(f"model.image_encoder.rank={rank}: expected at least 1.")
    absent = [name for name in names if not any(_ends_with(found, name) for found, _ in module.named_modules())]
    if absent or not names:
        linear = [found for found, part in module.named_modules() if isinstance(part, nn.Linear)]
        ends = ", ".join(sorted({found.rpartition(".")[2] for found in linear}))
        raise UserError(
            f"model.image_encoder.targets={names}: no layer is named {', '.join(absent) or 'so'}. Its linear layers "
            f"end in {ends}."
        )
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names)
    module.requires_grad_(False)
    try:
        inject_adapter_in_model(config, module, adapter_name=_ADAPTER)
    except ValueError as error:
        raise UserError(f"model.image_encoder.targets={names}: {str(error).splitlines()[0]}") from error
    for layer in module.modules():
        if isinstance(layer, LoraLayer):
            layer.register_state_dict_post_hook(_original_names)
            layer.register_load_state_dict_pre_hook(_names_in_peft)
    return module


def lora_keys(state: Iterable[str]) -> set[str]:
    """Return the names in a state dict that belong to LoRA's matrices."""
    return {name for name in state if any(matrix in f".{name}" for matrix in _MATRICES)}


def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's weights with LoRA's matrices added in, under the names that it has without LoRA.

    Args:
        model: any; left as it is. Without LoRA this is its state dict.
    """
    state: Mapping[str, Tensor] = model.state_dict()
    merged = {name: value for name, value in state.items() if name not in lora_keys(state)}
    for name, layer in model.named_modules():
        if hasattr(layer, "get_delta_weight"):
            key = f"{name}.weight" if name else "weight"
            merged[key] = merged[key] + layer.get_delta_weight(_ADAPTER).to(merged[key].dtype)
    return merged


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _original_names(layer: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    """Rename what peft calls ``qkv.base_layer.weight`` to ``qkv.weight`` in a state dict that is being made."""
    for key in [key for key in state if key.startswith(prefix + _BASE)]:
        state[prefix + key.removeprefix(prefix + _BASE)] = state.pop(key)


def _names_in_peft(layer: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Do the reverse in a state dict that is being loaded."""
    for name in [name for name, _ in layer.get_submodule(_BASE[:-1]).named_parameters()]:
        if prefix + name in state:
            state[prefix + _BASE + name] = state.pop(prefix + name)
