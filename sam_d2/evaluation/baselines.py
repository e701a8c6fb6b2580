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

import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_utils

from sam_d2.evaluation.coco_metrics import Engine, detection_limit, evaluate_detections
from sam_d2.evaluation.detections import ImageDetections
from sam_d2.evaluation.domains import domain_metrics
from sam_d2.evaluation.ground_truth import RLE, GroundTruth
from sam_d2.evaluation.mean_iou import mean_iou
from sam_d2.evaluation.results import Result

Box = tuple[float, float, float, float]


def box_as_mask(box: Box, size: tuple[int, int]) -> RLE:
    """The mask of all pixels whose centre lies in the box.

    Args:
        box: XYXY, continuous edges, original frame.
        size: (H0, W0); what lies outside is clipped.
    """
    x0, y0, x1, y1 = box
    columns = _columns(x0, x1, size[1])
    return _rle_of_columns(columns, np.full(len(columns), y0), np.full(len(columns), y1), size)


def inscribed_ellipse(box: Box, size: tuple[int, int]) -> RLE:
    """The mask of all pixels whose centre lies in the ellipse that touches the box's four sides.

    Args:
        box: XYXY, continuous edges, original frame.
        size: (H0, W0); what lies outside is clipped.
    """
    x0, y0, x1, y1 = box
    columns = _columns(x0, x1, size[1])
    if len(columns) == 0:
        return _rle_of_columns(columns, np.zeros(0), np.zeros(0), size)
    off_centre = (columns + 0.5 - (x0 + x1) / 2) / ((x1 - x0) / 2)
    half_height = (y1 - y0) / 2 * np.sqrt(np.clip(1 - off_centre**2, 0, None))
    centre = (y0 + y1) / 2
    return _rle_of_columns(columns, centre - half_height, centre + half_height, size)


BASELINES: dict[str, Callable[[Box, tuple[int, int]], RLE]] = {
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
        boxes = np.array([mask_utils.toBbox(one.rle) for one in instances], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        found.append(
            ImageDetections(
                image.image_id,
                np.ones(len(instances)),
                np.array([one.category for one in instances], dtype=np.int64),
                boxes,
                [draw((x0, y0, x1, y1), image.size) for x0, y0, x1, y1 in boxes.tolist()],
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


def _columns(x0: float, x1: float, width: int) -> npt.NDArray[np.int64]:
    """Pixel columns whose centre lies in [x0, x1)."""
    first, end = np.clip(np.ceil(np.array([x0, x1]) - 0.5), 0, width).astype(np.int64)
    return np.arange(first, end)


def _rle_of_columns(
    columns: npt.NDArray[np.int64],
    tops: npt.NDArray[np.float64],
    bottoms: npt.NDArray[np.float64],
    size: tuple[int, int],
) -> RLE:
    """Mask with one run of pixels per column: those with top <= centre < bottom.

    RLE counts down one column after another, so the runs are the code.
    """
    height, width = size
    starts = np.clip(np.ceil(tops - 0.5), 0, height).astype(np.int64)
    ends = np.clip(np.ceil(bottoms - 0.5), 0, height).astype(np.int64)
    filled = ends > starts
    edges = np.stack([columns * height + starts, columns * height + ends], axis=1)[filled].ravel()
    counts = np.diff(np.concatenate([[0], edges, [height * width]]))
    return mask_utils.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
