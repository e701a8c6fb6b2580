"""Networks from images to feature maps."""

from detectron2.modeling.backbone.backbone import Backbone
from detectron2.modeling.backbone.fpn import FPN
from detectron2.modeling.backbone.mvit import MViT
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, ResNet, ResNetBlockBase, make_stage

__all__ = ["FPN", "Backbone", "BasicStem", "BottleneckBlock", "MViT", "ResNet", "ResNetBlockBase", "make_stage"]
