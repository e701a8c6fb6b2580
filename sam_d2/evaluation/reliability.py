"""How well a score tells the true IoU of a mask: reliability diagram and expected calibration error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import pycocotools.mask as mask_utils

from sam_d2.evaluation.detections import ImageDetections
from sam_d2.evaluation.ground_truth import AnnotatedImage, GroundTruth
from sam_d2.evaluation.mean_iou import prompted_ious
from sam_d2.modeling.calibration import Floats

BINS = 10
"""Of equal width, from score 0 to 1."""
_IN_CROWD = 0.5
"""Share of a mask within a crowd region from which it is COCO's to ignore; also the IoU that makes it a hit."""


class Bin(msgspec.Struct, frozen=True):
    """The predictions whose scores fall into one bin.

    Attributes:
        count: How many; at least 1.
        score: Their mean score.
        iou: Their mean true IoU, 0-1.
    """

    count: int
    score: float
    iou: float


class Reliability(msgspec.Struct, frozen=True):
    """A score against the true IoU (Guo et al., arXiv 1706.04599, with the IoU in place of the accuracy).

    Attributes:
        score: Name of the score.
        bins: Those that hold a prediction, by rising score.
        ece: Expected calibration error, 0-1: the mean over all predictions of how far the mean score of a bin lies
            from its mean IoU; None without predictions.
    """

    score: str
    bins: list[Bin]
    ece: float | None


def reliability(score: str, scores: Floats, ious: Floats) -> Reliability:
    """Measure one score.

    Args:
        score: its name.
        scores: (N,) finite; one below 0 or above 1 belongs to the first or last bin.
        ious: (N,) true IoU, 0-1; predictions with NaN, which have none, are left out.
    """
    known = ~np.isnan(ious)
    scores, ious = scores[known], ious[known]
    rows = np.clip(np.floor(scores * BINS), 0, BINS - 1)
    bins = [
        Bin(int(mine.sum()), float(scores[mine].mean()), float(ious[mine].mean()))
        for mine in (rows == row for row in range(BINS))
        if mine.any()
    ]
    gaps = [one.count * abs(one.score - one.iou) for one in bins]
    return Reliability(score, bins, sum(gaps) / len(scores) if bins else None)


def prediction_ious(
    ground_truth: GroundTruth, detections: Sequence[ImageDetections], *, prompted: bool
) -> list[Floats]:
    """The true IoU of every prediction.

    Args:
        ground_truth: Of the dataset.
        detections: With masks, at most one per image.
        prompted: Whether each prediction answers the instance that ``prompt_index`` names, and is measured against
            it. Elsewhere it is measured against the instance of its class that it overlaps most, 0 if there is none.

    Returns:
        Of each element (N,) in 0-1. NaN, of no account, where the instance has an empty mask, and where half of an
        unprompted prediction that hits no instance lies in a crowd region of its class, which COCO ignores.

    Raises:
        ValueError: ``prompt_index`` is absent or names a row that the image does not have, or there are no masks.
    """
    measure = prompted_ious if prompted else _best_ious
    return [measure(ground_truth[image.image_id], image) for image in detections]


def _best_ious(image: AnnotatedImage, found: ImageDetections) -> Floats:
    best = np.zeros(len(found))
    if found.rles is None:
        raise ValueError(f"predictions on image id {image.image_id!r} have no masks")
    for category in np.unique(found.classes).tolist():
        rows = np.flatnonzero(found.classes == category)
        mine = [found.rles[row] for row in rows]
        annotations = [one for one in image.annotations if one.category == category and one.has_mask]
        instances, crowds = (
            [one.rle for one in annotations if one.crowd == crowd and mask_utils.area(one.rle)]
            for crowd in (False, True)
        )
        if instances:
            best[rows] = mask_utils.iou(mine, instances, [0] * len(instances)).max(axis=1)
        if crowds:
            inside = mask_utils.iou(mine, crowds, [1] * len(crowds)).max(axis=1)  # share of the prediction
            best[rows[(best[rows] < _IN_CROWD) & (inside >= _IN_CROWD)]] = math.nan
    return best


def reliabilities(rankings: Mapping[str, Sequence[Floats]], ious: Sequence[Floats]) -> dict[str, Reliability]:
    """:func:`reliability` of several scores.

    Args:
        rankings: Of each score's name the (N,) scores on each image.
        ious: As :func:`prediction_ious` returns them for the same images.
    """
    flat = np.concatenate([np.zeros(0), *ious])
    return {name: reliability(name, np.concatenate([np.zeros(0), *scores]), flat) for name, scores in rankings.items()}
