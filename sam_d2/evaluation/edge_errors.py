"""How far a detector's boxes lie from the instances that they are of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_utils

from detectron2.structures import Instances
from sam_d2.data.edge_errors import LEAST_IOU, EdgeErrors
from sam_d2.errors import UserError
from sam_d2.evaluation.ground_truth import AnnotatedImage, GroundTruth, ImageId

_DECIMALS = 5


def edge_errors(ground_truth: GroundTruth, found: Callable[[ImageId], Instances], *, detector: str = "") -> EdgeErrors:
    """Measure the boxes of a detector.

    A detection is of the instance of its class that it overlaps most, from an IoU of 0.5 on; of those that an instance
    has the surest counts, and each detection is of one instance at most, as COCO's evaluation has it. Crowd regions,
    instances without a mask and boxes without area are left out.

    Args:
        ground_truth: Of the dataset.
        found: Gives the detections of an image: ``pred_boxes``, ``scores`` and ``pred_classes``.
        detector: File of its weights, to be kept with the errors.

    Raises:
        UserError: No detection is of an instance.
    """
    moves = np.concatenate([np.zeros((0, 4)), *(_of_image(one, found(one.image_id)) for one in ground_truth.images)])
    instances = ground_truth.count_instances()
    if not len(moves):
        raise UserError(
            f"{ground_truth.name}: of {instances} instances none has a detection of its class with an IoU of at least "
            f"{LEAST_IOU}, so there are no errors to draw from. Train the detector further, or name its own dataset."
        )
    moves = moves.round(_DECIMALS)
    return EdgeErrors(
        errors=moves.tolist(),
        detector=detector,
        dataset=ground_truth.name,
        instances=instances,
        mean=moves.mean(axis=0).round(_DECIMALS).tolist(),
        std=moves.std(axis=0).round(_DECIMALS).tolist(),
    )


def _of_image(image: AnnotatedImage, found: Instances) -> npt.NDArray[np.float64]:
    """(M, 4) the errors of an image's M detections that are of an instance."""
    instances = [one for one in image.instances if one.bbox[2] > 0 and one.bbox[3] > 0]
    if not instances or not len(found):
        return np.zeros((0, 4))
    truth = np.array([one.bbox for one in instances], dtype=np.float64)
    boxes = found.pred_boxes.tensor.double().cpu().numpy()
    sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    overlap = mask_utils.iou(sides, truth, [0] * len(truth))
    same = found.pred_classes.cpu().numpy()[:, None] == np.array([one.category for one in instances])
    overlap = np.where(same, overlap, 0.0)
    moves = []
    for row in np.argsort(-found.scores.cpu().numpy(), kind="stable"):
        best = int(overlap[row].argmax())
        if overlap[row, best] < LEAST_IOU:
            continue
        overlap[:, best] = 0.0  # taken
        x, y, width, height = truth[best]
        moves.append((boxes[row] - [x, y, x + width, y + height]) / [width, height, width, height])
    return np.array(moves).reshape(-1, 4)
