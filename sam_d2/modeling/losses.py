"""Losses of SAM, per instance and at low resolution.

The weights of the paper (20 focal, 1 dice, 1 predicted IoU; arXiv 2304.02643, appendix A) are in the config and
are applied once, in the meta-architecture.
"""

import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor

from sam_d2.modeling.masks import object_cells


def mask_focal_loss(logits: Tensor, targets: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss (arXiv 1708.02002) of each mask, averaged over its cells.

    Args:
        logits: (..., L, L) mask logits, low-res frame.
        targets: same shape, covered share in [0, 1].
        alpha: weight of foreground against background; negative for none.
        gamma: exponent that damps easy cells.

    Returns:
        (...) one value per mask.
    """
    loss = sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma, reduction="none")
    return loss.mean(dim=(-2, -1))


def mask_dice_loss(logits: Tensor, targets: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Dice loss (arXiv 1606.04797) of each mask by itself, so that small objects weigh as much as large ones.

    Args:
        logits: (..., L, L) mask logits, low-res frame.
        targets: same shape, covered share in [0, 1].
        smooth: cells added to numerator and denominator; defines the loss of an empty mask.

    Returns:
        (...) one value per mask, in [0, 1].
    """
    probability = logits.sigmoid().flatten(-2)
    targets = targets.flatten(-2)
    overlap = (probability * targets).sum(-1)
    total = probability.sum(-1) + targets.sum(-1)
    return 1 - (2 * overlap + smooth) / (total + smooth)


@torch.no_grad()
def mask_iou(logits: Tensor, targets: Tensor) -> Tensor:
    """Intersection over union of logits above 0 and the object's cells; 1 where both are empty.

    The object's cells are :func:`sam_d2.modeling.masks.object_cells`, of which every object has one: no prediction is
    right for being empty, but of a mask without a pixel.

    Args:
        logits: (..., L, L) mask logits, low-res frame.
        targets: same shape, covered share in [0, 1].

    Returns:
        (...) float32 in [0, 1].
    """
    predicted, true = logits > 0, object_cells(targets)
    intersection = (predicted & true).sum(dim=(-2, -1))
    union = (predicted | true).sum(dim=(-2, -1))
    return torch.where(union > 0, intersection / union.clamp(min=1), torch.ones_like(union, dtype=torch.float32))


def iou_prediction_loss(predicted_iou: Tensor, true_iou: Tensor) -> Tensor:
    """Squared error of the predicted IoU, per mask and without reduction (SAM, appendix A).

    Args:
        predicted_iou: (...) output of the IoU head, unbounded.
        true_iou: (...) measured IoU in [0, 1]; takes no gradient.
    """
    return F.mse_loss(predicted_iou, true_iou, reduction="none")


def best_mask_losses(logits: Tensor, predicted_iou: Tensor, targets: Tensor, *, focal: float, dice: float) -> Tensor:
    """Return the losses of each instance, of its best mask where several are predicted (SAM, appendix A).

    The best mask is the one whose weighted focal and Dice loss is lowest; only it is trained. The predicted IoU is
    trained for all, because it is what chooses between them at a test.

    Args:
        logits: (N, M, L, L) mask logits, low-res frame.
        predicted_iou: (N, M).
        targets: (N, L, L) covered share in [0, 1].
        focal: weight of the focal loss in the choice of the best mask.
        dice: weight of the Dice loss in it.

    Returns:
        (N, 3) focal, Dice and predicted-IoU loss, unweighted.
    """
    targets = targets[:, None].expand_as(logits)
    focal_losses, dice_losses = mask_focal_loss(logits, targets), mask_dice_loss(logits, targets)
    best = (focal * focal_losses + dice * dice_losses).detach().argmin(dim=1, keepdim=True)
    iou_losses = iou_prediction_loss(predicted_iou, mask_iou(logits, targets))
    return torch.stack(
        [focal_losses.gather(1, best)[:, 0], dice_losses.gather(1, best)[:, 0], iou_losses.mean(dim=1)], dim=1
    )
