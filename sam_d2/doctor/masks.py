"""Check masks beyond what reading needs: outlines that cross themselves, masks without a pixel, areas."""

from __future__ import annotations

import numpy as np

from sam_d2.doctor.columns import Columns, drawn, following
from sam_d2.doctor.parts import Part

_CHUNK = 1 << 20  # sides of polygons that are looked at together
_THIN = 1.0  # px; a mask that is wider on average has a pixel
_AREA_TOLERANCE = 0.05  # of the mask's area
_BORDER = 0.5  # px; half a pixel along the outline is a matter of drawing
_BOX_LIKE = 0.01  # of the box's area


def check_masks(part: Part, columns: Columns) -> None:
    """Add findings on the masks that can be used, and on `area`."""
    _check_crossings(part, columns)
    _check_emptiness(part, columns)
    _check_areas(part, columns)


def _check_crossings(part: Part, columns: Columns) -> None:
    for polygon, (x, y) in crossing_polygons(columns).items():
        fix = "it is filled by the even-odd rule, with a hole where it runs around twice; draw it again"
        found = f"an outline crosses itself near x {x:g}, y {y:g}"
        part.report_row(int(columns.owners[polygon]), "warning", "segmentation", found, fix, "polygon-crossing")


def crossing_polygons(columns: Columns) -> dict[int, tuple[float, float]]:
    """Return the polygons of which two sides cross, ascending, each with an end of such a side, x and y.

    Sides that touch, as where an outline comes back to a corner, do not cross. The sides of all polygons are sorted by
    their left ends; a side is compared with those after it that begin before it ends, all sides with their first
    neighbour, then with their second, and so on, until their polygon has crossed.
    """
    count = len(columns.owners)
    found: dict[int, tuple[float, float]] = {}
    if not count:
        return found
    after = following(columns)
    lengths = np.diff(columns.firsts)
    begin = 0
    while begin < count:  # whole polygons, about as many sides at a time
        end = max(begin + 1, int(np.searchsorted(columns.firsts, columns.firsts[begin] + _CHUNK, side="right")) - 1)
        sides = slice(columns.firsts[begin], columns.firsts[end])
        polygon = np.repeat(np.arange(begin, end), lengths[begin:end])
        crossing = _crossing_sides(columns.points[sides], after[sides], polygon)
        for side in crossing.tolist():
            x, y = columns.points[sides][side].tolist()
            found.setdefault(int(polygon[side]), (x, y))
        begin = end
    return found


def _crossing_sides(starts: np.ndarray, ends: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """Return the sides, from (n, 2) to (n, 2), that cross a later one of their polygon (n,), ascending.

    Of each polygon that crosses itself those that cross their nearest neighbours: one is enough to tell.
    """
    left, right = np.minimum(starts, ends), np.maximum(starts, ends)
    order = np.lexsort((left[:, 0], polygon))
    starts, ends, left, right, polygon = (array[order] for array in (starts, ends, left, right, polygon))
    crossed: list[np.ndarray] = []
    done = np.zeros(polygon[-1] - polygon[0] + 1, dtype=bool)
    active = np.arange(len(starts) - 1)
    step = 1
    while len(active):
        other = active + step
        active, other = active[other < len(starts)], other[other < len(starts)]
        near = (polygon[other] == polygon[active]) & (left[other, 0] <= right[active, 0])
        active, other = active[near], other[near]
        overlap = (left[other, 1] <= right[active, 1]) & (left[active, 1] <= right[other, 1])
        one, two = active[overlap], other[overlap]
        first, second = (starts[one], ends[one]), (starts[two], ends[two])
        crossing = one[_apart(first, second) & _apart(second, first)]
        crossed.append(order[crossing])
        if len(crossing):  # a zigzag's sides, all as wide as it, would be compared each with each
            done[polygon[crossing] - polygon[0]] = True
            active = active[~done[polygon[active] - polygon[0]]]
        step += 1
    return np.unique(np.concatenate(crossed)) if crossed else np.empty(0, dtype=np.int64)


def _apart(line: tuple[np.ndarray, np.ndarray], side: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return where the ends of a side lie on different sides of a line, bool (n,); on the line is on neither."""
    direction = line[1] - line[0]
    turns = [direction[:, 0] * (end - line[0])[:, 1] - direction[:, 1] * (end - line[0])[:, 0] for end in side]
    return turns[0] * turns[1] < 0


def _check_emptiness(part: Part, columns: Columns) -> None:
    with np.errstate(invalid="ignore"):
        thin = columns.mask_areas <= _THIN * np.maximum(columns.perimeters / 2, 0)
        thin |= (columns.bounds[:, 2:] <= 0).any(axis=1) | (columns.bounds[:, :2] >= columns.sizes).any(axis=1)
    known_size = np.isfinite(columns.sizes).all(axis=1)
    told = part.table.kind_rows["mask-empty"] | part.table.kind_rows["polygon-all-outside"]
    for row in np.flatnonzero(thin & known_size).tolist():
        pixels, _ = drawn(part.table.annotations[row].segmentation, *columns.sizes[row])
        if pixels == 0 and row not in told:
            fix = "nothing can be scored on it, and it is left out of AP; draw it again, or remove it"
            part.report_row(row, "warning", "segmentation", "the mask holds no pixel", fix, "mask-empty")


def _check_areas(part: Part, columns: Columns) -> None:
    spans = columns.boxes[:, 2:] - columns.boxes[:, :2]
    box_areas = spans.prod(axis=1)
    with np.errstate(invalid="ignore"):
        usable = (columns.areas >= 0) & np.isfinite(columns.areas) & np.isfinite(columns.sizes).all(axis=1)
        far = usable & (np.abs(columns.areas - columns.mask_areas) > _tolerance(columns.mask_areas, columns.perimeters))
    for row in np.flatnonzero(far).tolist():
        area = columns.areas[row]
        pixels, _ = drawn(part.table.annotations[row].segmentation, *columns.sizes[row])
        if abs(area - pixels) <= _tolerance(pixels, columns.perimeters[row]):
            continue
        found = f"{area:g}, but the mask has {pixels:g} pixels"
        if abs(area - box_areas[row]) <= _BOX_LIKE * box_areas[row] + _BORDER:
            fix = "it is the box's; AP by size sorts objects by it: write the mask's"
            part.report_row(row, "warning", "area", found, fix, "area-of-box")
        else:
            fix = "AP by size sorts objects by it: write the mask's"
            part.report_row(row, "warning", "area", found, fix, "area-differs")
    if part.form != "coco":
        return  # the other form has none
    has_mask = columns.has_mask()
    for row, item in enumerate(part.table.annotations):
        if item.area is None and has_mask[row]:
            fix = "the mask's is used here; other programs need the key"
            part.report_row(row, "warning", "area", "there is none", fix, "area-absent")


def _tolerance(areas: np.ndarray | float, perimeters: np.ndarray | float) -> np.ndarray | float:
    return _AREA_TOLERANCE * areas + np.maximum(_BORDER * perimeters, 2.0)
