"""Outlines of ice-wedge polygons: Voronoi cells whose edges are bent, rounded and set apart by troughs.

Shape legend: ``C`` cells, ``V`` outline vertices, ``P`` points. All coordinates are xy in pixels of the
original image, continuous: the pixel in row 0 and column 0 covers the square from (0, 0) to (1, 1).
"""

import itertools

import numpy as np

MIN_CELLS, MAX_CELLS = 5, 20
_RAYS = 72
_MIN_VISIBLE_FRACTION = 0.4
_MIN_VISIBLE_SIDE = 10.0
_MIN_VISIBLE_AREA = 110.0


def draw_outlines(seed: list[int], height: int, width: int) -> list[np.ndarray]:
    """Draw the visible outlines of the polygons of one scene.

    Attempts are repeated, each from a seed of its own, until the number of cells lies in
    ``MIN_CELLS..MAX_CELLS``. Cells of which too little is visible are left out.

    Args:
        seed: Non-negative numbers that fix the result.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Returns:
        Outlines of the cells, each (V, 2), float64, rounded to hundredths of a pixel, inside the image.
        They do not overlap.
    """
    # From 1: numpy takes [seed, index, 0] and [seed, index] for the same seed.
    for attempt in itertools.count(1):
        rng = np.random.default_rng([*seed, attempt])
        outlines = _visible_outlines(rng, height, width)
        if MIN_CELLS <= len(outlines) <= MAX_CELLS:
            return outlines
    raise AssertionError("itertools.count() does not end")


def clip_to_image(outline: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cut an outline at the four image edges (Sutherland and Hodgman, 1974).

    Args:
        outline: (V, 2) vertices of a simple polygon.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Returns:
        The visible part, (V', 2); (0, 2) where nothing is visible. Parts that the cut separates stay
        joined by edges of zero width along the image edge.
    """
    for axis, bound, sign in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        depth = sign * (outline[:, axis] - bound)
        next_depth = np.roll(depth, -1)
        crosses = (depth < 0) != (next_depth < 0)
        fraction = np.divide(depth, depth - next_depth, out=np.zeros_like(depth), where=crosses)
        crossing = outline + fraction[:, None] * (np.roll(outline, -1, axis=0) - outline)
        candidates = np.stack([outline, crossing], axis=1).reshape(-1, 2)
        outline = candidates[np.stack([depth >= 0, crosses], axis=1).reshape(-1)]
    return outline


def polygon_area(outline: np.ndarray) -> float:
    """Area of a simple polygon with vertices (V, 2), by the shoelace formula."""
    x, y = outline[:, 0], outline[:, 1]
    return 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))


def _visible_outlines(rng: np.random.Generator, height: int, width: int) -> list[np.ndarray]:
    spacing = np.sqrt(height * width / rng.uniform(5.0, 13.0))
    centres = _draw_centres(rng, height, width, spacing)
    outlines = _bend(rng, _cell_outlines(rng, centres), spacing)
    kept = _draw_kept(rng, centres, height, width)
    visible = []
    for outline in outlines[kept]:
        part = np.round(clip_to_image(outline, height, width), 2)
        if len(part) < 3:
            continue
        area = polygon_area(part)
        if (
            area >= max(_MIN_VISIBLE_AREA, _MIN_VISIBLE_FRACTION * polygon_area(outline))
            and np.ptp(part, axis=0).min() >= _MIN_VISIBLE_SIDE
        ):
            visible.append(part)
    return visible


def _draw_centres(rng: np.random.Generator, height: int, width: int, spacing: float) -> np.ndarray:
    """Cell centres (C, 2): a brick lattice, jittered, stretched and turned, that reaches beyond the image."""
    reach = int(np.ceil(np.hypot(height, width) / spacing)) + 3
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1).astype(np.float64)
    lattice = np.stack([columns + 0.5 * (rows % 2), rows], axis=1)
    lattice += rng.uniform(-0.3, 0.3, lattice.shape)
    stretch = np.sqrt(rng.uniform(1.7, 3.0))
    # Never along an image side, where long cells would fill their boxes.
    angle = (rng.integers(2) + rng.uniform(0.25, 0.75)) * np.pi / 2
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.array([width, height]) / 2 + rng.uniform(-0.5, 0.5, 2) * spacing
    centres = (lattice * [1 / stretch, stretch]) @ turn.T * spacing + middle
    margin = 2.5 * spacing
    near = ((centres > -margin) & (centres < np.array([width, height]) + margin)).all(axis=1)
    return centres[near]


def _cell_outlines(rng: np.random.Generator, centres: np.ndarray) -> np.ndarray:
    """Outlines (C, V, 2) of the Voronoi cells of ``centres`` (C, 2), less half a trough on each side.

    Along a ray, the distance to the edge is the smallest of those to the bisectors with the other centres.
    A power mean takes the place of the minimum: it rounds the corners, and never leaves the cell.
    """
    offsets = centres[None] - centres[:, None]
    distances = np.linalg.norm(offsets, axis=2)
    np.fill_diagonal(distances, np.inf)
    trough = rng.uniform(0.9, 1.8) + rng.uniform(0.0, 1.4) * rng.random(distances.shape) ** 2
    clearance = np.maximum(distances / 2 - (trough + trough.T) / 2, 2.0)

    angles = np.arange(_RAYS) * (2 * np.pi / _RAYS)
    rays = np.stack([np.cos(angles), np.sin(angles)])
    # The floor keeps the cells at the rim of the lattice, far outside the image, from being unbounded.
    approach = np.maximum(offsets / distances[..., None] @ rays / clearance[..., None], 1e-3)
    sharpness = rng.uniform(7.0, 14.0)
    radii = (approach**sharpness).sum(axis=1) ** (-1 / sharpness)

    orders = np.arange(3, 9)
    phases = rng.uniform(0, 2 * np.pi, (len(centres), len(orders), 1))
    ripple = np.cos(orders[:, None] * angles + phases).mean(axis=1)
    radii *= 1 - rng.uniform(0.02, 0.09) * (1 + ripple)
    return centres[:, None] + radii[..., None] * rays.T


def _bend(rng: np.random.Generator, points: np.ndarray, spacing: float) -> np.ndarray:
    """Move points (..., 2) by a sum of waves.

    Its slope stays below 1, so that the map can be inverted: outlines stay simple and apart.
    """
    waves = 3
    wavelengths = rng.uniform(0.8, 2.2, waves) * spacing
    headings = rng.uniform(0, 2 * np.pi, waves)
    directions = np.stack([np.cos(headings), np.sin(headings)], axis=1)
    phases = 2 * np.pi * ((points @ directions.T) / wavelengths + rng.random(waves))
    shift_headings = rng.uniform(0, 2 * np.pi, waves)
    shifts = np.stack([np.cos(shift_headings), np.sin(shift_headings)], axis=1)
    return points + np.sin(phases) @ (shifts * (0.04 * wavelengths)[:, None])


def _draw_kept(rng: np.random.Generator, centres: np.ndarray, height: int, width: int) -> np.ndarray:
    """Which cells (C,) bear a polygon; the others, single ones or all beyond a line, are flat tundra."""
    kept = rng.random(len(centres)) > rng.uniform(0.0, 0.12)
    heading = rng.uniform(0, 2 * np.pi)
    middle = np.array([width, height]) / 2
    beyond = (centres - middle) @ np.array([np.cos(heading), np.sin(heading)])
    limit = rng.uniform(0.15, 0.5) * min(height, width)
    return kept & (beyond < limit) if rng.random() < 0.25 else kept
