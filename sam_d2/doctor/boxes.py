"""Check boxes against masks: numbers that mean another form of box, and boxes far from run lengths."""

from __future__ import annotations

from typing import Any

import numpy as np

from sam_d2.data.geometry import FAR_IOU, FIT_IOU, grown_iou, reach_outside
from sam_d2.data.records import Rle
from sam_d2.doctor.columns import Columns, read_boxes
from sam_d2.doctor.parts import Part

_MOST_OUTSIDE = 0.5
_ENOUGH = 10  # boxes without masks on which a suspicion can rest
_ENOUGH_TINY = 2  # annotations of less than a pixel; a lone one may be a mistake
_OF_TINY = {"mask-empty", "box-and-mask-empty", "area-of-box", "area-differs"}
_EXPLAINED = {"box-far", "box-empty", "box-and-mask-empty", "box-outside", "box-all-outside"}


def check_boxes(part: Part, columns: Columns) -> None:
    """Add findings on boxes whose four numbers are of the other form, and on those far from a run-length mask."""
    others = read_boxes(columns.numbers, ~columns.as_xywh)
    with np.errstate(invalid="ignore"):
        sound = (others[:, 2:] > others[:, :2]).all(axis=1)
        compared = columns.has_mask() & (columns.bounds[:, 2:] > columns.bounds[:, :2]).all(axis=1)
        compared &= np.isfinite(columns.boxes).all(axis=1)
        as_said = grown_iou(columns.boxes, columns.bounds)
        as_other = grown_iou(others, columns.bounds)
        fits = compared & sound & (as_other >= FIT_IOU)
        proven = fits & (as_said < FAR_IOU)
    if proven.any() and fits[compared].all():  # every mask says so: then those that show it less are meant so too
        proven = (fits | (~compared & sound)) & (others != columns.boxes).any(axis=1)
    _report_form(part, columns, proven)
    _report_far(part, columns, np.flatnonzero(compared & (as_said < FAR_IOU) & ~proven))
    if not compared.any():
        _suspect_form(part, columns, others, sound)


def check_scale(part: Part, columns: Columns) -> None:
    """Add one finding where all boxes and masks lie in the first pixel, in place of those on each."""
    given = np.concatenate((columns.boxes, columns.bounds))
    given = given[np.isfinite(given).all(axis=1)]
    sizes = columns.sizes[np.isfinite(columns.sizes).all(axis=1)]
    if len(part.table.annotations) < _ENOUGH_TINY or not len(given) or not len(sizes) or sizes.min() <= 1:
        return
    if (given < 0).any() or (given > 1).any():
        return
    rows = set(range(len(part.table.annotations)))
    part.replace_findings(_OF_TINY, rows)
    found = f"all boxes and masks of {len(rows)} annotations lie between 0 and 1 px"
    fix = "are they fractions of the image? multiply x and widths by its width, y and heights by its height"
    part.report_file("warning", "bbox, segmentation", found, fix, "coordinates-normalised")


def _report_form(part: Part, columns: Columns, proven: np.ndarray) -> None:
    rows = np.flatnonzero(proven).tolist()
    part.replace_findings(_EXPLAINED, set(rows))
    for row in rows:
        said, meant = ("XYWH", "XYXY") if columns.as_xywh[row] else ("XYXY", "XYWH")
        found = f"{columns.numbers[row].tolist()} stands for {said}, but fits the mask as {meant}"
        part.report_row(row, "warning", "bbox", found, f"write {said}", "box-form")


def _report_far(part: Part, columns: Columns, rows: np.ndarray) -> None:
    for row in rows.tolist():
        if isinstance(part.table.annotations[row].segmentation, Rle):  # polygons were compared when they were read
            found = (
                f"[x1, y1, x2, y2] = {columns.boxes[row].tolist()}, but the mask's bounds are "
                f"{columns.bounds[row].round(2).tolist()}"
            )
            part.report_row(row, "warning", "bbox", found, "the box is used as it is", "box-far")


def _suspect_form(part: Part, columns: Columns, others: np.ndarray, sound: Any) -> None:
    """Look at boxes without masks: as XYWH most reach outside of their images, as XYXY none does."""
    given = np.isfinite(columns.boxes).all(axis=1) & columns.as_xywh
    if given.sum() < _ENOUGH or not sound[given].all() or reach_outside(others[given], columns.sizes[given]).any():
        return
    outside = reach_outside(columns.boxes[given], columns.sizes[given])
    if outside.mean() > _MOST_OUTSIDE:
        found = f"{int(outside.sum())} of {int(given.sum())} boxes reach outside of their images, as XYXY none does"
        part.report_file("warning", "bbox", found, "was XYXY written as XYWH? no mask can prove it", "box-form-likely")
