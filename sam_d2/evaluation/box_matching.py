"""Which instance a detector's box is of: one-to-one, the surest first, as COCO's evaluation matches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_utils

from sam_d2.evaluation.ground_truth import Annotation

LEAST_IOU = 0.5
"""Of a detection's box and an instance's, from which on the one may be of the other."""

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


def match_boxes(
    boxes: Floats, scores: Floats, classes: Rows, instances: Sequence[Annotation], *, other_classes: bool = False
) -> Rows:
    """Match the detections of an image with its instances.

    By falling score (the first of equals first) each detection takes, of the instances of its class that are still
    free, the one that its box overlaps most, from an IoU of 0.5 on. Each instance is taken once: what is left over is
    a second detection of an instance, of another class, or of nothing.

    Args:
        boxes: (N, 4) XYXY, in the frame of the instances.
        scores: (N,).
        classes: (N,) contiguous class ids.
        instances: Of the image; one whose box has no area is never matched.
        other_classes: Whether detections that are left over then take free instances of any class in the same way.

    Returns:
        (N,) the index in ``instances`` of each detection, -1 where it has none.
    """
    matched = np.full(len(boxes), -1, dtype=np.int64)
    if not len(boxes) or not instances:
        return matched
    sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)
    truth = np.array([one.bbox for one in instances], dtype=np.float64)
    overlap = mask_utils.iou(sides, truth, [0] * len(truth))
    of_class = classes[:, None] == np.array([one.category for one in instances])
    free = np.ones(len(instances), dtype=bool)
    order = np.argsort(-scores, kind="stable").tolist()
    for allowed in (of_class, np.ones_like(of_class))[: 1 + other_classes]:
        for row in order:
            if matched[row] >= 0:
                continue
            candidates = np.where(free & allowed[row], overlap[row], 0.0)
            best = int(candidates.argmax())
            if candidates[best] >= LEAST_IOU:
                matched[row] = best
                free[best] = False
    return matched
