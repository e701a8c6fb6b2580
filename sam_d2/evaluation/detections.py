"""Predictions without dense masks, and their form as a COCO results list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_utils

from sam_d2.errors import UserError
from sam_d2.evaluation.ground_truth import RLE, GroundTruth, ImageId


@dataclass
class ImageDetections:
    """What a model predicted on one image, N instances, without dense masks.

    Attributes:
        image_id: The dataset's own id.
        scores: (N,) float64, 0-1, higher is surer; equal scores rank in the order given here.
        classes: (N,) int64 contiguous class ids.
        boxes: (N, 4) float64 XYXY, original frame.
        rles: N masks in the original frame; None where the detector gives boxes only.
        prompt_index: (N,) int64, row of the image's instances that each prediction was prompted with; None
            where the prompts did not come from the ground truth.
    """

    image_id: ImageId
    scores: npt.NDArray[np.float64]
    classes: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    rles: list[RLE] | None
    prompt_index: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.scores)


def detections_from_coco(results: Sequence[Mapping[str, Any]], ground_truth: GroundTruth) -> list[ImageDetections]:
    """A COCO results list, as :func:`~sam_d2.evaluation.coco_metrics.evaluate_detections` takes it.

    Args:
        results: Dicts with ``image_id``, ``category_id`` (the file's), ``score``, and ``segmentation``
            (compressed RLE), ``bbox`` (XYWH) or both.
        ground_truth: The dataset that they belong to.

    Raises:
        UserError: A result has a category that the dataset does not have.
    """
    contiguous = {category: index for index, category in enumerate(ground_truth.category_ids)}
    grouped: dict[ImageId, list[Mapping[str, Any]]] = {}
    for result in results:
        if result["category_id"] not in contiguous:
            raise UserError(
                f"{ground_truth.name}: a result on image {result['image_id']!r} has category "
                f"{result['category_id']!r}, not one of {ground_truth.category_ids}; use the dataset's"
            )
        grouped.setdefault(result["image_id"], []).append(result)
    found = []
    for image_id, rows in grouped.items():
        rles = [dict(row["segmentation"]) for row in rows] if "segmentation" in rows[0] else None
        if "bbox" in rows[0]:
            boxes = np.array([row["bbox"] for row in rows], dtype=np.float64)
        else:
            boxes = np.array([mask_utils.toBbox(rle) for rle in rles or []], dtype=np.float64)
        boxes[:, 2:] += boxes[:, :2]
        found.append(
            ImageDetections(
                image_id,
                np.array([row["score"] for row in rows], dtype=np.float64),
                np.array([contiguous[row["category_id"]] for row in rows], dtype=np.int64),
                boxes,
                rles,
            )
        )
    return found


def detections_to_coco(detections: Iterable[ImageDetections], ground_truth: GroundTruth) -> list[dict[str, Any]]:
    """A COCO results list with the dataset's own image and category ids, boxes XYWH, masks as RLE text."""
    results = []
    for image in detections:
        for row in range(len(image)):
            x0, y0, x1, y1 = image.boxes[row].tolist()
            result: dict[str, Any] = {
                "image_id": image.image_id,
                "category_id": ground_truth.category_ids[int(image.classes[row])],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": float(image.scores[row]),
            }
            if image.rles is not None:
                rle = image.rles[row]
                result["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
            results.append(result)
    return results
