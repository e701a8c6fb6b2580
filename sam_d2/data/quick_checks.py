"""Find the few annotations of a chunk that the full checks must look at, without looking at each on its own."""

from collections.abc import Sequence
from itertools import chain
from operator import attrgetter

import numpy as np

from sam_d2.data.geometry import FAR_IOU, MAX_COORDINATE, MIN_POLYGON, grown_iou, may_be_long, reach_outside
from sam_d2.data.records import CocoAnnotation, made_by_model


def suspicious_rows(annotations: Sequence[CocoAnnotation], sizes: np.ndarray) -> np.ndarray:
    """Return the rows of annotations on which :func:`sam_d2.data.geometry.check_geometry` may find something.

    On the others it finds nothing. Run lengths are always among those that it may.

    Args:
        annotations: decoded from JSON, which has neither NaN nor infinity (N).
        sizes: width and height of the image of each, px (N, 2).

    Returns:
        ascending rows, int64.
    """
    numbers = chain.from_iterable(map(attrgetter("bbox"), annotations))
    boxes = np.fromiter(numbers, dtype=np.float64, count=4 * len(annotations)).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    bounds, corners, sound = _polygon_bounds([annotation.segmentation for annotation in annotations])
    areas = np.array(list(map(attrgetter("area"), annotations)), dtype=np.float64)  # None becomes NaN
    sound &= ~(areas < 0)
    makers = list(map(attrgetter("provenance"), annotations))
    if makers.count(None) < len(makers):
        sound &= np.array([maker is None or made_by_model(maker) for maker in makers])
    with np.errstate(invalid="ignore", over="ignore"):
        sound &= (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & np.isfinite(boxes).all(axis=1)
        sound &= grown_iou(boxes, bounds) >= FAR_IOU
    sound &= ~reach_outside(boxes, sizes) & ~reach_outside(bounds, sizes)
    # Column by column: reducing rows of four numbers takes 10 times as long.
    x0, y0, x1, y1 = bounds.T
    sound &= (x1 <= MAX_COORDINATE) & (y1 <= MAX_COORDINATE)  # what is below -1 reaches outside
    sound &= ~may_be_long(corners, np.maximum(x1 - x0, y1 - y0), np.maximum(*sizes.T))
    return np.flatnonzero(~sound)


def _polygon_bounds(segmentations: list) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the bounds of the polygons of each, XYXY (N, 4), the number of their corners, int64 (N,), and where all
    polygons are regular, bool (N,).

    The bounds are NaN and the numbers 0 where they are not, and where there are no polygons.
    """
    bounds = np.full((len(segmentations), 4), np.nan)
    corners = np.zeros(len(segmentations), dtype=np.int64)
    regular = np.array([type(one) is list and len(one) > 0 for one in segmentations], dtype=bool)
    rows = np.flatnonzero(regular)
    chosen = [segmentations[row] for row in rows.tolist()]
    counts = np.fromiter(map(len, chosen), dtype=np.int64, count=len(chosen))
    polygons = list(chain.from_iterable(chosen))
    lengths = np.fromiter(map(len, polygons), dtype=np.int64, count=len(polygons))
    bad = (lengths < MIN_POLYGON) | (lengths % 2 == 1)
    if bad.any():
        owners = np.repeat(rows, counts)
        regular[owners[bad]] = False
        return _polygon_bounds([one if good else None for one, good in zip(segmentations, regular, strict=True)])
    if len(polygons):
        total = int(lengths.sum())
        points = np.fromiter(chain.from_iterable(polygons), dtype=np.float64, count=total).reshape(-1, 2)
        last = np.cumsum(lengths)[np.cumsum(counts) - 1] // 2  # the point after the last of each annotation
        begins = np.concatenate(([0], last[:-1]))
        corners[rows] = last - begins
        bounds[rows, :2] = np.minimum.reduceat(points, begins)
        bounds[rows, 2:] = np.maximum.reduceat(points, begins)
    return bounds, corners, regular
