"""Models: backbones, and what makes detections of their feature maps."""

from detectron2.modeling.backbone import FPN, Backbone, MViT, ResNet, ResNetBlockBase, make_stage
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.roi_heads import BaseMaskRCNNHead, FastRCNNOutputLayers, ROIHeads, StandardROIHeads

__all__ = [
    "FPN", "Backbone", "BaseMaskRCNNHead", "FastRCNNOutputLayers", "GeneralizedRCNN", "MViT", "ROIHeads", "ResNet",
    "ResNetBlockBase", "StandardROIHeads", "detector_postprocess", "make_stage",
]  # fmt: skip
