"""The boxes and masks of a file as arrays, because a file may hold a million of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from msgspec import UNSET
from pycocotools import mask as mask_util

from sam_d2.data.geometry import MAX_COORDINATE, MIN_POLYGON, AnnotationTable, compressed_rle
from sam_d2.data.records import XYWH_ABS, Rle

_BAD_MASK = ("polygon-odd", "polygon-nan", "polygon-far", "polygon-long", "rle-size", "rle-counts")


@dataclass
class Columns:
    """What the checks of masks and boxes compute with; px, original frame; N annotations.

    Attributes:
        numbers: the four numbers of each box as they stand in the file, float64 (N, 4); NaN where they are no numbers.
        as_xywh: whether they say x, y, width, height, bool (N,).
        boxes: what they say, as XYXY, float64 (N, 4).
        sizes: width and height of the image of each, float64 (N, 2); infinite where unknown.
        areas: the file's, float64 (N,); NaN where it has none.
        points: the corners of all polygons that can be used, float64 (P, 2).
        firsts: place in ``points`` of each polygon's first corner, and P, int64 (M + 1,).
        owners: row of each polygon, int64 (M,), ascending.
        bounds: of each row's polygons, or of its RLE, as XYXY, float64 (N, 4); NaN where there is no mask that can be
            used.
        mask_areas: of polygons the enclosed area, of an RLE its pixels, float64 (N,); NaN likewise.
        perimeters: of the polygons, float64 (N,); 0 of an RLE.
    """

    numbers: np.ndarray
    as_xywh: np.ndarray
    boxes: np.ndarray
    sizes: np.ndarray
    areas: np.ndarray
    points: np.ndarray
    firsts: np.ndarray
    owners: np.ndarray
    bounds: np.ndarray
    mask_areas: np.ndarray
    perimeters: np.ndarray

    def has_mask(self) -> np.ndarray:
        """Return which rows have a mask that can be used, bool (N,)."""
        return ~np.isnan(self.mask_areas)


def read_boxes(numbers: np.ndarray, as_xywh: np.ndarray) -> np.ndarray:
    """Return boxes as XYXY (N, 4) from their four numbers (N, 4)."""
    boxes = numbers.copy()
    boxes[as_xywh, 2:] += boxes[as_xywh, :2]
    return boxes


def make_columns(table: AnnotationTable) -> Columns:
    """Return the columns of a checked table."""
    count = len(table.annotations)
    numbers = np.full((count, 4), np.nan)
    given = [row for row, item in enumerate(table.annotations) if item.bbox is not UNSET]
    if given:
        numbers[given] = np.array([table.annotations[row].bbox for row in given], dtype=np.float64)
    numbers[~np.isfinite(numbers).all(axis=1)] = np.nan
    unknown = (np.inf, np.inf)
    sizes = [
        unknown if image is None or UNSET in (image.height, image.width) else (image.width, image.height)
        for image in table.owners
    ]
    areas = [np.nan if item.area in (None, UNSET) else item.area for item in table.annotations]
    points, firsts, owners = _polygons(table)
    as_xywh = table.modes == XYWH_ABS
    columns = Columns(
        numbers=numbers,
        as_xywh=as_xywh,
        boxes=read_boxes(numbers, as_xywh),
        sizes=np.array(sizes, dtype=np.float64).reshape(-1, 2),
        areas=np.array(areas, dtype=np.float64),
        points=points,
        firsts=firsts,
        owners=owners,
        bounds=np.full((count, 4), np.nan),
        mask_areas=np.full(count, np.nan),
        perimeters=np.zeros(count),
    )
    _measure_polygons(columns)
    _measure_rles(columns, table)
    return columns


def _bad_rows(table: AnnotationTable) -> set[int]:
    return set().union(*(table.kind_rows[kind] for kind in _BAD_MASK))


def _polygons(table: AnnotationTable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    bad = _bad_rows(table)
    pairs = [
        (row, polygon)
        for row, item in enumerate(table.annotations)
        if isinstance(item.segmentation, list) and row not in bad
        for polygon in item.segmentation
        if len(polygon) >= MIN_POLYGON
    ]
    lengths = np.fromiter((len(polygon) for _, polygon in pairs), dtype=np.int64, count=len(pairs))
    flat = chain.from_iterable(polygon for _, polygon in pairs)
    points = np.fromiter(flat, dtype=np.float64, count=int(lengths.sum())).reshape(-1, 2)
    assert not len(points) or np.abs(points).max() <= MAX_COORDINATE  # the others are errors
    owners = np.fromiter((row for row, _ in pairs), dtype=np.int64, count=len(pairs))
    return points, np.concatenate(([0], np.cumsum(lengths // 2))), owners


def following(columns: Columns) -> np.ndarray:
    """Return the corner that follows each in its polygon, (P, 2)."""
    after = np.roll(columns.points, -1, axis=0)
    after[columns.firsts[1:] - 1] = columns.points[columns.firsts[:-1]]
    return after


def _measure_polygons(columns: Columns) -> None:
    if not len(columns.owners):
        return
    points, after = columns.points, following(columns)
    begins = columns.firsts[:-1]
    cross = points[:, 0] * after[:, 1] - points[:, 1] * after[:, 0]
    enclosed = np.abs(np.add.reduceat(cross, begins)) / 2
    lengths = np.add.reduceat(np.hypot(*(after - points).T), begins)
    new = np.concatenate(([True], columns.owners[1:] != columns.owners[:-1]))  # a row's first polygon
    rows, places = columns.owners[new], np.flatnonzero(new)
    columns.mask_areas[rows] = np.add.reduceat(enclosed, places)
    columns.perimeters[rows] = np.add.reduceat(lengths, places)
    columns.bounds[rows, :2] = np.minimum.reduceat(np.minimum.reduceat(points, begins), places)
    columns.bounds[rows, 2:] = np.maximum.reduceat(np.maximum.reduceat(points, begins), places)


def _measure_rles(columns: Columns, table: AnnotationTable) -> None:
    bad = _bad_rows(table)
    rows = [row for row, item in enumerate(table.annotations) if isinstance(item.segmentation, Rle) and row not in bad]
    if rows:
        rles = [compressed_rle(rle) for row in rows if isinstance(rle := table.annotations[row].segmentation, Rle)]
        columns.mask_areas[rows] = [mask_util.area(rle) for rle in rles]  # a list of more than 255 overflows in it
        columns.bounds[rows] = read_boxes(mask_util.toBbox(rles), np.ones(len(rows), dtype=bool))


def drawn(segmentation: Any, width: float, height: float) -> tuple[float, list[float]]:
    """Return a mask's pixels, as pycocotools draws it, and their bounds as XYXY.

    Args:
        segmentation: checked polygons, or a checked RLE.
        width: of its image, px.
        height: likewise.
    """
    if isinstance(segmentation, Rle):
        rle = compressed_rle(segmentation)
    else:
        polygons = [polygon for polygon in segmentation if len(polygon) >= MIN_POLYGON]
        rle = mask_util.merge(mask_util.frPyObjects(polygons, int(height), int(width)))
    x, y, across, down = mask_util.toBbox(rle).tolist()
    return float(mask_util.area(rle)), [x, y, x + across, y + down]
