"""The names that an evaluation's metrics will have, known before there is one."""

from __future__ import annotations

from collections.abc import Sequence

from sam_d2.evaluation.coco_evaluator import InstanceEvaluator
from sam_d2.evaluation.coco_metrics import evaluate_detections
from sam_d2.evaluation.domains import PREFIX
from sam_d2.evaluation.ground_truth import GroundTruth

_ABOVE_COCO = 101
"""A limit of detections with which ``AP@100`` is reported too; whether a dataset needs it, its evaluation tells."""


def metric_names(evaluator: InstanceEvaluator, prompts: Sequence[str] = ()) -> list[str]:
    """Return the names under which a training stores an evaluation's metrics, such as ``segm/AP``.

    Args:
        evaluator: of the dataset, whose ground truth it then holds.
        prompts: test prompts of the model. With several, names begin with the prompt's, and ``segm/AP`` is the mean.
    """
    if evaluator.ground_truth is None:
        evaluator.ground_truth = GroundTruth.from_catalog(evaluator.dataset_name)
    truth = evaluator.ground_truth
    nothing = GroundTruth([], truth.class_names, truth.category_ids, truth.name)
    names = [
        f"{task}/{metric}"
        for task in evaluator.tasks
        for metric in evaluate_detections(nothing, [], task=task, max_dets=evaluator.max_dets or _ABOVE_COCO)
    ]
    names += [f"{task}/{PREFIX}{domain}" for task in evaluator.tasks for domain in truth.domains]
    names += ["prompt/mIoU"] if evaluator.oracle else []
    return [*(f"{prompt}/{name}" for prompt in prompts for name in names), "segm/AP"] if len(prompts) > 1 else names
