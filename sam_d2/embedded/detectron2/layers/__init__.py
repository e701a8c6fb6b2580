"""Layers and functions that models are built from."""

from torch.nn import BatchNorm2d, ConvTranspose2d, Linear
from torch.nn.functional import interpolate

from detectron2.layers.batch_norm import FrozenBatchNorm2d, NaiveSyncBatchNorm, get_norm
from detectron2.layers.blocks import CNNBlockBase
from detectron2.layers.shape_spec import ShapeSpec
from detectron2.layers.wrappers import Conv2d, cat, cross_entropy, nonzero_tuple

__all__ = [
    "BatchNorm2d", "CNNBlockBase", "Conv2d", "ConvTranspose2d", "FrozenBatchNorm2d", "Linear", "NaiveSyncBatchNorm",
    "ShapeSpec", "cat", "cross_entropy", "get_norm", "interpolate", "nonzero_tuple",
]  # fmt: skip
