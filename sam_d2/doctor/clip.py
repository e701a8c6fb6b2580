"""Clip a polygon to its image."""

from __future__ import annotations

from collections.abc import Sequence

Point = tuple[float, float]


def clip_polygon(polygon: Sequence[float], width: float, height: float) -> list[float]:
    """Return the part of a polygon that lies in its image, by Sutherland and Hodgman's algorithm (1974).

    Where the polygon leaves the image several times, the parts stay one polygon, joined by lines on the border, which
    enclose nothing.

    Args:
        polygon: x1, y1, x2, y2, ..., px, edges of pixels.
        width: of the image, px.
        height: likewise.

    Returns:
        The same form; empty where nothing lies inside.
    """
    points: list[Point] = list(zip(polygon[0::2], polygon[1::2], strict=True))
    for axis, border, sign in ((0, 0.0, 1), (0, width, -1), (1, 0.0, 1), (1, height, -1)):
        points = _clip_side(points, axis, border, sign)
    if _enclosed(points) == 0:
        return []
    points = [point for before, point in zip(points[-1:] + points[:-1], points, strict=True) if point != before]
    return [float(number) for point in points for number in point]


def _clip_side(points: list[Point], axis: int, border: float, sign: int) -> list[Point]:
    def inside(point: Point) -> bool:
        return sign * (point[axis] - border) >= 0

    kept: list[Point] = []
    for before, point in zip(points[-1:] + points[:-1], points, strict=True):
        if inside(point) != inside(before):
            share = (border - before[axis]) / (point[axis] - before[axis])
            other = before[1 - axis] + share * (point[1 - axis] - before[1 - axis])
            kept.append((border, other) if axis == 0 else (other, border))
        if inside(point):
            kept.append(point)
    return kept


def _enclosed(points: list[Point]) -> float:
    turns = zip(points, points[1:] + points[:1], strict=True)
    return abs(sum(one[0] * two[1] - one[1] * two[0] for one, two in turns)) / 2
