"""From low-res logits back to masks and boxes of the original image."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import masks_to_boxes


def resize_logits(logits: Tensor, canvas: int, resized: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """Upsample logits to the original frame in SAM's own two steps: to the canvas, cut the padding, to the image.

    Args:
        logits: (N, L, L) mask logits, low-res frame.
        canvas: S, side of the padded frame.
        resized: (H, W) of the resized frame.
        original: (H0, W0) of the original frame.

    Returns:
        (N, H0, W0) logits, original frame.
    """
    masks = F.interpolate(logits[:, None], (canvas, canvas), mode="bilinear", align_corners=False)
    masks = masks[..., : resized[0], : resized[1]]
    return F.interpolate(masks, original, mode="bilinear", align_corners=False)[:, 0]


def boxes_of_masks(masks: Tensor) -> Tensor:
    """Return the tight boxes of masks as continuous XYXY edges; an empty mask gives (0, 0, 0, 0).

    Args:
        masks: (N, H0, W0) bool.

    Returns:
        (N, 4) float32.
    """
    boxes = torch.zeros((len(masks), 4), dtype=torch.float32, device=masks.device)
    filled = masks.flatten(1).any(1)
    if filled.any():
        # masks_to_boxes gives the last pixel's index; the edge is one further.
        boxes[filled] = masks_to_boxes(masks[filled]).float() + boxes.new_tensor([0, 0, 1, 1])
    return boxes
