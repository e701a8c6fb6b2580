"""Colours, relief and light of generated tundra scenes: from polygon outlines to an aerial image.

Shape legend: ``H, W`` size of the original image. Heights are in pixels; wetness and colour position run
from 0 (open water) to 1 (dry lichen). All arithmetic is float64, so that the last-bit differences between
processors vanish when the image is rounded to bytes.
"""

from collections.abc import Sequence

import cv2
import numpy as np

LOW_CENTRE, HIGH_CENTRE = 0, 1
# RGB at the positions 0, 1/3, 2/3 and 1 of the ramp: water, wet sedge, moss, lichen.
_PALETTES = np.array(
    [
        [[28, 38, 46], [66, 74, 46], [116, 118, 76], [186, 178, 140]],  # summer green
        [[33, 34, 42], [86, 66, 46], [146, 112, 72], [210, 184, 138]],  # autumn
        [[36, 43, 52], [84, 83, 78], [130, 127, 116], [198, 194, 182]],  # early season, grey
        [[26, 36, 50], [72, 62, 50], [118, 108, 80], [176, 172, 156]],  # wet lowland
    ],
    dtype=np.float64,
)
_SUPERSAMPLING = 4


def render_scene(
    rng: np.random.Generator, outlines: Sequence[np.ndarray], classes: Sequence[int], height: int, width: int
) -> np.ndarray:
    """Paint a scene.

    Args:
        rng: Source of all that the outlines and classes leave open.
        outlines: Polygons that do not overlap, each (V, 2) xy, original frame.
        classes: ``LOW_CENTRE`` or ``HIGH_CENTRE`` of each polygon.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    labels = _label_map(outlines, height, width)
    coverage = _blocks(labels > 0).mean(axis=(1, 3))
    inside = _blocks(_distance(labels > 0)).mean(axis=(1, 3))
    outside = _blocks(_distance(labels == 0)).mean(axis=(1, 3))
    label = _blocks(labels).max(axis=(1, 3))

    cells = _Cells(rng, label, inside, classes)
    rough = fractal_noise(rng, height, width, scale=rng.uniform(14, 30), octaves=4)
    broad = fractal_noise(rng, height, width, scale=rng.uniform(50, 90), octaves=2)
    trough = np.exp(-((outside / rng.uniform(5.0, 8.0)) ** 4))
    wet = 1 / (1 + np.exp(-4 * (broad + 0.6 * rough - rng.uniform(0.0, 1.2))))

    # Light tundra lies at a distance only: a light patch among polygons would look like one of them.
    open_ground = np.clip((outside - 14) / 20, 0, 1)
    tundra = 0.28 + 0.2 * open_ground + 0.04 * broad
    trough_tone = 0.22 - 0.25 * wet
    ground_tone = tundra + trough * (trough_tone - tundra)
    tone = coverage * cells.tone + (1 - coverage) * ground_tone
    tone += (0.035 + 0.03 * coverage) * rough + 0.03 * broad
    relief = coverage * cells.relief + (1 - coverage) * (0.6 - 1.6 * trough) + 0.35 * rough

    image = _colours(rng, tone, broad) * _light(rng, relief)[..., None]
    tussocks = fractal_noise(rng, height, width, scale=3.0, octaves=2) * np.clip(tone + 0.15, 0.1, 0.9)
    image *= 1 + rng.uniform(0.05, 0.13) * tussocks[..., None]
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.35, 0.55))
    image += rng.normal(0, rng.uniform(1.0, 3.0), image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def fractal_noise(rng: np.random.Generator, height: int, width: int, *, scale: float, octaves: int) -> np.ndarray:
    """Smooth noise (H, W), mean about 0, deviation about 1; each octave halves scale and amplitude."""
    total = np.zeros((height, width))
    for octave in range(octaves):
        step = scale / 2**octave
        grid = rng.standard_normal((int(height / step) + 3, int(width / step) + 3))
        size = (int(np.ceil(grid.shape[1] * step)), int(np.ceil(grid.shape[0] * step)))
        total += 0.5**octave * cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC)[:height, :width]
    return total / np.sqrt(sum(0.25**octave for octave in range(octaves)) * 0.6)


class _Cells:
    """Tone and relief (H, W) inside the polygons; undefined outside."""

    def __init__(self, rng: np.random.Generator, label: np.ndarray, inside: np.ndarray, classes: Sequence[int]) -> None:
        count = len(classes)
        radius = np.ones(count + 1)
        np.maximum.at(radius, label, inside)
        depth = np.clip(inside / radius[label], 0.0, 1.0)

        rim_tone = _per_cell(rng, label, count, 0.78, 0.95)
        centre_tone = _per_cell(rng, label, count, -0.15, 0.34)
        rim = np.exp(-(((depth - 0.2) / _per_cell(rng, label, count, 0.18, 0.26)) ** 2))
        low_tone = centre_tone + (rim_tone - centre_tone) * rim
        low_relief = 0.4 + 2.4 * rim

        dome = depth * (2 - depth)
        margin_tone = _per_cell(rng, label, count, 0.36, 0.5)
        top_tone = _per_cell(rng, label, count, 0.8, 1.0)
        high_tone = margin_tone + (top_tone - margin_tone) * dome
        high_relief = 3.4 * dome

        high = np.array([LOW_CENTRE, *classes])[label] == HIGH_CENTRE
        self.tone = np.where(high, high_tone, low_tone)
        self.relief = np.where(high, high_relief, low_relief)


def _per_cell(rng: np.random.Generator, label: np.ndarray, count: int, low: float, high: float) -> np.ndarray:
    return rng.uniform(low, high, count + 1)[label]


def _label_map(outlines: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Supersampled (4 H, 4 W) int32: 0 is background, k the k-th outline counted from 1."""
    labels = np.zeros((height * _SUPERSAMPLING, width * _SUPERSAMPLING), dtype=np.int32)
    for number, outline in enumerate(outlines, start=1):
        # OpenCV's integer coordinates are sample centres, ours are sample edges: hence the half sample.
        vertices = np.rint((outline * _SUPERSAMPLING - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(labels, [vertices], number, lineType=cv2.LINE_8, shift=4)
    return labels


def _distance(region: np.ndarray) -> np.ndarray:
    """Distance of each sample of ``region`` (bool) to the nearest sample outside it, in pixels; 0 outside."""
    distance = cv2.distanceTransform(region.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # Squared distances are whole numbers: rounding removes what single precision adds.
    return np.sqrt(np.rint(np.square(distance.astype(np.float64)))) / _SUPERSAMPLING


def _blocks(samples: np.ndarray) -> np.ndarray:
    """View of supersampled values as (H, 4, W, 4): axes 1 and 3 run over the samples of one pixel."""
    height, width = (side // _SUPERSAMPLING for side in samples.shape)
    return samples.reshape(height, _SUPERSAMPLING, width, _SUPERSAMPLING)


def _colours(rng: np.random.Generator, tone: np.ndarray, variation: np.ndarray) -> np.ndarray:
    """RGB (H, W, 3) of the tones, by two palettes that ``variation`` (H, W) mixes from place to place."""
    share = 1 / (1 + np.exp(-2.5 * variation - rng.uniform(-3, 0)))
    cast = rng.uniform(0.94, 1.06, 3) * rng.uniform(0.88, 1.15)
    stops = np.linspace(0, 1, _PALETTES.shape[1])
    main, other = (
        np.stack([np.interp(tone, stops, palette[:, channel]) for channel in range(3)], axis=-1)
        for palette in _PALETTES[rng.choice(len(_PALETTES), 2, replace=False)]
    )
    return cast * (main + share[..., None] * (other - main))


def _light(rng: np.random.Generator, relief: np.ndarray) -> np.ndarray:
    """Factor (H, W) of hill shading times a gradient of illumination across the image."""
    height, width = relief.shape
    azimuth = rng.uniform(0, 2 * np.pi)
    slope_y, slope_x = np.gradient(relief)
    shade = 1 + rng.uniform(0.15, 0.4) * (slope_x * np.cos(azimuth) + slope_y * np.sin(azimuth))
    y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j]
    heading = rng.uniform(0, 2 * np.pi)
    gradient = 1 + rng.uniform(0.0, 0.25) * (x * np.cos(heading) + y * np.sin(heading))
    return np.clip(shade, 0.45, 1.6) * gradient
