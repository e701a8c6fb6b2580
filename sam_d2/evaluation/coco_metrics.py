"""COCO average precision and recall of detections, with a limit of detections that fits the data.

``summarize`` of pycocotools knows the limits 1, 10 and 100 only; the figures here are read from the
engines' precision and recall arrays instead, which hold any limit.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_utils

from sam_d2.errors import UserError
from sam_d2.evaluation.detections import ImageDetections
from sam_d2.evaluation.ground_truth import AnnotatedImage, GroundTruth
from sam_d2.memory import collection_paused

Engine = Literal["faster_coco_eval", "pycocotools"]
Task = Literal["segm", "bbox"]

_AREAS = {"s": 1, "m": 2, "l": 3}
"""Suffix of a metric -> index of COCO's area range: under 32^2, 32^2 to 96^2, over 96^2 square pixels."""

_log = logging.getLogger(__name__)


def detection_limit(ground_truth: GroundTruth, task: Task = "segm") -> int:
    """How many detections of an image and class may count: COCO's 100, or the most instances in any image.

    Args:
        ground_truth: Of the dataset.
        task: Instances without a mask count for ``bbox`` alone.
    """
    return max(100, ground_truth.most_instances(boxes=task == "bbox"))


def evaluate_detections(
    ground_truth: GroundTruth,
    detections: Iterable[ImageDetections],
    *,
    task: Task = "segm",
    engine: Engine = "faster_coco_eval",
    max_dets: int | None = None,
) -> dict[str, float]:
    """COCO's average precision (AP) and recall (AR) of detections.

    Every image of the ground truth counts; one without detections has all its instances missed. Crowd regions
    are COCO's: what lies in them is neither right nor wrong. An instance whose own mask (or box, for
    ``bbox``) is empty can be matched by nothing and is set aside, together with one empty prediction of its
    class on its image if there is one; any other empty prediction is a false positive, as in COCO.

    Args:
        ground_truth: Of the dataset.
        detections: At most one per image, in any order.
        task: Compare masks or boxes.
        engine: Both give the same figures; pycocotools is the slow reference.
        max_dets: Detections that count per image and class, the surest first; by default
            :func:`detection_limit`.

    Returns:
        0-100, NaN where there is no instance to find; rounded to 10 decimals, because COCO's own precision is
        1 - 2e-16 where all is right:

        - ``AP``, ``AP50``, ``AP75``: mean over IoU 0.50:0.95, at 0.50, at 0.75;
        - ``APs``, ``APm``, ``APl``, ``ARs``, ``ARm``, ``ARl``: small (under 32^2), medium, large (over 96^2);
        - ``AR``: recall at ``max_dets``, as for AP; ``AR1``, ``AR10``, ``AR100``: at those limits;
        - ``AP@100``: AP at COCO's limit, only where ``max_dets`` is another;
        - ``AP-<class>``, ``AR-<class>``: of one class.

    Raises:
        UserError: A detection is of an image or class that the dataset does not have.
        ValueError: Unknown engine or task, an image predicted twice, or a limit under 1.

    Example:
        >>> truth = GroundTruth.from_coco(json.loads(Path("instances.json").read_text()))
        >>> found = detections_from_coco(json.loads(Path("results.json").read_text()), truth)
        >>> evaluate_detections(truth, found)["AP"]
    """
    images = list(detections)
    own = {"own": [image.scores for image in images]}
    return evaluate_rankings(ground_truth, images, own, task=task, engine=engine, max_dets=max_dets)["own"]


def evaluate_rankings(
    ground_truth: GroundTruth,
    detections: Sequence[ImageDetections],
    rankings: Mapping[str, Sequence[npt.NDArray[np.float64]]],
    *,
    task: Task = "segm",
    engine: Engine = "faster_coco_eval",
    max_dets: int | None = None,
) -> dict[str, dict[str, float]]:
    """What :func:`evaluate_detections` gives for the same detections, ranked by each of several scores.

    Args:
        ground_truth: Of the dataset.
        detections: At most one per image, in any order; their own scores are not looked at.
        rankings: By name, of each element of ``detections`` the (N,) scores.
        task: As for :func:`evaluate_detections`.
        engine: Likewise.
        max_dets: Likewise.

    Returns:
        Metrics by name.

    Raises:
        UserError: As for :func:`evaluate_detections`.
        ValueError: Likewise.
    """
    if task not in get_args(Task) or engine not in get_args(Engine):
        raise ValueError(f"task {task!r} of {get_args(Task)}, engine {engine!r} of {get_args(Engine)}")
    limit = detection_limit(ground_truth, task) if max_dets is None else max_dets
    if limit < 1:
        raise ValueError(f"max_dets is {limit}, and must be at least 1")
    limits = sorted({1, 10, 100, limit})
    by_number = _by_image_number(ground_truth, detections)
    results = {}
    with collection_paused():  # a third of the time otherwise
        truth_records, detection_records = _coco_records(ground_truth, by_number, task)
        evaluator = _evaluator(ground_truth, truth_records, detection_records, task, engine, limits)
        for name, scores in rankings.items():
            by_image = {ground_truth[image.image_id].number: s for image, s in zip(detections, scores, strict=True)}
            for record in detection_records:
                record["score"] = float(by_image[record["image_id"]][record["row"]])
            results[name] = _summarise(
                *_ranked(evaluator), limits=limits, limit=limit, class_names=ground_truth.class_names
            )
    return results


def _by_image_number(ground_truth: GroundTruth, detections: Iterable[ImageDetections]) -> dict[int, ImageDetections]:
    found: dict[int, ImageDetections] = {}
    for image in detections:
        number = ground_truth[image.image_id].number
        if number in found:
            raise ValueError(f"image id {image.image_id!r} has two lots of detections; give one per image")
        if len(image) and not 0 <= image.classes.min() <= image.classes.max() < len(ground_truth.class_names):
            raise UserError(
                f"{ground_truth.name}: a prediction on image id {image.image_id!r} has class "
                f"{int(image.classes.max())}, but the dataset has {len(ground_truth.class_names)} classes; "
                "set the model's number of classes to the dataset's"
            )
        found[number] = image
    return found


def _coco_records(
    ground_truth: GroundTruth, by_number: Mapping[int, ImageDetections], task: Task
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Annotations and detections as COCO dicts with ids from 1, both in the dataset's image order."""
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    set_aside = 0
    for image in ground_truth.images:
        records, empty = _truth_records(image, task)
        set_aside += sum(empty.values())
        truth += records
        if image.number in by_number:
            found += _detection_records(by_number[image.number], image.number, task, empty)
    for records in (truth, found):
        for identifier, record in enumerate(records, 1):
            record["id"] = identifier
    if set_aside:
        _log.warning(
            "%s: %d instances have an empty %s, which nothing can match; they are left out of the %s AP%s",
            ground_truth.name,
            set_aside,
            "mask" if task == "segm" else "box",
            task,
            " and of the mean IoU" if task == "segm" else "",
        )
    return truth, found


def _truth_records(image: AnnotatedImage, task: Task) -> tuple[list[dict[str, Any]], Counter[int]]:
    """COCO dicts of one image's annotations, and the number of empty instances of each class, left out."""
    records = []
    empty: Counter[int] = Counter()
    for annotation in image.annotations:
        extent = float(mask_utils.area(annotation.rle)) if task == "segm" else min(annotation.bbox[2:])
        if extent <= 0:
            if not annotation.crowd:
                empty[annotation.category] += 1
            continue
        records.append(
            {
                "image_id": image.number,
                "category_id": annotation.category + 1,
                "segmentation": annotation.rle,
                "bbox": list(annotation.bbox),
                "area": annotation.area,
                "iscrowd": int(annotation.crowd),
            }
        )
    return records, empty


def _detection_records(image: ImageDetections, number: int, task: Task, empty: Counter[int]) -> list[dict[str, Any]]:
    """COCO dicts of one image's detections without scores; each empty instance takes one empty one of its class."""
    boxes = image.boxes.copy()
    boxes[:, 2:] -= boxes[:, :2]
    if task == "bbox":
        areas = boxes[:, 2] * boxes[:, 3]
    elif image.rles is None:
        raise ValueError(f"detections on image id {image.image_id!r} have boxes only; evaluate them with task='bbox'")
    else:
        # one at a time: pycocotools 2.0.11 with NumPy 2 fails on the areas of more than 255 masks at once
        areas = np.array([mask_utils.area(rle) for rle in image.rles], dtype=np.float64)
    unclaimed = empty.copy()
    records = []
    columns = (image.classes.tolist(), areas.tolist(), boxes.tolist())
    for row, (category, area, box) in enumerate(zip(*columns, strict=True)):
        if area <= 0 and unclaimed[category] > 0:
            unclaimed[category] -= 1
            continue
        record = {
            "image_id": number,
            "row": row,
            "category_id": category + 1,
            "area": area,
            "iscrowd": 0,
            "bbox": box,
        }
        if task == "segm" and image.rles is not None:
            record["segmentation"] = image.rles[row]
        records.append(record)
    return records


def _evaluator(
    ground_truth: GroundTruth,
    truth: list[dict[str, Any]],
    found: list[dict[str, Any]],
    task: Task,
    engine: Engine,
    limits: list[int],
) -> Any:
    """Return an engine's evaluator of COCO dicts, which it takes as they are."""
    if engine == "faster_coco_eval":
        coco_class, evaluator_class = importlib.import_module("faster_coco_eval").COCO, _reusing_evaluator()
    else:
        coco_class = importlib.import_module("pycocotools.coco").COCO
        evaluator_class = importlib.import_module("pycocotools.cocoeval").COCOeval
    images = [{"id": image.number, "height": image.size[0], "width": image.size[1]} for image in ground_truth.images]
    categories = [{"id": index, "name": name} for index, name in enumerate(ground_truth.class_names, 1)]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress with print
        sides = []
        for annotations in (truth, found):
            side = coco_class()
            side.dataset = {"images": images, "categories": categories, "annotations": annotations}
            side.createIndex()
            sides.append(side)
        evaluator = evaluator_class(*sides, iouType=task)
    evaluator.params.maxDets = limits
    return evaluator


@cache
def _reusing_evaluator() -> type[Any]:
    """Return faster-coco-eval's evaluator that can be asked again with other scores in the same detections.

    Which boxes and masks there are and how far they overlap is then known; only the order of the detections is new.
    """
    faster = importlib.import_module("faster_coco_eval")

    class ReusingEvaluator(faster.COCOeval_faster):  # type: ignore[name-defined]
        def _prepare(self) -> None:
            if not hasattr(self, "_known"):
                super()._prepare()
                self._known: dict[tuple[int, int], npt.NDArray[np.float64]] = {}

        def computeIoU(self, imgId: int, catId: int) -> Any:
            found = self.dt_dataset.get_instances([imgId], [catId], True)[0][0]
            order = np.argsort([-one["score"] for one in found], kind="mergesort")
            if (imgId, catId) in self._known:
                return self._known[imgId, catId][order]
            ious = super().computeIoU(imgId, catId)
            if len(ious) == len(found):  # otherwise those beyond the limit are not there
                self._known[imgId, catId] = ious[np.argsort(order)]
            return ious

    return ReusingEvaluator


def _ranked(
    evaluator: Any,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """COCO's precision (T, R, K, A, M) and recall (T, K, A, M), -1 where undefined, and the T thresholds."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.evaluate()
        evaluator.accumulate()
    precision = np.asarray(evaluator.eval["precision"], dtype=np.float64)
    recall = np.asarray(evaluator.eval["recall"], dtype=np.float64)
    return precision, recall, np.asarray(evaluator.params.iouThrs)


def _summarise(
    precision: npt.NDArray[np.float64],
    recall: npt.NDArray[np.float64],
    thresholds: npt.NDArray[np.float64],
    *,
    limits: list[int],
    limit: int,
    class_names: Sequence[str],
) -> dict[str, float]:
    at = limits.index(limit)
    ap = precision[:, :, :, 0, at]
    metrics = {"AP": _percent(ap)}
    for name, threshold in (("AP50", 0.5), ("AP75", 0.75)):
        metrics[name] = _percent(ap[np.isclose(thresholds, threshold)])
    for suffix, area in _AREAS.items():
        metrics[f"AP{suffix}"] = _percent(precision[:, :, :, area, at])
    if limit != 100:
        metrics["AP@100"] = _percent(precision[:, :, :, 0, limits.index(100)])
    metrics["AR"] = _percent(recall[:, :, 0, at])
    for count in (1, 10, 100):
        metrics[f"AR{count}"] = _percent(recall[:, :, 0, limits.index(count)])
    for suffix, area in _AREAS.items():
        metrics[f"AR{suffix}"] = _percent(recall[:, :, area, at])
    for index, name in enumerate(class_names):
        metrics[f"AP-{name}"] = _percent(ap[:, :, index])
        metrics[f"AR-{name}"] = _percent(recall[:, index, 0, at])
    return metrics


def _percent(values: npt.NDArray[np.float64]) -> float:
    """Mean of the defined values (-1 marks the others), times 100; NaN where none is."""
    defined = values[values > -1]
    return round(100 * float(defined.mean()), 10) if defined.size else float("nan")
