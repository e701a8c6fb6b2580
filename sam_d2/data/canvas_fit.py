"""How large a dataset's instances are once its images are on SAM's canvas."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from detectron2.structures import BoxMode

LEAST_SIDE = 8.0
"""Canvas pixels, half an image token of SAM: what is narrower has about two cells of the low-res masks."""
_MOST_IMAGES = 1000

logger = logging.getLogger(__name__)


def log_canvas_fit(records: Sequence[dict[str, Any]], canvas: int) -> None:
    """Log by how much the images are scaled, and warn where half of the instances become too narrow to outline.

    Looks at a thousand images spread over the dataset; crowd regions do not count.

    Args:
        records: Detectron2's dataset dicts with ``height``, ``width`` and ``annotations``.
        canvas: pixels of an image's long side after the resize.
    """
    rows = np.unique(np.linspace(0, len(records) - 1, min(len(records), _MOST_IMAGES)).round().astype(int))
    scales: list[float] = []
    sides: list[float] = []
    for row in rows.tolist():
        record = records[row]
        scale = canvas / max(record["height"], record["width"])
        scales.append(scale)
        for annotation in record.get("annotations", ()):
            if not annotation.get("iscrowd"):
                x0, y0, x1, y1 = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
                sides.append(scale * min(x1 - x0, y1 - y0))
    if not sides:
        return
    side = float(np.median(sides))
    logger.info(
        "On the canvas of %d pixels images are scaled by %.3g (median; %.3g to %.3g), and the median instance is "
        "%.3g pixels across its short side",
        canvas,
        np.median(scales),
        min(scales),
        max(scales),
        side,
    )
    if side < LEAST_SIDE:
        logger.warning(
            "Half of the instances are narrower than %.3g pixels on the canvas of %d, too few to outline: take a "
            "config with a larger canvas, or cut the images into tiles",
            side,
            canvas,
        )
