"""From masks in boxes to masks in the image."""

from typing import Any

import torch
from torch.nn import functional as F

__all__ = ["paste_masks_in_image"]

# Samples of one step on a GPU as float32: at most this many bytes.
STEP_BYTES = 1024**3


def paste_masks_in_image(
    masks: torch.Tensor, boxes: Any, image_shape: tuple[int, int], threshold: float = 0.5
) -> torch.Tensor:
    """Resample each mask to its box in the image, bilinearly.

    Pixel centres lie at +0.5; beyond the border of a mask the values are 0.

    Args:
        masks: (N, S, S), probabilities in [0, 1].
        boxes: N boxes, XYXY in pixels of the image: Boxes, or a tensor (N, 4).
        image_shape: (height, width) of the image.
        threshold: least probability of the foreground. A negative one asks for the probabilities themselves.

    Returns:
        (N, height, width) bool, or uint8 of 255 times the probability where ``threshold`` is negative.
    """
    assert masks.shape[-1] == masks.shape[-2], f"masks must be square, not {tuple(masks.shape[-2:])}"
    height, width = image_shape
    if len(masks) == 0:
        return masks.new_empty((0, height, width), dtype=torch.uint8)
    edges: torch.Tensor = boxes if isinstance(boxes, torch.Tensor) else boxes.tensor
    assert len(edges) == len(masks), f"{len(edges)} boxes for {len(masks)} masks"
    on_cpu = edges.device.type == "cpu"
    # A CPU does best with one mask at a time and no more than its box; a GPU with many whole images at once.
    step = 1 if on_cpu else max(STEP_BYTES // (4 * height * width), 1)
    kind = torch.bool if threshold >= 0 else torch.uint8
    pasted = torch.zeros(len(masks), height, width, dtype=kind, device=edges.device)
    for start in range(0, len(masks), step):
        part = slice(start, start + step)
        rows, columns = _window(edges[start], height, width) if on_cpu else (range(height), range(width))
        values = _sample(masks[part], edges[part], rows, columns)
        found = values >= threshold if threshold >= 0 else (values * 255).to(torch.uint8)
        pasted[part, rows.start : rows.stop, columns.start : columns.stop] = found
    return pasted


def _window(box: torch.Tensor, height: int, width: int) -> tuple[range, range]:
    """Return the rows and columns of the image that a box covers, and one pixel more on each side."""
    left, top = (box[:2].floor() - 1).clamp(min=0).int().tolist()
    right, bottom = (box[2:].ceil() + 1).int().tolist()
    return range(top, min(bottom, height)), range(left, min(right, width))


def _sample(masks: torch.Tensor, boxes: torch.Tensor, rows: range, columns: range) -> torch.Tensor:
    """Return masks (N, S, S) at the pixels of the given rows and columns, (N, rows, columns)."""
    if not masks.is_floating_point():
        masks = masks.float()
    axes = []
    for axis, pixels in enumerate((columns, rows)):
        centres = torch.arange(pixels.start, pixels.stop, device=boxes.device, dtype=torch.float32) + 0.5
        low, high = boxes[:, axis, None], boxes[:, axis + 2, None]
        axes.append((centres - low) / (high - low) * 2 - 1)  # grid_sample has a mask's edges at -1 and 1
    shape = (len(masks), len(rows), len(columns))
    grid = torch.stack([axes[0][:, None, :].expand(shape), axes[1][:, :, None].expand(shape)], dim=3)
    return F.grid_sample(masks[:, None], grid.to(masks.dtype), align_corners=False)[:, 0]
