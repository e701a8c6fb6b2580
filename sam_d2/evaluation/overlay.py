"""Instances drawn over the image that they are of, and the files that hold such pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import supervision as sv

from detectron2.structures import Instances
from sam_d2.atomic import write_atomically

_MASKS_AT_ONCE = 50


def draw_instances(image: npt.NDArray[np.uint8], instances: Instances, names: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Draw masks, outlines and labels; instances of a class share a colour where there are several classes.

    Args:
        image: (H0, W0, 3) uint8 RGB.
        instances: N predictions in the same frame, on the CPU.
        names: N labels.

    Returns:
        (H0, W0, 3) uint8 RGB.
    """
    canvas: Any = np.ascontiguousarray(image[:, :, ::-1])
    boxes = instances.pred_boxes.tensor.numpy().astype(np.float64)
    classes = instances.pred_classes.numpy() if instances.has("pred_classes") else np.zeros(len(instances), np.int64)
    ids = classes if len(set(classes.tolist())) > 1 else np.arange(len(instances))
    look: dict[str, Any] = {"color_lookup": sv.ColorLookup.CLASS}
    width = max(1, round(max(image.shape[:2]) / 600))
    if instances.has("pred_masks"):
        fill, outline = sv.MaskAnnotator(opacity=0.4, **look), sv.PolygonAnnotator(thickness=width, **look)
        for start in range(0, len(instances), _MASKS_AT_ONCE):
            rows = slice(start, start + _MASKS_AT_ONCE)
            masks = instances.pred_masks[rows].numpy()
            seen = masks.any(axis=(1, 2))
            if seen.any():
                shown = sv.Detections(xyxy=boxes[rows][seen], mask=masks[seen], class_id=ids[rows][seen])
                canvas = outline.annotate(fill.annotate(canvas, shown), shown)
    else:
        canvas = sv.BoxAnnotator(thickness=width, **look).annotate(canvas, sv.Detections(xyxy=boxes, class_id=ids))
    if len(instances):
        scale = max(0.35, min(1.5, max(image.shape[:2]) / 1600))
        labels = sv.LabelAnnotator(text_scale=scale, text_padding=3, **look)
        canvas = labels.annotate(canvas, sv.Detections(xyxy=boxes, class_id=ids), list(names))
    return np.asarray(cv2.cvtColor(canvas, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def overlay_paths(files: Iterable[Path], folder: Path) -> dict[Path, Path]:
    """Return where the overlay of each image file goes; images of one name from several folders get a number."""
    paths: dict[Path, Path] = {}
    taken: set[str] = set()
    for file in files:
        name, number = file.stem, 1
        while name.lower() in taken:
            number += 1
            name = f"{file.stem}_{number}"
        taken.add(name.lower())
        paths[file] = folder / f"{name}.jpg"
    return paths


def write_jpeg(path: Path, image: npt.NDArray[np.uint8]) -> None:
    """Write (h, w, 3) uint8 RGB; the folder is made where absent."""
    encoded = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
    write_atomically(path, encoded.tobytes())
