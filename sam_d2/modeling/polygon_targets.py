"""Low-res targets of polygons, those of all instances at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pycocotools.mask as mask_util

from sam_d2.data.rle import decoded_runs


def fill_polygon_targets(
    targets: np.ndarray,
    rows: Sequence[int],
    instances: Sequence[Sequence[np.ndarray]],
    image_sizes: Sequence[tuple[int, int]],
    stride: int,
) -> None:
    """Fill in what share of each cell of the low-res frame the polygons cover.

    pycocotools draws the outlines, as run lengths down one column of pixels after the other, and no pixel is ever made
    of them: what a run adds to the cells of its column follows from its ends. So the cost follows the outlines, not
    the areas.

    Args:
        targets: (M, L, L) float32, zeros in ``rows``.
        rows: in ``targets``, of N instances.
        instances: the polygons of each, (2n,) x, y, ... in the resized frame of its image.
        image_sizes: (height, width) of that frame; what lies outside does not count.
        stride: pixels per cell, at least 1.
    """
    drawn = [number for number, polygons in enumerate(instances) if polygons]
    limits = np.array(image_sizes, dtype=np.int64).reshape(-1, 2)[drawn, ::-1]
    cells = _extents([instances[number] for number in drawn], limits, targets.shape[-1], stride)
    seen = np.flatnonzero((cells[:, 2:] > cells[:, :2]).all(axis=1))
    if not len(seen):
        return
    drawn, cells, limits = [drawn[one] for one in seen], cells[seen], limits[seen]
    # Each instance is drawn from the corner of its own first cell, so that a coordinate is rounded alike whatever else
    # is drawn.
    origins = cells[:, :2] * stride
    width, height = ((cells[:, 2:] - cells[:, :2]).max(axis=0) * stride).tolist()
    texts = _outlines([instances[number] for number in drawn], origins, height, width)
    columns, tops, bottoms = _column_runs(texts, height)
    owners, x = np.divmod(columns, width)
    inside = limits - origins
    bottoms = np.minimum(bottoms, inside[owners, 1])
    kept = (x < inside[owners, 0]) & (tops < bottoms)
    owners, x, tops, bottoms = owners[kept], x[kept], tops[kept], bottoms[kept]
    # A run that begins at y adds to its cell what of that lies below y, and to all cells below the whole stride; its
    # end takes the same away again. Both are running sums over a column of cells, and one more where all is zero.
    sizes = cells[:, 2:] - cells[:, :2] + (0, 1)
    begins = np.concatenate(([0], np.cumsum(sizes.prod(axis=1))))
    first = begins[owners] + (x // stride) * sizes[owners, 1]
    edges, signs = np.concatenate((tops, bottoms)), np.repeat((1, -1), len(tops))
    slots, rest = np.concatenate((first, first)) + edges // stride, edges % stride
    steps = np.bincount(slots, signs * (stride - rest), begins[-1] + 1)
    steps += np.bincount(slots + 1, signs * rest, begins[-1] + 1)
    shares = np.cumsum(steps).astype(np.float32) / np.float32(stride**2)
    for number, (x0, y0, x1, y1), size, begin in zip(drawn, cells, sizes, begins[:-1], strict=True):
        block = shares[begin : begin + size.prod()].reshape(size)
        targets[rows[number], y0:y1, x0:x1] = block[:, :-1].T


def _extents(instances: Sequence[Sequence[np.ndarray]], limits: np.ndarray, side: int, stride: int) -> np.ndarray:
    """Return the cells (N, 4) int64, x0, y0, x1, y1, that hold the polygons of instances, which all have some."""
    if not instances:
        return np.zeros((0, 4), dtype=np.int64)
    parts = [polygon for polygons in instances for polygon in polygons]
    points = np.concatenate(parts).reshape(-1, 2)
    lengths = [sum(len(polygon) for polygon in polygons) // 2 for polygons in instances]
    begins = np.cumsum([0, *lengths[:-1]])
    # A pixel of margin: pycocotools rounds a polygon's edge to the nearest pixel.
    low = np.floor(np.minimum.reduceat(points, begins)) - 1
    high = np.ceil(np.maximum.reduceat(points, begins)) + 1
    low, high = np.maximum(low, 0), np.minimum(high, limits)
    cells = np.concatenate((low // stride, np.minimum(-(-high // stride), side)), axis=1)
    cells[(high <= low).any(axis=1)] = 0
    return cells.astype(np.int64)


def _outlines(instances: Sequence[Sequence[np.ndarray]], origins: np.ndarray, height: int, width: int) -> list[bytes]:
    """Return the compressed run lengths of instances, each on a canvas of its own that begins at its origin."""
    numbers = [number for number, polygons in enumerate(instances) for _ in polygons]
    parts = [polygon for polygons in instances for polygon in polygons]
    lengths = [len(polygon) // 2 for polygon in parts]
    points = np.concatenate(parts).reshape(-1, 2) - np.repeat(origins[numbers], lengths, axis=0)
    moved = np.split(points.reshape(-1), 2 * np.cumsum(lengths[:-1]))
    found = mask_util.frPyObjects(moved, height, width)
    if len(parts) == len(instances):
        return [rle["counts"] for rle in found]
    of_each: list[list[dict]] = [[] for _ in instances]
    for number, rle in zip(numbers, found, strict=True):
        of_each[number].append(rle)
    return [rles[0]["counts"] if len(rles) == 1 else mask_util.merge(rles)["counts"] for rles in of_each]


def _column_runs(texts: list[bytes], height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the runs of masks' pixels: column, counted over all masks, first row, and the row after the last."""
    runs, places = decoded_runs(texts)
    ends = np.cumsum(runs)  # of all masks, one after the other
    inside = places % 2 == 1
    ends = ends[inside]
    starts = ends - runs[inside]
    first = starts // height
    spans = np.where(ends > starts, (ends - 1) // height - first + 1, 0)
    if (spans == 1).all():
        return first, starts - first * height, ends - first * height
    columns = np.repeat(first, spans) + np.arange(spans.sum()) - np.repeat(np.cumsum(spans) - spans, spans)
    tops = np.maximum(np.repeat(starts, spans) - columns * height, 0)
    bottoms = np.minimum(np.repeat(ends, spans) - columns * height, height)
    return columns, tops, bottoms
