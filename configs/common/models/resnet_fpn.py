"""ResNet-50 (arXiv 1512.03385) with a feature pyramid (arXiv 1612.03144), as Detectron2's zoo has it."""

from detectron2.config import LazyCall as L
from detectron2.modeling import FPN, ResNet
from detectron2.modeling.backbone import BasicStem
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

resnet_50_fpn = L(FPN)(
    bottom_up=L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
        stages=L(ResNet.make_default_stages)(depth=50, stride_in_1x1=True, norm="FrozenBN"),
        out_features=["res2", "res3", "res4", "res5"],
        freeze_at=2,  # stem and first stage; 0 freezes nothing
    ),
    in_features="${.bottom_up.out_features}",
    out_channels=256,
    top_block=L(LastLevelMaxPool)(),
)
