"""What an evaluation measured, instance by instance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_utils

from sam_d2.evaluation.baselines import BASELINES, baseline_detections
from sam_d2.evaluation.detections import ImageDetections
from sam_d2.evaluation.ground_truth import AnnotatedImage, GroundTruth
from sam_d2.evaluation.mean_iou import instance_ious
from sam_d2.evaluation.report_data import Evaluation, EvaluationInfo, Floats


def evaluation_of(truth: GroundTruth, detections: Sequence[ImageDetections], info: EvaluationInfo) -> Evaluation:
    """Tabulate the instances of a dataset with the prediction that answers each.

    Where prompts came from the ground truth that is the prediction of the instance's own prompt, with the
    baselines beside it; elsewhere the one of its class that overlaps it most.

    Args:
        truth: Of the dataset.
        detections: At most one per image.
        info: Kept with the columns.

    Returns:
        Without pictures.
    """
    by_id = {image.image_id: image for image in detections}
    instances = [(number, image, one) for number, image in enumerate(truth.images) for one in image.instances]
    fits = [_fit(image, by_id.get(image.image_id), info.paired) for image in truth.images]
    baselines = {}
    if info.prompt_source == "ground_truth":
        for method in BASELINES:
            found = baseline_detections(truth, method)
            ious = [instance_ious(image, boxes) for image, boxes in zip(truth.images, found, strict=True)]
            baselines[method] = _joined(ious)
    return Evaluation(
        info,
        np.array([number for number, _, _ in instances], dtype=np.int32),
        np.array([one.category for _, _, one in instances], dtype=np.int32),
        np.sqrt(np.array([mask_utils.area(one.rle) for _, _, one in instances], dtype=np.float32)),
        _joined([ious for ious, _ in fits]),
        _joined([scores for _, scores in fits]),
        baselines,
    )


def _fit(
    image: AnnotatedImage, found: ImageDetections | None, paired: bool
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """IoU and score, (M,) each, of the prediction that answers each of the image's M instances."""
    instances = image.instances
    scores = np.full(len(instances), np.nan)
    if paired or found is None or found.rles is None or not instances or not len(found):
        ious = instance_ious(image, found if paired else None)
        if found is not None and found.prompt_index is not None:
            for row in range(len(instances)):
                mine = found.scores[found.prompt_index == row]
                scores[row] = mine.max() if len(mine) else np.nan
        return ious, scores
    overlap = mask_utils.iou([one.rle for one in instances], found.rles, [0] * len(found))
    same_class = np.array([one.category for one in instances])[:, None] == found.classes[None, :]
    overlap = np.where(same_class, overlap, 0.0)
    best = overlap.argmax(axis=1)
    ious = overlap[np.arange(len(instances)), best]
    scores = np.where(ious > 0, found.scores[best], np.nan)
    return np.where([mask_utils.area(one.rle) > 0 for one in instances], ious, np.nan), scores


def _joined(parts: Sequence[npt.NDArray[np.float64]]) -> Floats:
    return np.concatenate([np.zeros(0), *parts]).astype(np.float32)
