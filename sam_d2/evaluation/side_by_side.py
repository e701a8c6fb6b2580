"""An image twice: with its ground truth on the left, and with what a model predicted on the right."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_utils
import torch

from detectron2.structures import Boxes, Instances
from sam_d2.evaluation.detections import ImageDetections
from sam_d2.evaluation.ground_truth import RLE, AnnotatedImage
from sam_d2.evaluation.overlay import draw_instances
from sam_d2.evaluation.results import PSEUDO

_HEADING = 28
"""Pixels above the images for what they are."""
_LEAST_SIDE = 512
"""Pixels of an image's long side: smaller ones are enlarged, so that labels do not hide what they name."""


def side_by_side(
    image: npt.NDArray[np.uint8],
    truth: AnnotatedImage,
    found: ImageDetections | None,
    class_names: Sequence[str],
    min_score: float,
) -> npt.NDArray[np.uint8]:
    """Draw an image's instances and its predictions beside each other.

    Args:
        image: (H0, W0, 3) uint8 RGB.
        truth: of the image; crowd regions and instances without a mask are not drawn.
        found: of the image; None where nothing was predicted.
        class_names: by contiguous class id.
        min_score: least score of a prediction that is drawn.

    Returns:
        (heading + k H0, k W0 + gap + k W0, 3) uint8 RGB, where k is 1 unless the image is small.
    """
    factor = -(-_LEAST_SIDE // max(truth.size))
    image = np.asarray(image.repeat(factor, axis=0).repeat(factor, axis=1), dtype=np.uint8)
    annotated = truth.instances
    left = draw_instances(
        image,
        _instances([one.rle for one in annotated], [one.category for one in annotated], truth.size, factor),
        [class_names[one.category] for one in annotated],
    )
    rows = [] if found is None else np.flatnonzero(found.scores >= min_score).tolist()
    rles = [] if found is None or found.rles is None else [found.rles[row] for row in rows]
    classes = [] if found is None else found.classes[rows].tolist()
    scores = [] if found is None else found.scores[rows].tolist()
    labels = [f"{class_names[index]} {score:.2f}" for index, score in zip(classes, scores, strict=True)]
    right = draw_instances(image, _instances(rles, classes, truth.size, factor), labels)
    panels = [
        _with_heading(left, f"{PSEUDO if truth.pseudo else 'ground truth'}: {len(annotated)}"),
        _with_heading(right, f"predicted: {len(rows)}"),
    ]
    gap = np.full((len(panels[0]), 4, 3), 255, dtype=np.uint8)
    return np.concatenate([panels[0], gap, panels[1]], axis=1)


def _instances(rles: Sequence[RLE], classes: Sequence[int], size: tuple[int, int], factor: int) -> Instances:
    """Return masks as the overlay takes predictions, on the CPU, in ``factor`` times the original ``size`` (h, w)."""
    result = Instances((size[0] * factor, size[1] * factor))
    masks = np.array([mask_utils.decode(rle) for rle in rles], dtype=bool).reshape(-1, *size)
    corners = np.array([mask_utils.toBbox(rle) for rle in rles], dtype=np.float32).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    result.pred_masks = torch.from_numpy(masks.repeat(factor, axis=1).repeat(factor, axis=2))
    result.pred_boxes = Boxes(torch.from_numpy(corners * factor))
    result.pred_classes = torch.tensor(list(classes), dtype=torch.int64)
    return result


def _with_heading(image: npt.NDArray[np.uint8], text: str) -> npt.NDArray[np.uint8]:
    heading = np.full((_HEADING, image.shape[1], 3), 255, dtype=np.uint8)
    cv2.putText(heading, text, (6, _HEADING - 9), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([heading, image], axis=0)
