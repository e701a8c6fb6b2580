"""Models: backbones, and what makes detections of their feature maps."""

from detectron2.modeling.backbone import FPN, Backbone, MViT, ResNet, ResNetBlockBase, make_stage

__all__ = ["FPN", "Backbone", "MViT", "ResNet", "ResNetBlockBase", "make_stage"]
