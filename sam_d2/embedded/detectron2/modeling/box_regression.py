"""Boxes as deltas from other boxes, and the loss of them."""

import math
from collections.abc import Sequence
from types import EllipsisType
from typing import Any

import torch
from fvcore.nn import giou_loss, smooth_l1_loss
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss

from detectron2.layers import cat
from detectron2.structures import Boxes

__all__ = ["Box2BoxTransform"]

# A box grows at most from 16 to 1000 pixels: more is a bad prediction, and exp() of it would overflow.
_DEFAULT_SCALE_CLAMP = math.log(1000.0 / 16)

_IOU_LOSSES = {"giou": giou_loss, "diou": distance_box_iou_loss, "ciou": complete_box_iou_loss}


def _centre_and_size(boxes: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return centre x and y, width and height of boxes (N, 4), each (N,)."""
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    return boxes[:, 0] + 0.5 * width, boxes[:, 1] + 0.5 * height, width, height


class Box2BoxTransform:
    """R-CNN's deltas (dx, dy, dw, dh): shift of the centre in box sizes, and log of the growth (arXiv:1311.2524, C)."""

    def __init__(self, weights: Sequence[float], scale_clamp: float = _DEFAULT_SCALE_CLAMP) -> None:
        """Set the scale of the deltas.

        Args:
            weights: four factors that the deltas are multiplied by, so that their variance is near 1.
            scale_clamp: greatest dw and dh that are applied, after division by the weights.
        """
        self.weights = weights
        self.scale_clamp = scale_clamp

    def get_deltas(self, src_boxes: torch.Tensor, target_boxes: torch.Tensor) -> torch.Tensor:
        """Return the deltas from one list of boxes to another.

        Args:
            src_boxes: (N, 4) XYXY, of positive size.
            target_boxes: (N, 4) XYXY.

        Returns:
            (N, 4).
        """
        x, y, width, height = _centre_and_size(src_boxes)
        assert (width > 0).all(), "a box from which a delta is asked has no width"
        target_x, target_y, target_width, target_height = _centre_and_size(target_boxes)
        wx, wy, ww, wh = self.weights
        shifts = (wx * (target_x - x) / width, wy * (target_y - y) / height)
        growths = (ww * torch.log(target_width / width), wh * torch.log(target_height / height))
        return torch.stack((*shifts, *growths), dim=1)

    def apply_deltas(self, deltas: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Return the boxes that deltas lead to.

        Args:
            deltas: (N, 4 K), K deltas for each box, such as one per class.
            boxes: (N, 4) XYXY.

        Returns:
            (N, 4 K) float32, XYXY.
        """
        deltas = deltas.float()  # half precision is too coarse for coordinates
        x, y, width, height = (value[:, None] for value in _centre_and_size(boxes.to(deltas.dtype)))
        dx, dy, dw, dh = (deltas[:, i::4] / weight for i, weight in enumerate(self.weights))
        centre_x, centre_y = dx * width + x, dy * height + y
        half_width = 0.5 * (torch.exp(dw.clamp(max=self.scale_clamp)) * width)
        half_height = 0.5 * (torch.exp(dh.clamp(max=self.scale_clamp)) * height)
        low = (centre_x - half_width, centre_y - half_height)
        return torch.stack((*low, centre_x + half_width, centre_y + half_height), dim=-1).reshape(deltas.shape)


def _dense_box_regression_loss(
    anchors: Sequence[Boxes | torch.Tensor], box2box_transform: Any, pred_anchor_deltas: Sequence[torch.Tensor],
    gt_boxes: Sequence[torch.Tensor], fg_mask: torch.Tensor | EllipsisType,
    box_reg_loss_type: str = "smooth_l1", smooth_l1_beta: float = 0.0,
) -> torch.Tensor:  # fmt: skip
    """Return the sum of the box losses over the foreground.

    Args:
        anchors: boxes of each of L levels, R in all.
        box2box_transform: a :class:`Box2BoxTransform`.
        pred_anchor_deltas: of each level (B, R_l, 4).
        gt_boxes: target of each anchor, (R, 4) XYXY for each of B images.
        fg_mask: (B, R) bool, the anchors that count; ``...`` for all.
        box_reg_loss_type: "smooth_l1" of the deltas, or "giou", "diou" or "ciou" of the boxes.
        smooth_l1_beta: where smooth L1 turns from square to linear; 0 is L1.

    Raises:
        ValueError: an unknown kind of loss.
    """
    sources = cat([one.tensor if isinstance(one, Boxes) else one for one in anchors])
    deltas = cat(pred_anchor_deltas, dim=1)
    # Only what counts is transformed; over all anchors, nearly all of the work would be thrown away.
    sources, predicted, targets = (
        boxes[fg_mask].reshape(-1, 4) for boxes in (sources.expand_as(deltas), deltas, torch.stack(list(gt_boxes)))
    )
    if box_reg_loss_type == "smooth_l1":
        wanted = box2box_transform.get_deltas(sources, targets)
        return smooth_l1_loss(predicted, wanted, beta=smooth_l1_beta, reduction="sum")
    if box_reg_loss_type in _IOU_LOSSES:
        boxes = box2box_transform.apply_deltas(predicted, sources)
        return _IOU_LOSSES[box_reg_loss_type](boxes, targets, reduction="sum")
    raise ValueError(f"There is no box regression loss {box_reg_loss_type!r}: smooth_l1, {', '.join(_IOU_LOSSES)}.")
