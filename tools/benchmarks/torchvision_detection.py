"""torchvision's Mask R-CNN called by itself and by way of sam_d2, the same detections.

One image of 1200 x 1600 pixels, random weights whose scores are spread until 100 objects are found. The peer is
torchvision's model called as its documentation says, its soft masks thresholded at 0.5; sam_d2 thresholds 16 at a time.
The answers are scores, boxes and areas of masks. The first call is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn

import sam_d2  # noqa: F401  makes detectron2 importable
from benchmarks import Benchmark, Measured, Ratio, device, measure
from sam_d2.modeling.torchvision_rcnn import TorchvisionMaskRCNN, coco_labels

SIZE = (1200, 1600)
TURNS = 3

Detect = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""From (3, H, W) uint8 to scores (N,), boxes (N, 4) and bool masks (N, H, W)."""


def detector() -> MaskRCNN:
    torch.manual_seed(0)
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    with torch.no_grad():
        # Random weights find slivers of nothing: let regions stay as they are, some classes win, and masks be mixed.
        model.rpn.head.bbox_pred.weight.mul_(0)
        model.roi_heads.box_predictor.bbox_pred.weight.mul_(0)
        model.roi_heads.box_predictor.cls_score.weight.mul_(30)
        model.roi_heads.mask_predictor.mask_fcn_logits.weight.mul_(100)
    return model.to(device()).eval()


@torch.no_grad()
def of_torchvision() -> Detect:
    model = detector()

    @torch.no_grad()
    def detect(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (found,) = model([image.to(device()).float() / 255])
        return found["scores"], found["boxes"], found["masks"][:, 0] >= 0.5

    return detect


def of_sam_d2() -> Detect:
    # All of torchvision's labels are classes here, those of no category too, or the two would find different objects.
    labels = list(range(1, max(coco_labels()) + 1))
    model = TorchvisionMaskRCNN(detector(), labels).to(device()).eval()

    def detect(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = model([{"image": image, "height": image.shape[1], "width": image.shape[2]}])[0]["instances"]
        return found.scores, found.pred_boxes.tensor, found.pred_masks

    return detect


def in_turns(build: Callable[[], Detect]) -> Iterator[Measured]:
    detect = build()
    image = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    detect(image)
    for _ in range(TURNS):
        found: tuple[Any, ...]
        found, figures = measure(partial(detect, image))
        scores, boxes, masks = found
        yield Measured(figures, [*scores.tolist(), *boxes.flatten().tolist(), *masks.sum(dim=(1, 2)).tolist()])


OURS, PEER = "sam_d2", "torchvision"

BENCHMARK = Benchmark(
    cases={OURS: partial(in_turns, of_sam_d2), PEER: partial(in_turns, of_torchvision)},
    ratios=(
        Ratio("seconds", OURS, PEER, at_least=1.0),
        Ratio("step_mib", OURS, PEER, at_least=1.0),
        Ratio("cpu_seconds", OURS, PEER),
    ),
    same_answers=((OURS, PEER),),
    tolerance=1e-5,
    in_turn=((OURS, PEER),),
    peer=lambda: f"torchvision {version('torchvision')}",
    gpu=True,
)
