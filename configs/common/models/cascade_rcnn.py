"""Cascade Mask R-CNN (arXiv 1712.00726): three stages of box heads, each for a higher overlap."""

from functools import partial

from detectron2.config import LazyCall as L
from detectron2.layers import NaiveSyncBatchNorm, ShapeSpec
from detectron2.modeling import FastRCNNOutputLayers
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNConvFCHead

from .mask_rcnn_fpn import model

# Heads may have no input, which torch's SyncBatchNorm does not take.
_norm = partial(NaiveSyncBatchNorm, stats_mode="N")

_same = model.roi_heads
_same.pop("box_head"), _same.pop("box_predictor"), _same.pop("proposal_matcher")
_same.update(
    _target_=CascadeROIHeads,
    box_heads=[
        L(FastRCNNConvFCHead)(
            input_shape=L(ShapeSpec)(channels="${model.backbone.out_channels}", height=7, width=7),
            conv_dims=[256, 256, 256, 256],
            fc_dims=[1024],
            conv_norm=_norm,
        )
        for _ in range(3)
    ],
    box_predictors=[
        L(FastRCNNOutputLayers)(
            input_shape=L(ShapeSpec)(channels=1024),
            test_score_thresh=0.05,
            box2box_transform=L(Box2BoxTransform)(weights=[centre, centre, size, size]),
            cls_agnostic_bbox_reg=True,
            num_classes="${...num_classes}",
        )
        for centre, size in [(10, 5), (20, 10), (30, 15)]
    ],
    proposal_matchers=[
        L(Matcher)(thresholds=[overlap], labels=[0, 1], allow_low_quality_matches=False) for overlap in (0.5, 0.6, 0.7)
    ],
)
_same.mask_head.conv_norm = _norm
