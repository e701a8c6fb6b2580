"""Normalisation layers, and the names that configs give them."""

from collections.abc import Callable
from typing import Any

import torch
from fvcore.nn.distributed import differentiable_all_reduce
from torch import nn
from torch.nn import functional as F

from detectron2.utils import comm


def _affine(x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return ``x * scale + bias`` in the dtype of x (B, C, H, W); scale and bias are (C,)."""
    return x * scale[None, :, None, None].to(x.dtype) + bias[None, :, None, None].to(x.dtype)


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation with statistics and affine parameters that stay as loaded; all four are buffers.

    Backbones of Caffe2 have the statistics folded into ``weight`` and ``bias``: their files name no others, and
    the statistics are then 0 and 1.
    """

    _version = 3

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        """Make a layer that changes nothing.

        Args:
            num_features: channels of the input.
            eps: added to the variance.
        """
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.weight = nn.Buffer(torch.ones(num_features))
        self.bias = nn.Buffer(torch.zeros(num_features))
        self.running_mean = nn.Buffer(torch.zeros(num_features))
        self.running_var = nn.Buffer(torch.ones(num_features) - eps)
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise (B, C, H, W)."""
        if not x.requires_grad:  # fused, but its backward would keep what only affine gradients need
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return _affine(x, scale, self.bias - self.running_mean * scale)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        if (local_metadata.get("version") or 0) < 2:
            state_dict.setdefault(f"{prefix}running_mean", torch.zeros_like(self.running_mean))
            state_dict.setdefault(f"{prefix}running_var", torch.ones_like(self.running_var))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def __repr__(self) -> str:
        return f"FrozenBatchNorm2d(num_features={self.num_features}, eps={self.eps})"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Replace every batch normalisation in a module by a frozen one of the same values.

        Returns:
            the module itself; its replacement where it is a batch normalisation.
        """
        if not isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            for name, child in module.named_children():
                setattr(module, name, cls.convert_frozen_batchnorm(child))
            return module
        frozen: Any = cls(module.num_features, module.eps)
        if module.affine:
            frozen.weight, frozen.bias = module.weight.detach().clone(), module.bias.detach().clone()
        frozen.running_mean, frozen.running_var = module.running_mean, module.running_var
        frozen.num_batches_tracked = module.num_batches_tracked
        return frozen


class NaiveSyncBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the batches of all processes, which may be of different sizes, or empty.

    The statistics are the mean over processes of each one's own mean and mean square, so they are those of all
    pixels together only where all feature maps have the same size.
    """

    def __init__(self, *args: Any, stats_mode: str = "", **kwargs: Any) -> None:
        """Make the layer.

        Args:
            args: of ``torch.nn.BatchNorm2d``.
            stats_mode: "" gives each process the same weight, "N" a weight of its batch size; only with the latter
                may a batch be empty.
            kwargs: of ``torch.nn.BatchNorm2d``.
        """
        super().__init__(*args, **kwargs)
        assert stats_mode in ("", "N"), f"stats_mode is '' or 'N', not {stats_mode!r}"
        self._stats_mode = stats_mode

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise (B, C, H, W); without other processes, or in evaluation, as torch does."""
        if not self.training or comm.get_world_size() == 1:
            return super().forward(input)
        batch, channels = input.shape[:2]
        assert batch or self._stats_mode, "an empty batch needs stats_mode='N'"
        x = input.to(torch.promote_types(input.dtype, torch.float32))  # sums in half precision are too coarse
        sums = x.new_zeros(2 * channels + 1) + x.sum()  # of an empty batch: a gradient must reach every process
        if batch:
            sums = torch.cat([x.mean((0, 2, 3)), x.square().mean((0, 2, 3)), x.new_ones(1)])
            sums = sums * (batch if self._stats_mode else 1)
        sums = differentiable_all_reduce(sums)
        total = sums[-1].detach()
        mean, square, _ = (sums / total.clamp(min=1)).split(channels)
        variance = square - mean * mean
        momentum = self.momentum * total.clamp(max=1)  # no batch anywhere: the statistics stay
        self.running_mean += momentum * (mean.detach() - self.running_mean)
        self.running_var += momentum * (variance.detach() - self.running_var)
        scale = self.weight * (variance + self.eps).rsqrt()
        return _affine(x, scale, self.bias - mean * scale).to(input.dtype)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel."""

    def __init__(self, normalized_shape: int, eps: float = 1e-6) -> None:
        """Make the layer.

        Args:
            normalized_shape: channels of the input.
            eps: added to the variance.
        """
        super().__init__(normalized_shape, eps)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise (B, C, H, W)."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "nnSyncBN": nn.SyncBatchNorm,
    "naiveSyncBN": NaiveSyncBatchNorm,
    "naiveSyncBN_N": lambda channels: NaiveSyncBatchNorm(channels, stats_mode="N"),
    "FrozenBN": FrozenBatchNorm2d,
    "GN": lambda channels: nn.GroupNorm(32, channels),
    "LN": LayerNorm,
}


def get_norm(norm: str | Callable[[int], nn.Module] | None, out_channels: int) -> nn.Module | None:
    """Make the normalisation that a config names.

    Args:
        norm: "BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "FrozenBN", "GN" (32 groups), "LN", or what
            makes the layer from the number of channels. None and "" are none.
        out_channels: channels to normalise.

    Raises:
        KeyError: there is no normalisation of that name.
    """
    if norm is None or norm == "":
        return None
    return (_NORMS[norm] if isinstance(norm, str) else norm)(out_channels)
