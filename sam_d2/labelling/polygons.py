"""Masks as polygons, for tools that read no run lengths."""

from __future__ import annotations

import cv2
import numpy as np


def mask_to_polygons(mask: np.ndarray) -> list[list[float]]:
    """Return the outlines of a mask's parts, holes filled: COCO's polygons have none.

    pycocotools rasterises them to the very mask with its holes filled.

    Args:
        mask: (H0, W0) bool.

    Returns:
        ``[x1, y1, x2, y2, ...]`` in pixels for each part, continuous coordinates; none for an empty mask.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    top, left = rows[0], columns[0]
    cut = mask[top : rows[-1] + 1, left : columns[-1] + 1].astype(np.uint8)
    # OpenCV's outlines go through the centres of the border's pixels, which makes the mask smaller by half a pixel on
    # each side. In an image of twice the size the centres are a quarter of a pixel inside, and rounding finds the edge.
    doubled = cv2.resize(cut, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    outlines, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [((outline.reshape(-1, 2) + 0.5) / 2 + (left, top)).ravel().tolist() for outline in outlines]
