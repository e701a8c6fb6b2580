"""How far a detector's boxes lie from the instances that they are of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pycocotools.mask as mask_utils

from detectron2.structures import Instances
from sam_d2.data.edge_errors import EdgeErrors
from sam_d2.errors import UserError
from sam_d2.evaluation.box_matching import LEAST_IOU, Floats, match_boxes
from sam_d2.evaluation.ground_truth import AnnotatedImage, Annotation, GroundTruth, ImageId

_DECIMALS = 5


def edge_errors(
    ground_truth: GroundTruth,
    found: Callable[[ImageId], Instances],
    *,
    detector: str = "",
    recompute_boxes: bool = False,
) -> EdgeErrors:
    """Measure the boxes of a detector.

    Detections are matched with instances of their class, one-to-one
    (:func:`~sam_d2.evaluation.box_matching.match_boxes`). Crowd regions, instances without a mask and boxes without
    area are left out.

    Args:
        ground_truth: Of the dataset.
        found: Gives the detections of an image: ``pred_boxes``, ``scores`` and ``pred_classes``.
        detector: File of its weights, to be kept with the errors.
        recompute_boxes: Measure against the tight boxes of the masks, as the mapper of the training with these errors
            has them where it is told the same; else against the file's.

    Raises:
        UserError: No detection is of an instance.
    """
    moves = np.concatenate(
        [
            np.zeros((0, 4)),
            *(_of_image(found(one.image_id), _instances(one, recompute_boxes)) for one in ground_truth.images),
        ]
    )
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
        boxes="mask" if recompute_boxes else "file",
        mean=moves.mean(axis=0).round(_DECIMALS).tolist(),
        std=moves.std(axis=0).round(_DECIMALS).tolist(),
    )


def _instances(image: AnnotatedImage, recompute_boxes: bool) -> list[Annotation]:
    """The image's instances with the boxes that a mapper gives them; one whose mask has no pixel keeps the file's."""
    if not recompute_boxes:
        return image.instances
    instances = []
    for one in image.instances:
        x, y, width, height = map(float, mask_utils.toBbox(one.rle))
        instances.append(one._replace(bbox=(x, y, width, height)) if width * height else one)
    return instances


def _of_image(found: Instances, instances: list[Annotation]) -> Floats:
    """(M, 4) the errors of an image's M detections that are of an instance, by falling score."""
    boxes = found.pred_boxes.tensor.double().cpu().numpy()
    scores, classes = found.scores.double().cpu().numpy(), found.pred_classes.cpu().numpy()
    matched = match_boxes(boxes, scores, classes, instances)
    moves = []
    for row in np.argsort(-scores, kind="stable"):
        if matched[row] >= 0:
            x, y, width, height = instances[matched[row]].bbox
            moves.append((boxes[row] - [x, y, x + width, y + height]) / [width, height, width, height])
    return np.array(moves).reshape(-1, 4)
