"""Mean IoU of prompted masks: how well a mask fits the instance that it was asked for.

Unlike AP it knows which instance each prediction belongs to, so no score and no matching enters it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_utils

from sam_d2.evaluation.detections import ImageDetections
from sam_d2.evaluation.ground_truth import RLE, AnnotatedImage, GroundTruth

_AT_ONCE = 16
"""Pairs of masks that pycocotools compares at once, each with each: a call costs as much as hundreds of those."""


@dataclass(frozen=True)
class MeanIoU:
    """Mean IoU over instances.

    Attributes:
        value: 0-1; NaN where there is no instance.
        instances: How many it is the mean of.
        empty: Instances left out because their ground-truth mask has no pixel.
        missing: Instances without a prediction; each counts as 0 in the mean.
    """

    value: float
    instances: int
    empty: int
    missing: int


def prompted_ious(image: AnnotatedImage, detections: ImageDetections) -> npt.NDArray[np.float64]:
    """IoU of each prediction with the instance it was prompted with.

    Args:
        image: With its ground truth.
        detections: N of it, with ``prompt_index``.

    Returns:
        (N,): 0-1, NaN where the ground-truth mask is empty.

    Raises:
        ValueError: ``prompt_index`` is absent or names a row that the image does not have, or there are no masks.
    """
    if len(detections) == 0:
        return np.zeros(0)
    instances, rows = image.instances, detections.prompt_index
    if rows is None or detections.rles is None:
        raise ValueError(f"predictions on image id {image.image_id!r} have no prompt_index or no masks")
    if rows.min() < 0 or rows.max() >= len(instances):
        raise ValueError(
            f"prompt_index on image id {image.image_id!r} spans {rows.min()}..{rows.max()}, "
            f"but the image has {len(instances)} instances"
        )
    true = [instances[row].rle for row in rows]
    pairs = zip(_parts(detections.rles), _parts(true), strict=True)
    ious = [mask_utils.iou(part, true_part, [0] * len(part)).diagonal() for part, true_part in pairs]
    return np.where(_filled(true), np.concatenate(ious), np.nan)


def instance_ious(image: AnnotatedImage, detections: ImageDetections | None) -> npt.NDArray[np.float64]:
    """IoU of each instance of an image with the mask that was predicted for its prompt.

    Args:
        image: With its ground truth; crowd regions do not take part.
        detections: With ``prompt_index``; None where the image was not predicted. Where an instance has
            several predictions, the one with the highest score counts, the first of equals.

    Returns:
        (M,) for the M instances in file order: 0-1, 0 without a prediction, NaN where the ground-truth mask
        is empty.

    Raises:
        ValueError: As for :func:`prompted_ious`.
    """
    ious = np.where(_filled([one.rle for one in image.instances]), 0.0, np.nan)
    if detections is None:
        return ious
    found = prompted_ious(image, detections)
    rows = np.zeros(0, dtype=np.int64) if detections.prompt_index is None else detections.prompt_index
    # ascending score, and of equals the first last: the prediction that counts is written last
    for index in np.lexsort((-np.arange(len(rows)), detections.scores[: len(rows)])):
        ious[rows[index]] = found[index]
    return ious


def mean_iou(ground_truth: GroundTruth, detections: Iterable[ImageDetections]) -> MeanIoU:
    """Mean over the instances of all images (not over images) of :func:`instance_ious`.

    Args:
        ground_truth: Of the dataset.
        detections: At most one per image.

    Raises:
        ValueError: As for :func:`instance_ious`.
    """
    by_id = {image.image_id: image for image in detections}
    ious = [np.zeros(0)]
    missing = 0
    for image in ground_truth.images:
        found = by_id.get(image.image_id)
        ious.append(instance_ious(image, found))
        predicted = set() if found is None or found.prompt_index is None else set(found.prompt_index.tolist())
        missing += sum(row not in predicted for row in np.flatnonzero(~np.isnan(ious[-1])).tolist())
    everything = np.concatenate(ious)
    counted = everything[~np.isnan(everything)]
    value = float(counted.mean()) if counted.size else float("nan")
    return MeanIoU(value, counted.size, everything.size - counted.size, missing)


def _parts(rles: Sequence[RLE]) -> Iterator[Sequence[RLE]]:
    return (rles[start : start + _AT_ONCE] for start in range(0, len(rles), _AT_ONCE))


def _filled(rles: Sequence[RLE]) -> npt.NDArray[np.bool_]:
    """Whether each mask has a pixel; in parts also because pycocotools fails on 256 masks at once with NumPy 2."""
    return np.concatenate([np.zeros(0), *(mask_utils.area(list(part)) for part in _parts(rles))]) > 0
