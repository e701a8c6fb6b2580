"""What a mask from the prompt's box alone would score: the floor that a model has to beat.

Both baselines know where the instance is and nothing of the image. The box is the tight one of the
ground-truth mask, so that the floor does not depend on how well a file's boxes were drawn (on the
ice-wedge tiles, whose boxes lie a pixel beside their masks, the file's boxes would score 0.13 lower as
masks). Their score is constant; equal scores rank by image as `GroundTruth.images` orders them, and
in an image in file order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_utils

from sam_d2.evaluation.coco_metrics import Engine, detection_limit, evaluate_detections
from sam_d2.evaluation.detections import ImageDetections
from sam_d2.evaluation.domains import domain_metrics
from sam_d2.evaluation.ground_truth import RLE, GroundTruth
from sam_d2.evaluation.mean_iou import mean_iou
from sam_d2.evaluation.results import Result

Boxes = npt.NDArray[np.float64]


def box_as_mask(boxes: Boxes, size: tuple[int, int]) -> list[RLE]:
    """The masks of all pixels whose centre lies in the box.

    Args:
        boxes: (N, 4) XYXY, continuous edges, original frame.
        size: (H0, W0); what lies outside is clipped.
    """
    columns = _columns(boxes, size[1])
    _, y0, _, y1 = columns.boxes
    return _rles_of_columns(columns, y0, y1, len(boxes), size)


def inscribed_ellipse(boxes: Boxes, size: tuple[int, int]) -> list[RLE]:
    """The masks of all pixels whose centre lies in the ellipse that touches the box's four sides.

    Args:
        boxes: (N, 4) XYXY, continuous edges, original frame.
        size: (H0, W0); what lies outside is clipped.
    """
    columns = _columns(boxes, size[1])
    x0, y0, x1, y1 = columns.boxes
    off_centre = (columns.x + 0.5 - (x0 + x1) / 2) / ((x1 - x0) / 2)
    half_height = (y1 - y0) / 2 * np.sqrt(np.clip(1 - off_centre**2, 0, None))
    centre = (y0 + y1) / 2
    return _rles_of_columns(columns, centre - half_height, centre + half_height, len(boxes), size)


BASELINES: dict[str, Callable[[Boxes, tuple[int, int]], list[RLE]]] = {
    "box_as_mask": box_as_mask,
    "ellipse": inscribed_ellipse,
}


def baseline_detections(ground_truth: GroundTruth, method: str) -> list[ImageDetections]:
    """One prediction per instance, made from the tight box of its mask; empty where the mask is.

    Args:
        ground_truth: Of the dataset; crowd regions get no prediction.
        method: A key of ``BASELINES``.

    Raises:
        KeyError: No such baseline.
    """
    draw = BASELINES[method]
    found = []
    for image in ground_truth.images:
        instances = image.instances
        boxes = np.asarray(mask_utils.toBbox([one.rle for one in instances]), dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        found.append(
            ImageDetections(
                image.image_id,
                np.ones(len(instances)),
                np.array([one.category for one in instances], dtype=np.int64),
                boxes,
                draw(boxes, image.size),
                np.arange(len(instances)),
            )
        )
    return found


def evaluate_baselines(
    ground_truth: GroundTruth,
    *,
    prompt: str = "box",
    split: str | None = None,
    methods: Iterable[str] = tuple(BASELINES),
    engine: Engine = "faster_coco_eval",
    max_dets: int | None = None,
    pseudo_ground_truth: bool = False,
) -> list[Result]:
    """Score the baselines exactly as a model with ground-truth prompts is scored.

    Args:
        ground_truth: Of the dataset.
        prompt: Kind of prompt of the model that they stand beside; they are the same for all.
        split: Name in the report; the ground truth's by default.
        methods: Keys of ``BASELINES``.
        engine: As for :func:`~sam_d2.evaluation.coco_metrics.evaluate_detections`.
        max_dets: Likewise.
        pseudo_ground_truth: Whether a model made the truth; of annotations with a ``provenance`` that is known.

    Returns:
        One row per method, task ``segm``, score ``constant``.
    """
    limit = detection_limit(ground_truth) if max_dets is None else max_dets
    results = []
    for method in methods:
        begin = time.perf_counter()
        found = baseline_detections(ground_truth, method)
        metrics = evaluate_detections(ground_truth, found, engine=engine, max_dets=limit)
        metrics |= domain_metrics(ground_truth, found, task="segm", engine=engine, max_dets=limit)
        metrics["mIoU"] = mean_iou(ground_truth, found).value
        results.append(
            Result(
                split=ground_truth.name if split is None else split,
                images=len(ground_truth.images),
                instances=ground_truth.count_instances(),
                ground_truth=ground_truth.digest,
                prompt=prompt,
                prompt_source="ground_truth",
                method=method,
                task="segm",
                score="constant",
                max_dets=limit,
                pseudo_ground_truth=pseudo_ground_truth or ground_truth.pseudo > 0,
                seconds=time.perf_counter() - begin,
                metrics=dict(metrics),
            )
        )
    return results


class _Columns(NamedTuple):
    """Pixel columns that boxes reach over, those of all boxes one after the other.

    Attributes:
        owners: (K,) which box.
        x: (K,) the column.
        boxes: (4, K) XYXY of the box.
    """

    owners: npt.NDArray[np.int64]
    x: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]


def _columns(boxes: Boxes, width: int) -> _Columns:
    """Pixel columns whose centre lies in [x0, x1)."""
    first, end = np.clip(np.ceil(boxes[:, ::2] - 0.5), 0, width).astype(np.int64).T
    counts = np.maximum(end - first, 0)
    owners = np.repeat(np.arange(len(boxes)), counts)
    x = np.arange(len(owners)) + np.repeat(first - (np.cumsum(counts) - counts), counts)
    return _Columns(owners, x, boxes[owners].T)


def _rles_of_columns(
    columns: _Columns,
    tops: npt.NDArray[np.float64],
    bottoms: npt.NDArray[np.float64],
    count: int,
    size: tuple[int, int],
) -> list[RLE]:
    """Masks, ``count`` of them, with one run of pixels per column: those with top <= centre < bottom.

    RLE counts down one column after another, so the runs are the code.
    """
    if not count:
        return []
    height, width = size
    starts = np.clip(np.ceil(tops - 0.5), 0, height).astype(np.int64)
    ends = np.clip(np.ceil(bottoms - 0.5), 0, height).astype(np.int64)
    filled = ends > starts
    owners, x = columns.owners[filled], columns.x[filled]
    # All masks one after the other, so that where one ends the next begins.
    begins = (owners * width + x) * height
    edges = np.stack([begins + starts[filled], begins + ends[filled]], axis=1).ravel()
    borders = 2 * np.searchsorted(owners, np.arange(count + 1))
    counts = np.diff(np.insert(edges, borders, np.arange(count + 1) * height * width))
    runs = np.split(counts, (borders + np.arange(count + 1))[1:-1])
    return mask_utils.frPyObjects([{"size": [height, width], "counts": one} for one in runs], height, width)
