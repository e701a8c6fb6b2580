"""Detectors with weights that follow from the names of the parameters alone, and what is fed to them."""

import math
import zlib
from functools import partial

import numpy as np
import torch
from torch import nn

from detectron2.layers import ShapeSpec
from detectron2.layers.batch_norm import NaiveSyncBatchNorm
from detectron2.modeling import FPN, MViT, ResNet
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import BasicStem
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    StandardROIHeads,
)
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

CLASSES = 80
LEVELS = ["p2", "p3", "p4", "p5"]
STAGES = ["res2", "res3", "res4", "res5"]
SCALES = ["scale2", "scale3", "scale4", "scale5"]
# Channels of the pyramid and of the box head, and how many regions there are: as in the configs, or few, which a
# CPU computes in a second. Backbones always have all of their channels.
FULL = {"channels": 256, "features": 1024, "proposals": ((2000, 1000), (1000, 1000)), "sampled": (256, 512)}
SMALL = {"channels": 64, "features": 96, "proposals": ((300, 200), (150, 100)), "sampled": (64, 48)}


def resnet(depth, norm="FrozenBN"):
    bottleneck = {} if depth < 50 else {"stride_in_1x1": True}
    return ResNet(
        stem=BasicStem(in_channels=3, out_channels=64, norm=norm),
        stages=ResNet.make_default_stages(depth=depth, norm=norm, **bottleneck),
        out_features=STAGES,
    )


def mvit_t():
    return MViT(
        embed_dim=96,
        depth=10,
        num_heads=1,
        last_block_indexes=(0, 2, 7, 9),
        residual_pooling=True,
        drop_path_rate=0.2,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        out_features=SCALES,
    )


def pooler(size):
    return ROIPooler(size, scales=(1 / 4, 1 / 8, 1 / 16, 1 / 32), sampling_ratio=0, pooler_type="ROIAlignV2")


def box_head(size, norm, convs):
    return FastRCNNConvFCHead(
        input_shape=ShapeSpec(channels=size["channels"], height=7, width=7),
        conv_dims=[size["channels"]] * convs,
        fc_dims=[size["features"]] * (1 if convs else 2),
        conv_norm=norm,
    )


def predictor(size, weights=(10, 10, 5, 5), **options):
    return FastRCNNOutputLayers(
        input_shape=ShapeSpec(channels=size["features"]),
        box2box_transform=Box2BoxTransform(weights=weights),
        num_classes=CLASSES,
        test_score_thresh=0.05,
        **options,
    )


def matcher(threshold):
    return Matcher(thresholds=[threshold], labels=[0, 1], allow_low_quality_matches=False)


def heads(size, norm="", convs=0, cascade=False):
    """Region heads of Mask R-CNN, or of Cascade R-CNN."""
    shared = {
        "num_classes": CLASSES,
        "batch_size_per_image": size["sampled"][1],
        "positive_fraction": 0.25,
        "box_in_features": LEVELS,
        "box_pooler": pooler(7),
        "mask_in_features": LEVELS,
        "mask_pooler": pooler(14),
        "mask_head": MaskRCNNConvUpsampleHead(
            input_shape=ShapeSpec(channels=size["channels"], width=14, height=14),
            num_classes=CLASSES,
            conv_dims=[size["channels"]] * 5,
            conv_norm=norm,
        ),
    }
    topk = {"test_topk_per_image": size.get("detections", 12)}
    if not cascade:
        head, output = box_head(size, norm, convs), predictor(size, **topk)
        return StandardROIHeads(**shared, proposal_matcher=matcher(0.5), box_head=head, box_predictor=output)
    weights = [(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]
    return CascadeROIHeads(
        **shared,
        box_heads=[box_head(size, norm, convs) for _ in weights],
        box_predictors=[predictor(size, one, cls_agnostic_bbox_reg=True, **topk) for one in weights],
        proposal_matchers=[matcher(threshold) for threshold in (0.5, 0.6, 0.7)],
    )


def rcnn(size, bottom_up, in_features, roi_heads, fpn_norm="", convs=1):
    before, after = size["proposals"]
    return GeneralizedRCNN(
        backbone=FPN(bottom_up, in_features, size["channels"], norm=fpn_norm, top_block=LastLevelMaxPool()),
        proposal_generator=RPN(
            in_features=[*LEVELS, "p6"],
            head=StandardRPNHead(in_channels=size["channels"], num_anchors=3, conv_dims=[-1] * convs),
            anchor_generator=DefaultAnchorGenerator(
                sizes=[[32], [64], [128], [256], [512]],
                aspect_ratios=[0.5, 1.0, 2.0],
                strides=[4, 8, 16, 32, 64],
                offset=0.0,
            ),
            anchor_matcher=Matcher(thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True),
            box2box_transform=Box2BoxTransform(weights=[1.0, 1.0, 1.0, 1.0]),
            batch_size_per_image=size["sampled"][0],
            positive_fraction=0.5,
            pre_nms_topk=before,
            post_nms_topk=after,
        ),
        roi_heads=roi_heads,
        pixel_mean=[103.53, 116.28, 123.675],
        pixel_std=[57.375, 57.12, 58.395],
        input_format="BGR",
    )


def synchronized(channels):
    return NaiveSyncBatchNorm(channels, stats_mode="N")


ARCHITECTURES = {
    "mask_rcnn_R_50_FPN": lambda size: rcnn(size, resnet(50), STAGES, heads(size)),
    "mask_rcnn_R_101_FPN": lambda size: rcnn(size, resnet(101), STAGES, heads(size)),
    "mask_rcnn_R_18_FPN_GN": lambda size: rcnn(size, resnet(18, "GN"), STAGES, heads(size, "GN", 4), fpn_norm="GN"),
    "mvitv2_t_mask_rcnn": lambda size: rcnn(size, mvit_t(), SCALES, heads(size)),
    "cascade_mask_rcnn_mvitv2_t": lambda size: rcnn(
        size, mvit_t(), SCALES, heads(size, synchronized, 4, cascade=True), convs=2
    ),
}


GAINS = {"bbox_pred": 0.5, "anchor_deltas": 0.1, "objectness_logits": 1.0, "mask_head.predictor": 2.0, "lateral": 1.0}


def value_of(name, shape, gains):
    """Return the value of a parameter or buffer, such that features keep about their size from layer to layer."""
    # independent numbers for all weights: where they repeat, classes come out alike
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name.endswith("running_var"):
        return 0.5 + noise.abs()
    if len(shape) == 1 and name.endswith("weight"):
        # the last norm of a residual branch: small, or the features grow from block to block
        return (0.15 if ".conv3.norm" in name else 1.0) + 0.1 * noise
    if len(shape) <= 1:
        return 0.1 * noise
    gain = next((value for part, value in gains.items() if part in name), math.sqrt(2))
    weight = noise * (gain / math.sqrt(math.prod(shape[1:])))
    # without their mean: features are positive, and all regions would have the same class
    return weight - weight.mean(dim=tuple(range(1, len(shape))), keepdim=True)


def detector(name, size=SMALL, confidence=3.0):
    """Return an architecture with its weights; ``confidence`` scales the class logits."""
    model = ARCHITECTURES[name](size)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(value_of(key, value.shape, {"cls_score": confidence, **GAINS}))
    return model


def picture(height, width, seed):
    """Return an image (3, height, width) uint8 of smooth colours with rectangles and noise."""
    random = np.random.RandomState(seed)
    ys, xs = np.mgrid[:height, :width] / 50.0
    waves = [random.uniform(0.3, 2) * xs + random.uniform(0.3, 2) * ys + channel for channel in range(3)]
    image = 128 + 90 * np.sin(waves)
    for _ in range(12):
        y, x = random.randint(0, height - 8), random.randint(0, width - 8)
        h, w = random.randint(8, height // 2), random.randint(8, width // 2)
        image[:, y : y + h, x : x + w] = random.randint(0, 256, (3, 1, 1))
    image += random.normal(0, 8, image.shape)
    return torch.from_numpy(image.clip(0, 255).astype(np.uint8))


def truth(height, width, seed, count=6, bitmaps=False):
    """Return ground truth: rectangles with a corner cut off, as polygons or as bitmaps."""
    random = np.random.RandomState(seed)
    instances = Instances((height, width))
    if count == 0:
        instances.gt_boxes, instances.gt_classes = Boxes([]), torch.zeros(0, dtype=torch.int64)
        instances.gt_masks = PolygonMasks([])
        return instances
    size = random.uniform(0.15, 0.6, (count, 2)) * (width, height)
    low = random.uniform(0, 1, (count, 2)) * ((width, height) - size)
    boxes = np.concatenate([low, low + size], axis=1)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    instances.gt_classes = torch.from_numpy(random.randint(0, CLASSES, count))
    polygons = [[np.array([a, b, c, b, c, d, (a + c) / 2, d, a, (b + d) / 2])] for a, b, c, d in boxes]
    masks = PolygonMasks(polygons)
    instances.gt_masks = BitMasks.from_polygon_masks(masks, height, width) if bitmaps else masks
    return instances


def proposals(instances, seed, count=60):
    """Return proposals: the ground truth shifted a little, and boxes anywhere."""
    random, (height, width) = np.random.RandomState(seed), instances.image_size
    size = random.uniform(0.1, 0.6, (count, 2)) * (width, height)
    low = random.uniform(0, 1, (count, 2)) * ((width, height) - size)
    shifted = [instances.gt_boxes.tensor.numpy() + random.normal(0, 3, (len(instances), 4)) for _ in range(3)]
    boxes = Boxes(
        torch.tensor(np.concatenate([*shifted, np.concatenate([low, low + size], axis=1)]), dtype=torch.float32)
    )
    boxes.clip((height, width))
    boxes = boxes[boxes.nonempty(threshold=4)]
    logits = torch.from_numpy(random.normal(0, 1, len(boxes))).float()
    return Instances((height, width), proposal_boxes=boxes, objectness_logits=logits)
