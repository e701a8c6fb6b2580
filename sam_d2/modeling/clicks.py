"""Correction clicks: the next point of an interactive session, where the mask is wrong."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sam_d2.modeling.masks import InstanceMasks, object_cells, rasterise_crop
from sam_d2.modeling.prompt_samplers import innermost_pixel
from sam_d2.modeling.prompts import Prompts


@torch.no_grad()
def random_corrections(
    logits: Tensor, targets: Tensor, draws: Tensor, stride: int, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Draw a point uniformly from where each mask is wrong (SAM, arXiv 2304.02643, appendix A).

    A mask without error is clicked inside the object, an object without a cell (see
    :func:`~sam_d2.modeling.masks.object_cells`) anywhere. Nothing here waits for a device.

    Args:
        logits: (N, L, L) mask logits, low-res frame.
        targets: (N, L, L) covered share in [0, 1].
        draws: (N,) uniform in [0, 1).
        stride: pixels of the padded frame per low-res cell.
        size: (height, width) of the resized frame; nobody clicks in the padding beyond it.

    Returns:
        Points (N, 1, 2), xy pixel indices at the centre of a cell, padded frame; labels (N, 1) int64, 1 where the
        object was missed and 0 where background was taken for it.
    """
    side = logits.shape[-1]
    image = torch.zeros_like(targets[:1], dtype=torch.bool)
    image[:, : -(-size[0] // stride), : -(-size[1] // stride)] = True
    image = image.flatten(1)
    true = object_cells(targets).flatten(1)
    wrong = ((logits > 0).flatten(1) ^ true) & image
    region = torch.where(wrong.any(1, keepdim=True), wrong, true)
    region = region | (image & ~region.any(1, keepdim=True))
    passed = region.cumsum(1)
    rank = (draws.to(passed.device, non_blocking=True) * passed[:, -1]).long() + 1
    cell = torch.searchsorted(passed, rank.clamp(max=passed[:, -1])[:, None])
    xy = torch.stack([cell % side, cell // side], dim=-1)
    return (xy + 0.5) * stride - 0.5, true.gather(1, cell).long()


def innermost_correction(predicted: np.ndarray, true: np.ndarray) -> tuple[int, int, int]:
    """Return the click that a user would make next: the middle of the largest error.

    Args:
        predicted: (H0, W0) bool.
        true: (H0, W0) bool.

    Returns:
        (x, y, label): the pixel farthest from the edge of what was missed (label 1) or wrongly taken (label 0),
        whichever is farther; inside the object where nothing is wrong.
    """
    missed, taken = true & ~predicted, predicted & ~true
    if not missed.any() and not taken.any():
        x, y, _ = innermost_pixel(true if true.any() else ~true)
        return x, y, int(true.any())
    (*in_missed, missed_depth), (*in_taken, taken_depth) = innermost_pixel(missed), innermost_pixel(taken)
    (x, y), label = (in_missed, 1) if missed_depth >= taken_depth else (in_taken, 0)
    return x, y, label


def innermost_corrections(predicted: Tensor, truth: InstanceMasks, resized: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return each instance's next click by :func:`innermost_correction`.

    Args:
        predicted: (N, H0, W0) bool, original frame.
        truth: N masks in it.
        resized: (height, width) of the resized frame.

    Returns:
        Points (N, 1, 2) in the padded frame and labels (N, 1), on the device of ``predicted``.
    """
    size = (predicted.shape[1], predicted.shape[2])
    clicks = torch.tensor(
        [
            innermost_correction(mask, rasterise_crop(truth, row, (0, 0, size[1], size[0])))
            for row, mask in enumerate(predicted.cpu().numpy())
        ]
    )[:, None]
    prompts = Prompts(points=clicks[..., :2].float(), labels=clicks[..., 2]).rescaled(size, resized)
    return prompts.points.to(predicted.device), prompts.labels.to(predicted.device)  # type: ignore[union-attr]
