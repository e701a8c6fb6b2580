"""Check masks beyond what reading needs: outlines that cross themselves, masks without a pixel, areas."""

from __future__ import annotations

import numpy as np

from sam_d2.doctor.columns import Columns, drawn, following
from sam_d2.doctor.parts import Part

_CHUNK = 1 << 20  # sides of polygons that are looked at together
_LONG = 1000  # sides; of an outline of more than these the pairs to compare are counted before
_MOST_PAIRS = 500  # per side, on average: all pairs of 1000 sides, and seconds for 100,000 sides
_NEAREST = 16  # neighbours of each side, among which most outlines that cross themselves do
_SLACK = 1e-6  # px; far above the rounding of a turn
_THIN = 1.0  # px; a mask that is wider on average has a pixel
_AREA_TOLERANCE = 0.05  # of the mask's area
_BORDER = 0.5  # px; half a pixel along the outline is a matter of drawing
_BOX_LIKE = 0.01  # of the box's area
_Pair = tuple[np.ndarray, np.ndarray]


def check_masks(part: Part, columns: Columns) -> None:
    """Add findings on the masks that can be used, on `area`, and on `iscrowd`."""
    _check_crossings(part, columns)
    _check_emptiness(part, columns)
    _check_areas(part, columns)
    if part.form == "coco":  # the other form needs neither key
        _check_absent(part, columns)


def _check_crossings(part: Part, columns: Columns) -> None:
    crossing, unknown = crossing_polygons(columns)
    for polygon, (x, y) in crossing.items():
        fix = "it is filled by the even-odd rule, with a hole where it runs around twice; draw it again"
        found = f"an outline crosses itself near x {x:g}, y {y:g}"
        part.report_row(int(columns.owners[polygon]), "warning", "segmentation", found, fix, "polygon-crossing")
    for polygon in unknown:
        points = columns.firsts[polygon + 1] - columns.firsts[polygon]
        found = f"an outline of {points:,} points, each side beside more than {_MOST_PAIRS} others on average"
        fix = "whether it crosses itself is not known, and it is used as it is: draw it with fewer points, or as an RLE"
        part.report_row(int(columns.owners[polygon]), "warning", "segmentation", found, fix, "polygon-unchecked")


def crossing_polygons(columns: Columns) -> tuple[dict[int, tuple[float, float]], list[int]]:
    """Return the polygons of which two sides cross, and those of which it would take too long to tell, both ascending.

    Of each that crosses itself there is an end of such a side, x and y. Sides that touch, as where an outline comes
    back to a corner, do not cross. The sides of all polygons are sorted by their left ends; a side is compared with
    those after it that begin before it ends, all sides with their first neighbour, then with their second, and so on,
    until their polygon has crossed. The time grows with the number of sides, because of long polygons few are compared.
    """
    count = len(columns.owners)
    found: dict[int, tuple[float, float]] = {}
    if not count:
        return found, []
    after = following(columns)
    lengths = np.diff(columns.firsts)
    unknown: list[int] = []
    for place in np.flatnonzero(lengths > _LONG).tolist():
        own = slice(columns.firsts[place], columns.firsts[place + 1])
        side = _crossing_of_long(columns.points[own], after[own])
        if side is None:
            unknown.append(place)
        elif side >= 0:
            x, y = columns.points[own][side].tolist()
            found[place] = x, y
    begin = 0
    while begin < count:  # whole polygons, about as many sides at a time
        end = max(begin + 1, int(np.searchsorted(columns.firsts, columns.firsts[begin] + _CHUNK, side="right")) - 1)
        sides = np.arange(columns.firsts[begin], columns.firsts[end])
        polygon = np.repeat(np.arange(begin, end), lengths[begin:end])
        short = lengths[polygon] <= _LONG
        sides, polygon = sides[short], polygon[short]
        for side in _crossing_sides(columns.points[sides], after[sides], polygon).tolist():
            x, y = columns.points[sides[side]].tolist()
            found.setdefault(int(polygon[side]), (x, y))
        begin = end
    return dict(sorted(found.items())), unknown


def _crossing_sides(starts: np.ndarray, ends: np.ndarray, polygon: np.ndarray, nearest: int = _LONG) -> np.ndarray:
    """Return the sides, from (n, 2) to (n, 2), that cross a later one of their polygon (n,), ascending.

    Of each polygon that crosses itself those that cross their nearest neighbours: one is enough to tell. A side is
    compared with as many as ``nearest`` says.
    """
    if not len(starts):
        return np.empty(0, dtype=np.int64)
    left, right = np.minimum(starts, ends), np.maximum(starts, ends)
    order = np.lexsort((left[:, 0], polygon))
    starts, ends, left, right, polygon = (array[order] for array in (starts, ends, left, right, polygon))
    crossed: list[np.ndarray] = []
    done = np.zeros(polygon[-1] - polygon[0] + 1, dtype=bool)
    active = np.arange(len(starts) - 1)
    step = 1
    while len(active) and step <= nearest:
        other = active + step
        active, other = active[other < len(starts)], other[other < len(starts)]
        near = (polygon[other] == polygon[active]) & (left[other, 0] <= right[active, 0])
        active, other = active[near], other[near]
        crossing = _crossing_pairs(active, other, (starts, ends), (left, right))
        crossed.append(order[crossing])
        if len(crossing):  # a zigzag's sides, all as wide as it, would be compared each with each
            done[polygon[crossing] - polygon[0]] = True
            active = active[~done[polygon[active] - polygon[0]]]
        step += 1
    return np.unique(np.concatenate(crossed)) if crossed else np.empty(0, dtype=np.int64)


def _crossing_of_long(starts: np.ndarray, ends: np.ndarray) -> int | None:
    """Return a side of one polygon, from (n, 2) to (n, 2), that crosses another, -1 where none does.

    None where it is not among the nearest and there are too many others to compare.
    """
    near = _crossing_sides(starts, ends, np.zeros(len(starts), dtype=np.int64), _NEAREST)
    if len(near):
        return int(near[0])
    left, right = _best_bounds(starts, ends)
    order = np.argsort(left[:, 0])
    sides, bounds = (starts[order], ends[order]), (left[order], right[order])
    counts = np.searchsorted(bounds[0][:, 0], bounds[1][:, 0], side="right") - np.arange(1, len(starts) + 1)
    if counts.sum() > _MOST_PAIRS * len(starts):
        return None
    total = np.cumsum(counts)
    begin = 0
    while begin < len(starts):  # some sides, about as many pairs at a time
        end = max(begin + 1, int(np.searchsorted(total, total[begin] + _CHUNK)))
        one = np.repeat(np.arange(begin, end), counts[begin:end])
        two = one + 1 + np.arange(len(one)) - np.repeat(total[begin:end] - counts[begin:end], counts[begin:end])
        two += total[begin] - counts[begin]
        crossing = _crossing_pairs(one, two, sides, bounds)
        if len(crossing):
            return int(order[crossing[0]])
        begin = end
    return -1


def _best_bounds(starts: np.ndarray, ends: np.ndarray) -> _Pair:
    """Return the least and the greatest coordinates of each side (n, 2), turned so that few sides share an x.

    The sides of a comb with horizontal teeth lie above one another; turned by a right angle, next to one another.
    """
    vectors = (ends - starts) @ [1, 1j]
    lengths = np.maximum(np.abs(vectors), np.finfo(float).tiny)
    teeth = np.angle((vectors**2 / lengths).sum()) / 2  # squared, a side and the same one backwards are one direction
    frames = []
    for angle in (0, np.pi / 2, teeth + np.pi / 2):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        one, other = starts @ turn, ends @ turn
        frames.append((np.minimum(one, other) - _SLACK, np.maximum(one, other) + _SLACK))
    return min(frames, key=lambda frame: np.searchsorted(np.sort(frame[0][:, 0]), frame[1][:, 0], side="right").sum())


def _crossing_pairs(one: np.ndarray, two: np.ndarray, sides: _Pair, bounds: _Pair) -> np.ndarray:
    """Return those of the sides ``one`` (k,) that cross theirs of ``two`` (k,); starts and ends are of all (n, 2)."""
    (starts, ends), (left, right) = sides, bounds
    overlap = (left[two, 1] <= right[one, 1]) & (left[one, 1] <= right[two, 1])
    one, two = one[overlap], two[overlap]
    first, second = (starts[one], ends[one]), (starts[two], ends[two])
    return one[_apart(first, second) & _apart(second, first)]


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
        far = np.abs(columns.areas - columns.mask_areas) > _tolerance(columns.mask_areas, columns.perimeters)
    far[_may_overlap(columns)] = True  # what two parts enclose counts once
    far[sorted(part.table.kind_rows["polygon-crossing"])] = True  # and what an outline encloses twice does not
    for row in np.flatnonzero(far & usable).tolist():
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


def _may_overlap(columns: Columns) -> np.ndarray:
    """Return the rows with polygons that may overlap: the bounds of two do so in x, and those of two in y."""
    if not len(columns.owners):
        return columns.owners
    begins = columns.firsts[:-1]
    low, high = np.minimum.reduceat(columns.points, begins), np.maximum.reduceat(columns.points, begins)
    met = []
    for axis in (0, 1):
        order = np.lexsort((low[:, axis], columns.owners))
        rows = columns.owners[order]
        # Where any two of a row overlap, the first of them overlaps the one that begins next.
        overlap = (rows[1:] == rows[:-1]) & (low[order[1:], axis] < high[order[:-1], axis])
        met.append(rows[1:][overlap])
    return np.intersect1d(*met)


def _check_absent(part: Part, columns: Columns) -> None:
    has_mask = columns.has_mask()
    for row, item in enumerate(part.table.annotations):
        if item.iscrowd is None:
            fix = "0 is meant here; other programs, pycocotools' evaluation among them, need the key"
            part.report_row(row, "warning", "iscrowd", "there is none", fix, "iscrowd-absent")
        if item.area is None and has_mask[row]:
            fix = "the mask's is used here; other programs need the key"
            part.report_row(row, "warning", "area", "there is none", fix, "area-absent")


def _tolerance(areas: np.ndarray | float, perimeters: np.ndarray | float) -> np.ndarray | float:
    return _AREA_TOLERANCE * areas + np.maximum(_BORDER * perimeters, 2.0)
