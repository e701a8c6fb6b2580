"""Why a detector's boxes give less than the truth's: the gap between an AP and 100, by cause.

SAM prompted with the boxes of a detector loses to a perfect result what the detector gets wrong and what SAM itself
does. The causes are repaired one after another, and each is charged with the AP that its repair brings:

1. ``classes``: detections are matched one-to-one with instances (:mod:`~sam_d2.evaluation.box_matching`), those of
   their own class first; one that then takes an instance of another class gets the class of that instance;
2. ``imprecise`` boxes: a matched detection takes the mask that SAM gave for the instance's own box;
3. ``false`` boxes: detections without an instance are left out: those on none, and a second one on the same;
4. ``ranking``: what is left takes the oracle's scores;
5. ``missed`` boxes: instances without a detection get the oracle's. Now boxes and classes are the truth's, and the AP
   is the oracle's;
6. ``masks``: what the oracle itself falls short of 100.

``boxes`` is 2 to 5, so classes, boxes and masks sum to the gap. Another order would give other shares: what two faults
cause together is charged to the one that is repaired last. A share may be negative, as where the oracle ranks its masks
worse than the detector does. Boxes and classes that are all right have no share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from sam_d2.evaluation.box_matching import Floats, Rows, match_boxes
from sam_d2.evaluation.coco_metrics import evaluate_detections
from sam_d2.evaluation.detections import ImageDetections
from sam_d2.evaluation.ground_truth import AnnotatedImage, GroundTruth, ImageId

CAUSES = ("classes", "boxes", "masks")
BOX_CAUSES = ("imprecise", "false", "ranking", "missed")

_Boxes = Callable[[ImageId], Floats]


@dataclass(frozen=True)
class Gap:
    """What each cause takes from 100, in AP.

    Attributes:
        oracle: AP with the truth's boxes and classes, 0-100.
        classes: Share of wrong classes.
        imprecise: Share of boxes that lie on an instance, but not well.
        false: Share of boxes on no instance, and of a second on the same.
        ranking: Share of the detections' scores against the oracle's.
        missed: Share of instances without a box.
        masks: Share of the masks that SAM gives in true boxes.
    """

    oracle: float
    classes: float
    imprecise: float
    false: float
    ranking: float
    missed: float
    masks: float

    @property
    def boxes(self) -> float:
        """Share of the boxes, and of how they are ranked."""
        return self.imprecise + self.false + self.ranking + self.missed

    @property
    def total(self) -> float:
        """All together: 100 minus the AP."""
        return self.classes + self.boxes + self.masks

    def metrics(self) -> dict[str, float | None]:
        """The shares as metrics of a result: ``gap`` and ``gap_<cause>``, and ``gap_oracle`` the oracle's AP."""
        causes = ("oracle", *CAUSES, *BOX_CAUSES)
        return {"gap": self.total, **{f"gap_{cause}": getattr(self, cause) for cause in causes}}


def explain_gap(
    truth: GroundTruth,
    found: Iterable[ImageDetections],
    oracle: Iterable[ImageDetections],
    boxes: _Boxes,
    *,
    max_dets: int | None = None,
) -> Gap:
    """Split the gap between 100 and the AP of masks that a detector's boxes gave.

    Args:
        truth: Of the dataset.
        found: Masks in the detector's boxes, with its classes and the scores that rank them.
        oracle: Masks in the truth's boxes, with ``prompt_index``: one for each instance.
        boxes: Of an image id the boxes (N, 4) XYXY that ``found`` was prompted with, row by row.
        max_dets: As in :func:`~sam_d2.evaluation.coco_metrics.evaluate_detections`.

    Returns:
        Shares that sum to 100 minus the AP of ``found``, to rounding; NaN where there is no instance.
    """
    masks = {image.image_id: image for image in oracle}
    steps: list[list[ImageDetections]] = [[] for _ in range(5)]
    for image in found:
        repaired = _repair(truth[image.image_id], image, masks.get(image.image_id), boxes(image.image_id))
        for step, detections in zip(steps, (image, *repaired), strict=True):
            step.append(detections)
    aps = [evaluate_detections(truth, step, max_dets=max_dets)["AP"] for step in (*steps, masks.values())]
    classes, imprecise, false, ranking, missed = (after - before for before, after in pairwise(aps))
    return Gap(aps[-1], classes, imprecise, false, ranking, missed, 100 - aps[-1])


def _repair(
    image: AnnotatedImage,
    found: ImageDetections,
    oracle: ImageDetections | None,
    boxes: Floats,
) -> list[ImageDetections]:
    """The detections of an image with the right classes, then also masks, without false ones, then also scores."""
    if len(boxes) != len(found):
        raise ValueError(f"image id {image.image_id!r}: {len(found)} masks of {len(boxes)} boxes")
    instance = match_boxes(boxes, found.scores, found.classes, image.instances, other_classes=True)
    matched = np.flatnonzero(instance >= 0)
    answers = _answers(oracle)
    classes = found.classes.copy()
    classes[matched] = [image.instances[row].category for row in instance[matched]]
    classified = replace(found, classes=classes)
    precise = replace(classified, rles=list(found.rles or []), boxes=found.boxes.copy())
    for row in matched.tolist():
        answer = answers.get(int(instance[row]))
        if answer is not None and oracle is not None and oracle.rles is not None and precise.rles is not None:
            precise.rles[row] = oracle.rles[answer]
            precise.boxes[row] = oracle.boxes[answer]
    true = _rows(precise, matched)
    ranked = replace(true, scores=true.scores.copy())
    for place, row in enumerate(matched.tolist()):
        answer = answers.get(int(instance[row]))
        if answer is not None and oracle is not None:
            ranked.scores[place] = oracle.scores[answer]
    return [classified, precise, true, ranked]


def _answers(oracle: ImageDetections | None) -> Mapping[int, int]:
    """The oracle's row of each instance."""
    if oracle is None or oracle.prompt_index is None:
        return {}
    return {int(instance): row for row, instance in enumerate(oracle.prompt_index)}


def _rows(image: ImageDetections, rows: Rows) -> ImageDetections:
    """Some of an image's detections."""
    rles = None if image.rles is None else [image.rles[row] for row in rows.tolist()]
    return ImageDetections(image.image_id, image.scores[rows], image.classes[rows], image.boxes[rows], rles)
