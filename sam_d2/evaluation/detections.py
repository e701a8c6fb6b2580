"""Predictions without dense masks, and their form as a COCO results list."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_utils

from sam_d2.errors import UserError
from sam_d2.evaluation.ground_truth import RLE, GroundTruth, ImageId, to_rle


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
        factors: (N,) float64 each, what other scores can be made of, by name; None where there is nothing but
            ``scores``.
    """

    image_id: ImageId
    scores: npt.NDArray[np.float64]
    classes: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    rles: list[RLE] | None
    prompt_index: npt.NDArray[np.int64] | None = None
    factors: dict[str, npt.NDArray[np.float64]] | None = None

    def __len__(self) -> int:
        return len(self.scores)


def detections_from_coco(results: Sequence[Mapping[str, Any]], ground_truth: GroundTruth) -> list[ImageDetections]:
    """A COCO results list, as :func:`~sam_d2.evaluation.coco_metrics.evaluate_detections` takes it.

    Args:
        results: Dicts with ``image_id``, ``category_id`` (the file's), ``score``, and ``segmentation`` (polygons,
            compressed or uncompressed RLE), ``bbox`` (XYWH) or both; all with a mask, or none. A box that is absent
            is its mask's.
        ground_truth: The dataset that they belong to.

    Raises:
        UserError: A result lacks something, has a score or box that is not finite or a mask that cannot be read or is
            of another size than its image, or is of an image or category that the dataset does not have.
    """
    contiguous = {category: index for index, category in enumerate(ground_truth.category_ids)}
    grouped: dict[ImageId, list[_CocoResult]] = {}
    masked = False
    for number, result in enumerate(results):
        where = f"{ground_truth.name}: result {number} (image id {result.get('image_id')!r})"
        try:
            size = ground_truth[result["image_id"]].size
            if result["category_id"] not in contiguous:
                raise ValueError(f"category {result['category_id']!r} is not one of {ground_truth.category_ids}")
            row = _coco_result(result, contiguous[result["category_id"]], size)
        except KeyError as error:
            raise UserError(f"{where} has no {error}; give all of image_id, category_id and score") from error
        except (ValueError, TypeError) as error:
            raise UserError(f"{where} cannot be used: {error}; correct or drop it") from error
        if number == 0:
            masked = row.rle is not None
        if masked != (row.rle is not None):
            raise UserError(
                f"{where} has {'a' if row.rle else 'no'} mask, unlike those before it; keep boxes and masks apart"
            )
        grouped.setdefault(result["image_id"], []).append(row)
    return [
        ImageDetections(
            image_id,
            np.array([row.score for row in rows], dtype=np.float64),
            np.array([row.category for row in rows], dtype=np.int64),
            np.array([row.box for row in rows], dtype=np.float64),
            [row.rle for row in rows if row.rle is not None] if masked else None,
        )
        for image_id, rows in grouped.items()
    ]


class _CocoResult(NamedTuple):
    score: float
    category: int
    box: tuple[float, float, float, float]
    rle: RLE | None


def _coco_result(result: Mapping[str, Any], category: int, size: tuple[int, int]) -> _CocoResult:
    """Check one result on an image of ``size`` (H0, W0); its box becomes XYXY."""
    score = float(result["score"])
    if not math.isfinite(score):
        raise ValueError(f"its score is {score}")
    # tools that write one kind leave the other empty
    rle = to_rle(result["segmentation"], size) if result.get("segmentation") else None
    given = result.get("bbox")
    if not given and rle is None:
        raise ValueError("it has neither segmentation nor bbox")
    x, y, width, height = (float(edge) for edge in (given or mask_utils.toBbox(rle)))
    if not all(map(math.isfinite, (x, y, width, height))):
        raise ValueError(f"its bbox is {given}")
    return _CocoResult(score, category, (x, y, x + width, y + height), rle)


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
