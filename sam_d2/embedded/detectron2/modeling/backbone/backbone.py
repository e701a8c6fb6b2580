"""What every backbone is."""

from abc import ABCMeta, abstractmethod

import torch
from torch import nn

from detectron2.layers import ShapeSpec


class Backbone(nn.Module, metaclass=ABCMeta):
    """A network from images to feature maps.

    A subclass sets ``_out_features`` (names), ``_out_feature_channels`` and ``_out_feature_strides`` (by name), or
    has an ``output_shape`` of its own.
    """

    _out_features: list[str]
    _out_feature_channels: dict[str, int]
    _out_feature_strides: dict[str, int]

    @abstractmethod
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return feature maps (B, C, H / stride, W / stride) by name, for normalised images (B, 3, H, W), padded."""

    @property
    def size_divisibility(self) -> int:
        """Height and width of the images must be multiples of this, where it is not 0."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """How images must be padded, as :meth:`ImageList.from_tensors` takes it."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of each feature map."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }
