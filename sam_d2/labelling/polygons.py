"""Masks as polygons, for tools that read no run lengths."""

from __future__ import annotations

import cv2
import numpy as np


def mask_to_polygons(mask: np.ndarray) -> list[list[float]]:
    """Return the outlines of a mask's parts along the edges of its pixels, holes filled: COCO's polygons have none.

    pycocotools rasterises them to the very mask with its holes filled, and their areas sum to its pixels.

    Args:
        mask: (H0, W0) bool.

    Returns:
        ``[x1, y1, x2, y2, ...]`` for each part, its corners in pixels, continuous coordinates; none for an empty mask.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    top, left = rows[0], columns[0]
    cut = mask[top : rows[-1] + 1, left : columns[-1] + 1].astype(np.uint8)
    # OpenCV's outlines go through the centres of the border's pixels. In an image of twice the size these are a quarter
    # of a pixel inside of the edges, and rounding finds them: of the half pixels 2x and 2x + 1, x and x + 1. A diagonal
    # step, which cuts a corner that points inwards, comes to that corner, twice.
    doubled = cv2.resize(cut, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    outlines, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    corners = [(outline.reshape(-1, 2) + 1) // 2 for outline in outlines]
    distinct = [part[(part != np.roll(part, 1, axis=0)).any(axis=1)] for part in corners]
    return [np.add(part, (left, top)).astype(float).ravel().tolist() for part in distinct]
