"""Ground-truth masks of either kind, rasterised where they are needed and no larger.

Polygons and bitmaps come from :class:`detectron2.structures.PolygonMasks` and ``BitMasks``. Polygons are rasterised
as pycocotools does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pycocotools.mask as mask_util
import torch
from torch import Tensor

from detectron2.structures import BitMasks, PolygonMasks
from sam_d2.modeling.polygon_targets import fill_polygon_targets

InstanceMasks = PolygonMasks | BitMasks


def rasterise_crop(masks: InstanceMasks, row: int, crop: tuple[int, int, int, int]) -> np.ndarray:
    """Return one instance's mask inside a crop.

    Args:
        masks: masks of one image, in any frame.
        row: which instance.
        crop: (x0, y0, x1, y1) whole pixels of that frame, x1 and y1 exclusive; may reach beyond the image.

    Returns:
        (y1 - y0, x1 - x0) bool, empty where a side is not positive. Beyond the image a bitmap is False; a polygon
        is drawn as far as it reaches.
    """
    x0, y0, x1, y1 = crop
    height, width = max(y1 - y0, 0), max(x1 - x0, 0)
    if isinstance(masks, PolygonMasks):
        polygons = [
            (np.asarray(polygon, dtype=np.float64).reshape(-1, 2) - (x0, y0)).reshape(-1)
            for polygon in masks.polygons[row]
        ]
        if not polygons or height == 0 or width == 0:
            return np.zeros((height, width), dtype=bool)
        rles = mask_util.frPyObjects(polygons, height, width)
        return mask_util.decode(mask_util.merge(rles)).astype(bool)
    out = np.zeros((height, width), dtype=bool)
    full = masks.tensor[row]
    left, top = max(x0, 0), max(y0, 0)
    right, bottom = min(x1, full.shape[1]), min(y1, full.shape[0])
    if right > left and bottom > top:
        out[top - y0 : bottom - y0, left - x0 : right - x0] = full[top:bottom, left:right].cpu().numpy()
    return out


def mask_extent(masks: InstanceMasks, row: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the whole-pixel crop (x0, y0, x1, y1) of an image of ``size`` (height, width) that holds a mask.

    An empty mask gives an empty crop (x1 <= x0).
    """
    height, width = size
    if isinstance(masks, PolygonMasks):
        polygons = masks.polygons[row]
        if not polygons:
            return (0, 0, 0, 0)
        points = np.concatenate([np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in polygons])
        (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
        # A pixel of margin: pycocotools rounds a polygon's edge to the nearest pixel.
        return (
            max(math.floor(left) - 1, 0),
            max(math.floor(top) - 1, 0),
            min(math.ceil(right) + 1, width),
            min(math.ceil(bottom) + 1, height),
        )
    bitmap = masks.tensor[row]
    columns, rows = bitmap.any(dim=0).nonzero(), bitmap.any(dim=1).nonzero()
    if len(columns) == 0:
        return (0, 0, 0, 0)
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def low_res_targets(parts: Sequence[tuple[InstanceMasks, tuple[int, int]]], side: int, stride: int) -> Tensor:
    """Area-average masks to the low-res frame, which is what the losses compare logits with.

    Each low-res value is the share of its ``stride x stride`` pixels of the padded frame that the mask covers;
    padding is background. Polygons are drawn all at once; of a bitmap only the instance's own extent is looked at.

    Args:
        parts: masks of an image in its resized frame, and (height, width) of that; N masks in all.
        side: L, side of the low-res frame in cells.
        stride: pixels of the padded frame per cell, S / L.

    Returns:
        (N, L, L) float32 in [0, 1], on the CPU.
    """
    targets = np.zeros((sum(len(masks) for masks, _ in parts), side, side), dtype=np.float32)
    rows: list[int] = []
    polygons: list[list[np.ndarray]] = []
    sizes: list[tuple[int, int]] = []
    begin = 0
    for masks, size in parts:
        own = range(begin, begin + len(masks))
        if isinstance(masks, PolygonMasks):
            rows += own
            polygons += masks.polygons
            sizes += [size] * len(masks)
        else:
            for row in own:
                _fill_bitmap_target(targets[row], masks, row - begin, size, stride)
        begin += len(masks)
    fill_polygon_targets(targets, rows, polygons, sizes, stride)
    return torch.from_numpy(targets)


def object_cells(targets: Tensor) -> Tensor:
    """Return the low-res cells that are the object: those covered by one half.

    Of an object so small or thin that no cell is, they are the cells covered by half of what its most covered one is;
    else predicting nothing would be right, and its own cells wrong.

    Args:
        targets: (..., L, L) covered share in [0, 1].

    Returns:
        (..., L, L) bool; no cell of a target that is 0 everywhere.
    """
    most = targets.amax(dim=(-2, -1), keepdim=True)
    return (targets >= torch.where(most < 0.5, most / 2, 0.5)) & (targets > 0)


def _fill_bitmap_target(target: np.ndarray, masks: BitMasks, row: int, size: tuple[int, int], stride: int) -> None:
    side = len(target)
    x0, y0, x1, y1 = mask_extent(masks, row, size)
    if x1 <= x0 or y1 <= y0:
        return
    column0, row0 = x0 // stride, y0 // stride
    column1, row1 = min(-(-x1 // stride), side), min(-(-y1 // stride), side)
    pixels = rasterise_crop(masks, row, (column0 * stride, row0 * stride, column1 * stride, row1 * stride))
    target[row0:row1, column0:column1] = _cell_sums(pixels, stride) / np.float32(stride**2)


def _cell_sums(pixels: np.ndarray, stride: int) -> np.ndarray:
    """Return how many of the stride x stride pixels of each cell are set.

    Whole rows and columns are added, which takes a tenth of the time of a sum over axes as short as a cell.
    """
    counts = pixels.view(np.uint8).astype(np.uint16 if stride < 256 else np.uint32)
    counts = sum(counts[offset::stride] for offset in range(1, stride)) + counts[::stride]
    return sum(counts[:, offset::stride] for offset in range(1, stride)) + counts[:, ::stride]
