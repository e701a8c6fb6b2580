"""Layers and functions that models are built from."""

from torch.nn import BatchNorm2d, ConvTranspose2d, Linear
from torch.nn.functional import interpolate

from detectron2.layers.batch_norm import FrozenBatchNorm2d, NaiveSyncBatchNorm, get_norm
from detectron2.layers.blocks import CNNBlockBase
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.layers.nms import batched_nms, nms
from detectron2.layers.roi_align import ROIAlign, roi_align
from detectron2.layers.shape_spec import ShapeSpec
from detectron2.layers.wrappers import Conv2d, cat, cross_entropy, nonzero_tuple

__all__ = [
    "BatchNorm2d", "CNNBlockBase", "Conv2d", "ConvTranspose2d", "FrozenBatchNorm2d", "Linear", "NaiveSyncBatchNorm",
    "ROIAlign", "ShapeSpec", "batched_nms", "cat", "cross_entropy", "get_norm", "interpolate", "nms", "nonzero_tuple",
    "paste_masks_in_image", "roi_align",
]  # fmt: skip
