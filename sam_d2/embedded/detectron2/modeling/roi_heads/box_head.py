"""From a region's feature map to its feature vector."""

from collections.abc import Sequence
from typing import Any

from fvcore.nn import weight_init
from torch import nn

from detectron2.layers import Conv2d, ShapeSpec, get_norm

__all__ = ["FastRCNNConvFCHead"]


class FastRCNNConvFCHead(nn.Sequential):
    """3x3 convolutions with norm and ReLU, then linear layers with ReLU.

    Attributes:
        output_shape: shape of a region's output.
    """

    def __init__(
        self, input_shape: ShapeSpec, *, conv_dims: Sequence[int], fc_dims: Sequence[int], conv_norm: Any = ""
    ) -> None:
        """Make the layers; at least one.

        Args:
            input_shape: channels, height and width of a region's features.
            conv_dims: channels after each convolution.
            fc_dims: size after each linear layer.
            conv_norm: norm of the convolutions, see :func:`detectron2.layers.get_norm`; they have a bias without it.
        """
        super().__init__()
        assert len(conv_dims) + len(fc_dims) > 0, "a box head needs a layer"
        channels, area = input_shape.channels or 1, (input_shape.height or 1) * (input_shape.width or 1)
        self.output_shape = input_shape
        for number, dim in enumerate(conv_dims, start=1):
            norm = get_norm(conv_norm, dim)
            conv = Conv2d(channels, dim, kernel_size=3, padding=1, bias=not conv_norm, norm=norm, activation=nn.ReLU())
            self.add_module(f"conv{number}", conv)
            channels = dim
            self.output_shape = ShapeSpec(channels=dim, height=input_shape.height, width=input_shape.width)
        size = channels * area
        for number, dim in enumerate(fc_dims, start=1):
            if number == 1:
                self.add_module("flatten", nn.Flatten())
            linear = nn.Linear(size, dim)
            self.add_module(f"fc{number}", linear)
            self.add_module(f"fc_relu{number}", nn.ReLU())
            size = dim
            self.output_shape = ShapeSpec(channels=dim)
        # after all layers are made: a seed then gives the weights that it gives in Detectron2
        for layer in self:
            if isinstance(layer, nn.Conv2d):
                weight_init.c2_msra_fill(layer)
            elif isinstance(layer, nn.Linear):
                weight_init.c2_xavier_fill(layer)
