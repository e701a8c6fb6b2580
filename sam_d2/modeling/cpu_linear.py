"""Linear layers for inference on a CPU: oneDNN's kernels where they are faster than those that torch takes.

For float32 torch asks MKL, which on AMD's processors leaves AVX-512 unused: ViT-B's layers run at half of the speed
that oneDNN, which torch brings along, has with the same numbers (docs/benchmarks.md).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn


def linear(layer: nn.Module, inputs: Tensor, *, gelu: bool = False) -> Tensor:
    """Apply a linear layer, and GELU where asked for.

    Args:
        layer: an ``nn.Linear``; any other module that maps the last dimension is simply called.
        inputs: (..., in).
        gelu: apply GELU (the exact one, with erf) to what comes out.

    Returns:
        (..., out); equal to the layer's own but for rounding.
    """
    if type(layer) is nn.Linear and _plain_inference(inputs) and _has_onednn():
        activation: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")
        return torch.ops.mkldnn._linear_pointwise(inputs, layer.weight, layer.bias, *activation)
    outputs = layer(inputs)
    return nn.functional.gelu(outputs) if gelu else outputs


def _plain_inference(inputs: Tensor) -> bool:
    return not (
        torch.is_grad_enabled() or torch.is_autocast_enabled(inputs.device.type) or torch.compiler.is_compiling()
    ) and (inputs.device.type, inputs.dtype) == ("cpu", torch.float32)


@functools.cache
def _has_onednn() -> bool:
    """Tell whether this torch can call oneDNN's linear layer by itself, and the processor has what makes it faster."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
