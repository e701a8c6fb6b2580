"""Feature pyramids: "Feature Pyramid Networks for Object Detection", arXiv 1612.03144."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from fvcore.nn.weight_init import c2_xavier_fill
from torch import nn
from torch.nn import functional as F

from detectron2.layers import Conv2d, get_norm
from detectron2.modeling.backbone.backbone import Backbone

__all__ = ["FPN", "LastLevelMaxPool"]


class FPN(Backbone):
    """Maps of the same number of channels, ``p2``, ``p3``, ...: each of stride 2 to the power of its number."""

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int,
        norm: str | Callable[[int], nn.Module] = "",
        top_block: Any = None,
        fuse_type: str = "sum",
        square_pad: int = 0,
    ) -> None:
        """Put the pyramid on a backbone.

        Args:
            bottom_up: makes the feature maps that the pyramid is built from.
            in_features: their names, from the finest to the coarsest, each of twice the stride of the one before.
            out_channels: channels of every level.
            norm: after each convolution, as :func:`detectron2.layers.get_norm` takes it.
            top_block: makes further, coarser levels. It has ``num_levels``, how many, and ``in_feature``, the name of
                the map of the backbone or the level that it takes.
            fuse_type: a level is the "sum" or the "avg" of the coarser one and the backbone's map.
            square_pad: images are padded to squares of this side, where it is positive.
        """
        super().__init__()
        assert isinstance(bottom_up, Backbone), f"bottom_up is a {type(bottom_up).__name__}, not a Backbone"
        assert fuse_type in ("avg", "sum"), f"fuse_type is 'avg' or 'sum', not {fuse_type!r}"
        shapes = bottom_up.output_shape()
        strides = [shapes[name].stride or 0 for name in in_features]
        doubled = all(2 * fine == coarse for fine, coarse in pairwise(strides))
        assert strides and doubled, f"the strides of in_features, {strides}, do not double"
        self._levels = [int(math.log2(stride)) for stride in strides]
        for name, level in zip(in_features, self._levels, strict=True):
            norms = [get_norm(norm, out_channels) for _ in range(2)]
            lateral = Conv2d(shapes[name].channels or 0, out_channels, 1, bias=norm == "", norm=norms[0])
            output = Conv2d(out_channels, out_channels, 3, padding=1, bias=norm == "", norm=norms[1])
            for prefix, conv in (("fpn_lateral", lateral), ("fpn_output", output)):
                c2_xavier_fill(conv)
                self.add_module(f"{prefix}{level}", conv)
        self.top_block = top_block
        self.in_features = tuple(in_features)
        self.bottom_up = bottom_up
        last = self._levels[-1] + (0 if top_block is None else top_block.num_levels)
        self._out_feature_strides = {f"p{level}": 2**level for level in range(self._levels[0], last + 1)}
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        self._size_divisibility = strides[-1]
        self._square_pad = square_pad
        self._fuse_type = fuse_type

    @property
    def size_divisibility(self) -> int:
        """Stride of the coarsest map of the backbone."""
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        """The side of square images, 0 where they need not be square."""
        return {"square_size": self._square_pad}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the levels, (B, out_channels, H / stride, W / stride) each, from fine to coarse.

        Args:
            x: normalised images (B, 3, H, W), padded to multiples of :attr:`size_divisibility`.
        """
        features = self.bottom_up(x)
        outputs: list[torch.Tensor] = []
        coarser = None
        for name, number in zip(self.in_features[::-1], self._levels[::-1], strict=True):
            level = getattr(self, f"fpn_lateral{number}")(features[name])
            if coarser is not None:
                level = level + F.interpolate(coarser, scale_factor=2.0, mode="nearest")
                level = level / 2 if self._fuse_type == "avg" else level
            outputs.insert(0, getattr(self, f"fpn_output{number}")(level))
            coarser = level
        pyramid = dict(zip(self._out_features, outputs, strict=False))
        if self.top_block is not None:
            further = self.top_block({**pyramid, **features}[self.top_block.in_feature])
            pyramid.update(zip(self._out_features[len(outputs) :], further, strict=True))
        return pyramid


class LastLevelMaxPool(nn.Module):
    """One further level: every second cell of ``p5``."""

    def __init__(self) -> None:
        super().__init__()
        self.num_levels = 1
        self.in_feature = "p5"

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the level in a list, (B, C, H / 2, W / 2)."""
        return [F.max_pool2d(x, kernel_size=1, stride=2)]
