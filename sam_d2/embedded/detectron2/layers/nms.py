"""Non-maximum suppression."""

import torch
from torchvision.ops import boxes as box_ops
from torchvision.ops import nms

__all__ = ["batched_nms", "nms"]


def batched_nms(boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Suppress boxes that overlap a better one of the same group.

    Args:
        boxes: (N, 4) XYXY; half precision, which cannot hold the offsets between the groups, becomes float32.
        scores: (N,).
        idxs: (N,) integer, the group of each box: its class, or its feature level.
        iou_threshold: the IoU above which the box with the lower score goes.

    Returns:
        indices of the boxes that stay, by falling score.
    """
    assert boxes.shape[-1] == 4, f"boxes have the shape {tuple(boxes.shape)}, not (N, 4)"
    return box_ops.batched_nms(boxes.float(), scores, idxs, iou_threshold)
