"""Check boxes, polygons, run lengths and areas, in columns, because a file may hold a million annotations.

An error is what cannot be interpreted; a warning is what can still be used, and its fix says how it is used.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from msgspec import UNSET

from sam_d2.data.finding_kinds import Severity
from sam_d2.data.findings import Finding, RecordId, shortened
from sam_d2.data.records import XYWH_ABS, Annotation, Image, Rle, made_by_model
from sam_d2.data.rle import compressed_totals

MIN_POLYGON = 6  # numbers: three points
MAX_COORDINATE = 1e6  # px; pycocotools walks along each side of a polygon, and reads foreign memory beyond 4e8
MAX_OUTLINE = 1e7  # px of one annotation, which pycocotools needs up to half a GiB and a second to draw
ENOUGH_OUTLINE = 1e6  # px of one annotation, in an image of any size: 40 MiB and 50 ms
OUTLINE_PER_PIXEL = 4.0  # of the image: an outline that comes by each of its pixels has 1
STRAY_OUTLINE = 1e5  # px more than an annotation's points could have in their image: one lies far outside
MAX_STRAY = 1e7  # px of all these in a file: half a second for each time that they are drawn
OUTSIDE_TOLERANCE = 1.0  # px; labelling tools round, and an edge may lie on the border
FAR_IOU = 0.5  # a box and the bounds of its polygons that overlap less are taken to be a mistake
FIT_IOU = 0.9  # of a box that was made from its mask, and the bounds of that
_ABSENT_FIX = (
    "the annotation is left out; tools/masks_from_boxes.py --keep-existing makes masks of boxes, not of crowd regions"
)


class Repair(NamedTuple):
    """How an annotation is used where a check has found something.

    Attributes:
        box: XYXY, px, original frame, in place of its own, which has no area; None to keep that.
        short_polygons: whether it has polygons of under 3 points, which are left out.
        has_mask: whether it has a mask that can be used.
    """

    box: list[float] | None = None
    short_polygons: bool = False
    has_mask: bool = True


SOUND = Repair()


@dataclass
class AnnotationTable:
    """The annotations of a file as rows, with what the checks need beside each and what they conclude.

    Attributes:
        file: the dataset file.
        annotations: the records (N).
        owners: the image record of each row (N); None where there is no such image.
        image_ids: what messages call the image (N).
        labels: what messages call the annotation (N).
        modes: the box mode of each row, int (N,).
        require_masks: whether an annotation without a mask is of no use.
        without_mask: rows that have no mask, or none that can be used; where masks are required, they are left out.
        new_boxes: XYXY, px, original frame, for the rows whose own box has no area.
        findings: what was found so far.
        finding_rows: the row of each finding, because ids may be used twice.
        error_rows: rows that have an error among them.
        short_rows: rows with polygons that are left out.
        kind_rows: by kind of finding, the rows that have it.
    """

    file: Path
    annotations: Sequence[Annotation]
    owners: Sequence[Image | None]
    image_ids: Sequence[RecordId]
    labels: Sequence[RecordId]
    modes: np.ndarray
    require_masks: bool = True
    without_mask: set[int] = field(default_factory=set)
    new_boxes: dict[int, list[float]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    finding_rows: list[int] = field(default_factory=list)
    error_rows: set[int] = field(default_factory=set)
    short_rows: set[int] = field(default_factory=set)
    kind_rows: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))

    def report(self, row: int, severity: Severity, key: str, found: str, fix: str, kind: str) -> None:
        """Add a finding on a row."""
        if severity == "error":
            self.error_rows.add(row)
        self.kind_rows[kind].add(row)
        self.finding_rows.append(row)
        ids = self.image_ids[row], self.labels[row]
        self.findings.append(Finding(severity, self.file, *ids, key, found, fix, kind=kind))

    def repair(self, row: int) -> Repair:
        """Return what the checks conclude on a row."""
        return Repair(self.new_boxes.get(row), row in self.short_rows, row not in self.without_mask)


def check_geometry(table: AnnotationTable) -> None:
    """Check boxes, masks, areas and who made them, and fill the table's findings, `without_mask` and `new_boxes`."""
    boxes = _check_boxes(table)
    bounds = _check_polygons(table)
    _check_rles(table)
    _check_areas(table)
    _check_provenance(table)
    _compare_boxes(table, boxes, bounds)


def _check_boxes(table: AnnotationTable) -> np.ndarray:
    """Return the boxes as XYXY, float64 (N, 4), NaN where there is none that can be used."""
    boxes = np.full((len(table.annotations), 4), np.nan)
    rows = [row for row, annotation in enumerate(table.annotations) if annotation.bbox is not UNSET]
    if not rows:
        return boxes
    boxes[rows] = np.array([table.annotations[row].bbox for row in rows], dtype=np.float64)
    given = np.isin(np.arange(len(boxes)), rows)
    for row in np.flatnonzero(given & ~np.isfinite(boxes).all(axis=1)).tolist():
        table.report(
            row, "error", "bbox", f"{boxes[row].tolist()} has NaN or infinity", "write finite numbers", "box-nan"
        )
        boxes[row] = np.nan
    boxes[table.modes == XYWH_ABS, 2:] += boxes[table.modes == XYWH_ABS, :2]
    for row in np.flatnonzero(_outside(table, boxes)).tolist():
        found = f"[x1, y1, x2, y2] = {boxes[row].tolist()} in an image of {_size(table.owners[row])}"
        table.report(row, "warning", "bbox", found, *_outside_fix(table, row, boxes, "box"))
    return boxes


def _check_polygons(table: AnnotationTable) -> np.ndarray:
    """Return the bounds of each row's polygons as XYXY, float64 (N, 4), NaN where it has none."""
    rows: list[int] = []
    polygons: list[list[float]] = []
    for row, annotation in enumerate(table.annotations):
        segmentation = annotation.segmentation
        if not segmentation:  # None and []; UNSET is reported already, and is false as well
            if segmentation is not UNSET:
                table.without_mask.add(row)
                if table.require_masks:
                    table.report(row, "warning", "segmentation", "empty", _ABSENT_FIX, "mask-absent")
        elif isinstance(segmentation, list):
            before = len(polygons)
            for index, polygon in enumerate(segmentation):
                if len(polygon) % 2:
                    found = f"polygon {index} has {len(polygon)} numbers"
                    fix = "write an even count: x1, y1, x2, y2, ..."
                    table.report(row, "error", "segmentation", found, fix, "polygon-odd")
                elif len(polygon) < MIN_POLYGON:
                    table.short_rows.add(row)
                    found = f"polygon {index} has {len(polygon) // 2} points"
                    fix = "polygons of under 3 points are left out"
                    table.report(row, "warning", "segmentation", found, fix, "polygon-short")
                else:
                    rows.append(row)
                    polygons.append(polygon)
            if len(polygons) == before:
                table.without_mask.add(row)
    return _polygon_bounds(table, np.array(rows, dtype=np.int64), polygons)


def _polygon_bounds(table: AnnotationTable, rows: np.ndarray, polygons: list[list[float]]) -> np.ndarray:
    bounds = np.full((len(table.annotations), 4), np.nan)
    if not polygons:
        return bounds
    lengths = np.fromiter(map(len, polygons), dtype=np.int64, count=len(polygons))
    points = np.fromiter(chain.from_iterable(polygons), dtype=np.float64, count=lengths.sum()).reshape(-1, 2)
    owner = np.repeat(rows, lengths // 2)
    begins = np.flatnonzero(np.concatenate(([True], owner[1:] != owner[:-1])))
    bounds[owner[begins], :2] = np.minimum.reduceat(points, begins)
    bounds[owner[begins], 2:] = np.maximum.reduceat(points, begins)
    for row in np.unique(owner[~np.isfinite(points).all(axis=1)]).tolist():
        found = "a polygon has NaN or infinity"
        table.report(row, "error", "segmentation", found, "write finite coordinates", "polygon-nan")
        bounds[row] = np.nan
    for row in np.flatnonzero((np.abs(bounds) > MAX_COORDINATE).any(axis=1)).tolist():
        found = f"polygons reach over {bounds[row].round(2).tolist()} in an image of {_size(table.owners[row])}"
        fix = f"write pixels, none beyond {MAX_COORDINATE:,.0f}"
        table.report(row, "error", "segmentation", found, fix, "polygon-far")
        bounds[row] = np.nan
    for row, length, fix in _long_outlines(table, bounds, rows, points, lengths // 2):
        found = f"its outlines are {length:,.0f} px long, in an image of {_size(table.owners[row])}"
        table.report(row, "error", "segmentation", found, fix, "polygon-long")
        bounds[row] = np.nan
    for row in np.flatnonzero(_outside(table, bounds)).tolist():
        found = f"polygons reach over {bounds[row].round(2).tolist()} in an image of {_size(table.owners[row])}"
        table.report(row, "warning", "segmentation", found, *_outside_fix(table, row, bounds, "polygon"))
    return bounds


def _long_outlines(
    table: AnnotationTable, bounds: np.ndarray, rows: np.ndarray, points: np.ndarray, counts: np.ndarray
) -> list[tuple[int, float, str]]:
    """Return row, length in px, and fix of annotations whose outlines take too long to draw.

    One is too long for its image on its own. One that a point far outside makes long is so only where the file has
    many: each takes some milliseconds, and a line of JSON is enough to write it.

    Args:
        table: of the rows.
        bounds: XYXY of each row's polygons, (N, 4); NaN where they are not to be looked at.
        rows: of each polygon, (P,), ascending.
        points: of all polygons.
        counts: of each polygon's points, (P,).
    """
    found: list[tuple[int, float, str]] = []
    stray: dict[int, tuple[float, float]] = {}
    extents = (bounds[:, 2:] - bounds[:, :2]).max(axis=1)
    corners = np.bincount(rows, weights=counts, minlength=len(bounds))
    ends = np.cumsum(counts)
    candidates = np.flatnonzero(corners * extents > STRAY_OUTLINE)
    sides = np.array([_longest_side(table.owners[row]) for row in candidates.tolist()])
    possible = may_be_long(corners[candidates], extents[candidates], sides)
    for row, side in zip(candidates[possible].tolist(), sides[possible].tolist(), strict=True):
        first, last = np.searchsorted(rows, [row, row + 1])
        length = outline_length(points[ends[first] - counts[first] : ends[last - 1]], counts[first:last])
        most = longest_outline(table.owners[row])
        if length > most:
            found.append((row, length, f"write at most {most:,.0f} px: drawing takes time and memory for each"))
        elif length - corners[row] * side > STRAY_OUTLINE:
            stray[row] = length, length - corners[row] * side
    total = sum(beyond for _, beyond in stray.values())
    if total > MAX_STRAY:
        fix = f"write pixels of the image: {len(stray)} annotations go {total:,.0f} px too far, and drawing takes time"
        found += [(row, length, fix) for row, (length, _) in stray.items()]
    return found


def may_be_long(corners: np.ndarray, extents: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Return whose outlines can be too long for their image, or a point of theirs far outside, bool (N,).

    Args:
        corners: how many the polygons of each have together (N,).
        extents: the longer side of their bounds, px (N,); False where it is NaN.
        sides: the longer side of the image, px (N,); infinite where unknown.
    """
    return corners * np.maximum(extents - sides, extents * (STRAY_OUTLINE / ENOUGH_OUTLINE)) > STRAY_OUTLINE


def outline_length(points: np.ndarray, counts: np.ndarray) -> float:
    """Return the length of polygons as pycocotools walks it, px: of each side the longer of width and height.

    Args:
        points: of all polygons, float64 (n, 2).
        counts: of each polygon's points, int64 (P,).
    """
    ends = np.cumsum(counts)
    after = np.roll(points, -1, axis=0)
    after[ends - 1] = points[ends - counts]
    return float(np.abs(after - points).max(axis=1).sum())


def longest_outline(image: Image | None) -> float:
    """Return how long the outlines of one annotation may be together, px."""
    return min(MAX_OUTLINE, max(ENOUGH_OUTLINE, OUTLINE_PER_PIXEL * _area(image)))


def _check_rles(table: AnnotationTable) -> None:
    rows = [row for row, item in enumerate(table.annotations) if isinstance(item.segmentation, Rle)]
    rles = [table.annotations[row].segmentation for row in rows]
    compressed = [i for i, rle in enumerate(rles) if isinstance(rle, Rle) and isinstance(rle.counts, str)]
    totals = [sum(rle.counts) if isinstance(rle, Rle) and isinstance(rle.counts, list) else 0 for rle in rles]
    strings = [str(rles[i].counts) for i in compressed]  # type: ignore[union-attr]  # all are Rle
    for i, total in zip(compressed, compressed_totals(strings).tolist(), strict=True):
        totals[i] = total
    for row, rle, total in zip(rows, rles, totals, strict=True):
        assert isinstance(rle, Rle)
        height, width = rle.size
        image = table.owners[row]
        if total < 0:
            found = f"counts {str(rle.counts)[:40]!r} is not a compressed run-length string"
            table.report(row, "error", "segmentation.counts", found, "encode the mask again", "rle-counts")
        elif total != height * width:
            found = f"the runs sum to {total}, size {rle.size} needs {height * width}"
            table.report(row, "error", "segmentation.counts", found, "encode the mask again", "rle-counts")
        if image is not None and UNSET not in (image.height, image.width):
            expected = [image.height, image.width]
            if rle.size != expected:
                found = f"{rle.size}, but the image is {expected}"
                fix = "write the image's [height, width]"
                table.report(row, "error", "segmentation.size", found, fix, "rle-size")


def _check_areas(table: AnnotationTable) -> None:
    for row, annotation in enumerate(table.annotations):
        area = annotation.area
        if area is None or area is UNSET or 0 <= area < np.inf:
            continue
        if np.isfinite(area):
            table.report(row, "warning", "area", f"{area} is negative", "the mask's area is used", "area-negative")
        else:
            table.report(row, "error", "area", f"{area}", "write a finite number, or leave the key out", "area-nan")


def _check_provenance(table: AnnotationTable) -> None:
    for row, annotation in enumerate(table.annotations):
        provenance = annotation.provenance
        if provenance not in (None, UNSET) and not made_by_model(provenance):
            fix = "it is ignored; of what a model made, write an object with that 'model'"
            table.report(row, "warning", "provenance", shortened(provenance), fix, "foreign-value")


def _compare_boxes(table: AnnotationTable, boxes: np.ndarray, bounds: np.ndarray) -> None:
    """Replace boxes without area by the bounds of the mask; find boxes far from their polygons."""
    with np.errstate(invalid="ignore", over="ignore"):
        flat = (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)
        far = grown_iou(boxes, bounds) < FAR_IOU
    for row in np.flatnonzero(flat).tolist():
        if row in table.error_rows or table.annotations[row].segmentation is UNSET:
            continue
        if table.require_masks and row in table.without_mask:
            continue
        found = f"[x1, y1, x2, y2] = {boxes[row].tolist()} has no area"
        mask_box = _mask_bounds(table.annotations[row], bounds[row])
        if mask_box is None:
            found += ", nor has the mask"
            table.report(row, "warning", "bbox", found, "nothing can be learned from it", "box-and-mask-empty")
        else:
            table.new_boxes[row] = mask_box
            table.report(row, "warning", "bbox", found, "the bounds of the mask are used", "box-empty")
    empty = (bounds[:, 2:] <= bounds[:, :2]).any(axis=1)
    for row in np.flatnonzero(far & ~flat & empty).tolist():
        found = f"the polygons' bounds {bounds[row].round(2).tolist()} have no area"
        table.report(row, "warning", "segmentation", found, "the box is used as it is", "mask-empty")
    with np.errstate(invalid="ignore", over="ignore"):
        as_xyxy = np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)  # what was taken for XYWH
        meant = (as_xyxy[:, 2:] > as_xyxy[:, :2]).all(axis=1) & (grown_iou(as_xyxy, bounds) >= FIT_IOU)
        meant &= table.modes == XYWH_ABS
    for row in np.flatnonzero(far & ~flat & ~empty).tolist():
        mask = bounds[row].round(2).tolist()
        found = f"[x1, y1, x2, y2] = {boxes[row].tolist()}, but the polygons' bounds are {mask}"
        fix = "the box is used as it is"
        if meant[row]:
            fix += "; as XYXY it fits: --fix of tools/check_dataset.py writes XYWH"
        table.report(row, "warning", "bbox", found, fix, "box-far")


def grown_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the IoU (N,) of XYXY boxes (N, 4), each grown by 1 px, so that rounding does not count."""
    low, other_low = boxes[:, :2] - 1, others[:, :2] - 1
    high, other_high = boxes[:, 2:] + 1, others[:, 2:] + 1
    sides, other_sides = high - low, other_high - other_low
    shared = np.clip(np.minimum(high, other_high) - np.maximum(low, other_low), 0, None)
    overlap = shared[:, 0] * shared[:, 1]
    return overlap / (sides[:, 0] * sides[:, 1] + other_sides[:, 0] * other_sides[:, 1] - overlap)


def _mask_bounds(annotation: Annotation, bounds: np.ndarray) -> list[float] | None:
    """Return the mask's bounds as XYXY, None where they have no area. Run lengths must be checked before."""
    if isinstance(annotation.segmentation, Rle):
        from pycocotools import mask as mask_util

        x, y, width, height = mask_util.toBbox(compressed_rle(annotation.segmentation)).tolist()
        box = [x, y, x + width, y + height]
    else:
        box = bounds.tolist()
    return box if box[2] > box[0] and box[3] > box[1] else None


def compressed_rle(rle: Rle) -> dict[str, Any]:
    """Return pycocotools' form of a checked RLE; run lengths are compressed, to bytes, as Detectron2 does."""
    if isinstance(rle.counts, str):
        return {"size": rle.size, "counts": rle.counts}
    from pycocotools import mask as mask_util

    return mask_util.frPyObjects({"size": rle.size, "counts": rle.counts}, *rle.size)


def _outside(table: AnnotationTable, boxes: np.ndarray) -> np.ndarray:
    known = [image is not None and UNSET not in (image.height, image.width) for image in table.owners]
    sizes = [
        (image.width, image.height) if image is not None and sized else (0, 0)
        for image, sized in zip(table.owners, known, strict=True)
    ]
    return reach_outside(boxes, np.array(sizes)) & np.array(known, dtype=bool)


def _outside_fix(table: AnnotationTable, row: int, boxes: np.ndarray, what: str) -> tuple[str, str]:
    """Return the fix and the kind of what reaches outside of its image, whose size is known."""
    image = table.owners[row]
    assert image is not None
    low, high = np.clip(boxes[row].reshape(2, 2), 0, (image.width, image.height))
    if (low == high).any():
        return "nothing of it lies in the image", f"{what}-all-outside"
    return "what lies outside the image is clipped", f"{what}-outside"


def reach_outside(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return which boxes (N, 4) reach over the border of their image of (width, height) (N, 2), bool (N,).

    False where a box is NaN.
    """
    # Of two arrays and not along an axis of two, which takes five times as long; so in grown_iou.
    with np.errstate(invalid="ignore"):
        low = np.minimum(boxes[:, :2], boxes[:, 2:]) < -OUTSIDE_TOLERANCE
        high = np.maximum(boxes[:, :2], boxes[:, 2:]) > sizes.reshape(-1, 2) + OUTSIDE_TOLERANCE
    outside = low | high
    return outside[:, 0] | outside[:, 1]


def _size(image: Image | None) -> str:
    if image is None or UNSET in (image.height, image.width):
        return "unknown size"  # reported on its own
    return f"{image.width} x {image.height} px"


def _area(image: Image | None) -> float:
    return np.inf if image is None or UNSET in (image.height, image.width) else float(image.height) * image.width


def _longest_side(image: Image | None) -> float:
    return np.inf if image is None or UNSET in (image.height, image.width) else float(max(image.height, image.width))
