"""Layers and functions of torch with what models need beyond them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class Conv2d(nn.Conv2d):
    """A convolution with the normalisation and the activation that follow it."""

    def __init__(
        self,
        *args: Any,
        norm: nn.Module | None = None,
        activation: Callable[[torch.Tensor], torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Make the layer.

        Args:
            args: of ``torch.nn.Conv2d``.
            norm: runs on the convolution's output.
            activation: runs last.
            kwargs: of ``torch.nn.Conv2d``.
        """
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return (B, out_channels, H', W') for an input (B, in_channels, H, W); B may be 0."""
        empty = self.training and not input.numel()
        assert not (empty and isinstance(self.norm, nn.SyncBatchNorm)), "SyncBatchNorm cannot train on empty input"
        output = super().forward(input)
        output = output if self.norm is None else self.norm(output)
        return output if self.activation is None else self.activation(output)


def cat(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor:
    """Concatenate as ``torch.cat``; a single tensor is returned itself, not copied."""
    assert isinstance(tensors, (list, tuple)), f"cat takes a list or tuple of tensors, not {type(tensors).__name__}"
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def nonzero_tuple(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the indices of the non-zero elements, one int64 tensor for each dimension."""
    return x.nonzero(as_tuple=True)


def cross_entropy(input: torch.Tensor, target: torch.Tensor, *, reduction: str = "mean", **kwargs: Any) -> torch.Tensor:
    """Return ``torch.nn.functional.cross_entropy``, but 0 with a gradient as the mean over no targets.

    Args:
        input: logits (N, C, ...).
        target: int64 classes (N, ...), or probabilities of the logits' shape.
        reduction: "mean", "sum" or "none".
        kwargs: of torch's function.
    """
    if not target.numel() and reduction == "mean":
        return 0.0 * input.sum()
    return F.cross_entropy(input, target, reduction=reduction, **kwargs)
