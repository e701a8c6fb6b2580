"""A picture of what the numbers mean: predicted outlines (purple) over those of the ground truth (blue)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_utils
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sam_d2.atomic import write_atomically
from sam_d2.data.image import read_image as read_rgb
from sam_d2.evaluation.detections import ImageDetections
from sam_d2.evaluation.ground_truth import RLE, GroundTruth
from sam_d2.evaluation.mean_iou import instance_ious
from sam_d2.evaluation.results import PSEUDO
from sam_d2.visible_text import clean

MAX_IMAGES = 12
LONG_SIDE = 640
"""Pixels of a tile's long side; smaller images are enlarged, so that outlines are thin beside instances."""
COLUMNS = 3
_LINE_LENGTH = 64
TRUTH_COLOUR = (40, 130, 255)
PREDICTION_COLOUR = (175, 0, 215)
FILL = 0.25
"""Opacity of the ground truth's area: enough to tell inside from outside, so little that the object is seen."""

RISING = "worst to best"
"""Heading of tiles that have no label of their own."""

Colour = tuple[int, int, int]


@dataclass
class GalleryRow:
    """One tile of the gallery.

    Attributes:
        label: Why the image is shown, such as ``worst``; empty where all are, from worst to best.
        file_name: Of the image.
        image: (h, w, 3) uint8 RGB thumbnail with the outlines drawn.
        plain: The same without outlines.
        mean_iou: 0-1 over its instances; NaN where prompts and instances are not paired.
        instances: In the ground truth, crowd regions not counted.
        predictions: Masks that the model gave.
    """

    label: str
    file_name: str
    image: npt.NDArray[np.uint8]
    plain: npt.NDArray[np.uint8]
    mean_iou: float
    instances: int
    predictions: int


def gallery_rows(
    ground_truth: GroundTruth,
    detections: Iterable[ImageDetections],
    *,
    count: int = MAX_IMAGES,
    min_score: float = 0.5,
    long_side: int = LONG_SIDE,
    read_image: Callable[[str], npt.NDArray[np.uint8]] = read_rgb,
) -> list[GalleryRow]:
    """The worst, median and best images of an evaluation, drawn.

    Images are ranked by the mean IoU of their instances; where prompts did not come from the ground truth
    there is none, and images spread evenly over the dataset are shown, with the predictions from
    ``min_score`` on. Images without instances are not ranked. Only the chosen images are read.

    Args:
        ground_truth: Of the dataset.
        detections: As the evaluator keeps them.
        count: Images at most.
        min_score: Least score (0-1) of a prediction that is drawn, where predictions have no instance of
            their own.
        long_side: Of the tiles, pixels.
        read_image: Gives (H0, W0, 3) uint8 RGB of a file name.
    """
    by_id = {image.image_id: image for image in detections}
    predicted = [image for image in ground_truth.images if image.image_id in by_id]
    paired = any(found.prompt_index is not None for found in by_id.values())
    means = [
        float(np.nanmean(ious)) if paired and np.isfinite(ious).any() else float("nan")
        for ious in (instance_ious(image, by_id[image.image_id] if paired else None) for image in predicted)
    ]
    rows = []
    for label, index in _choose(np.array(means), count):
        image, found = predicted[index], by_id[predicted[index].image_id]
        drawn = found.scores >= (-np.inf if paired else min_score)
        shown = [rle for rle, draw in zip(found.rles or [], drawn, strict=False) if draw]
        plain = _to_long_side(read_image(image.file_name), long_side)
        drawing = draw_masks(plain, [one.rle for one in image.instances], shown)
        rows.append(GalleryRow(label, image.file_name, drawing, plain, means[index], len(image.instances), len(shown)))
    return rows


def draw_masks(image: npt.NDArray[np.uint8], truth: Sequence[RLE], predictions: Sequence[RLE]) -> npt.NDArray[np.uint8]:
    """Draw predicted outlines over the ground truth's areas and outlines.

    Args:
        image: (h, w, 3) uint8 RGB.
        truth: Masks of any size with the image's aspect.
        predictions: Likewise.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    size = (image.shape[1], image.shape[0])
    canvas: npt.NDArray[Any] = image.copy()
    covered = np.zeros(canvas.shape[:2], dtype=bool)
    outlines: list[tuple[Colour, Sequence[npt.NDArray[np.int32]]]] = []
    for colour, rles in ((TRUTH_COLOUR, truth), (PREDICTION_COLOUR, predictions)):
        for rle in rles:
            dense = mask_utils.decode(rle).astype(np.float32)
            method = cv2.INTER_AREA if dense.shape[1] > size[0] else cv2.INTER_LINEAR
            mask = cv2.resize(dense, size, interpolation=method) >= 0.5
            if colour == TRUTH_COLOUR:
                covered |= mask
            contours = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
            outlines.append((colour, contours))
    tint = np.array(TRUTH_COLOUR, dtype=np.float32)
    canvas[covered] = ((1 - FILL) * canvas[covered] + FILL * tint).astype(np.uint8)
    for colour, contours in outlines:
        cv2.drawContours(canvas, contours, -1, colour, 1 if colour == TRUTH_COLOUR else 2, cv2.LINE_AA)
    return np.asarray(canvas, dtype=np.uint8)


def write_gallery(path: str | Path, rows: Sequence[GalleryRow], title: str = "", *, pseudo: bool = False) -> None:
    """Write the tiles as one PNG with captions and a legend.

    Args:
        path: Of the PNG; its folder is made where absent.
        rows: At most ``MAX_IMAGES`` of them are shown.
        title: Above the tiles, such as the split and the prompt source.
        pseudo: Whether a model made the truth, for the legend.

    Raises:
        ValueError: There are no rows.
    """
    if not rows:
        raise ValueError("a gallery needs at least one image")
    tiles = []
    for row in rows[:MAX_IMAGES]:
        iou = "" if np.isnan(row.mean_iou) else f", mean IoU {row.mean_iou:.3f}"
        counts = f"{row.instances} instances, {row.predictions} predicted"
        label = f"{row.label}: " if row.label else ""
        tiles.append((row.image, f"{label}{clean(Path(row.file_name).name)}\n{counts}{iou}"))
    if title and not any(row.label for row in rows):
        title += f", {RISING}"
    handles = [
        Patch(
            facecolor=(*_unit(TRUTH_COLOUR), FILL),
            edgecolor=_unit(TRUTH_COLOUR),
            label=PSEUDO if pseudo else "ground truth",
        ),
        Line2D([], [], color=_unit(PREDICTION_COLOUR), linewidth=2, label="prediction"),
    ]
    write_tiles(path, tiles, title, handles)


def write_tiles(
    path: str | Path,
    tiles: Sequence[tuple[npt.NDArray[np.uint8], str]],
    title: str,
    handles: Sequence[Artist],
    *,
    columns: int = COLUMNS,
) -> None:
    """Write images with captions as one PNG.

    Args:
        path: Of the PNG; its folder is made where absent.
        tiles: At least one (h, w, 3) uint8 RGB image with its caption, whose lines are divided by newlines.
        title: Above the tiles.
        handles: Of the legend; none where empty.
        columns: Tiles side by side.
    """
    columns = min(columns, len(tiles))
    lines = -(-len(tiles) // columns)
    tallest = max(image.shape[0] / image.shape[1] for image, _ in tiles)
    inches = LONG_SIDE / 100
    height = lines * (inches * min(tallest, 1) + 0.5) + 0.9  # captions and the legend take the rest
    figure = Figure(figsize=(columns * inches, height), layout="constrained")
    axes = np.atleast_1d(np.asarray(figure.subplots(lines, columns))).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, (image, caption) in zip(axes, tiles, strict=False):
        axis.imshow(image)
        text = "\n".join(_shortened(clean(line)) for line in caption.split("\n"))
        # a dollar in a file name begins no formula
        axis.set_title(text, fontsize=12, parse_math=False)
    if handles:
        figure.legend(
            handles=list(handles),
            loc="outside upper right" if columns > 1 else "outside lower center",  # a lone title fills the line
            ncols=len(handles),
            fontsize=13,
        )
    if title:
        figure.suptitle(clean(title), x=0.01, ha="left", fontsize=14, parse_math=False)
    buffer = BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    write_atomically(Path(path), buffer.getvalue())


def _choose(means: npt.NDArray[np.float64], count: int) -> list[tuple[str, int]]:
    """Labels and indices of the images to show: worst, median and best, or an even spread without figures.

    Few enough are shown from worst to best, without a label each.
    """
    ranked = [int(index) for index in np.argsort(means, kind="stable") if not np.isnan(means[index])]
    if not ranked:
        spread = np.unique(np.linspace(0, len(means) - 1, min(count, len(means))).round().astype(int))
        return [("example", int(index)) for index in spread]
    if len(ranked) <= count:
        return [("", index) for index in ranked]
    third = count // 3
    middle = (len(ranked) - third) // 2
    parts = (("worst", 0), ("median", middle), ("best", len(ranked) - third))
    return [(label, index) for label, begin in parts for index in ranked[begin : begin + third]]


def _to_long_side(image: npt.NDArray[np.uint8], long_side: int) -> npt.NDArray[np.uint8]:
    scale = long_side / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size, interpolation=method), dtype=np.uint8)


def _shortened(name: str) -> str:
    return name if len(name) <= _LINE_LENGTH else f"{name[: _LINE_LENGTH // 2]}...{name[-_LINE_LENGTH // 2 + 3 :]}"


def _unit(colour: Colour) -> tuple[float, float, float]:
    red, green, blue = colour
    return red / 255, green / 255, blue / 255
