"""The names that an evaluation's metrics will have, known before there is one."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sam_d2.evaluation.coco_evaluator import InstanceEvaluator
from sam_d2.evaluation.coco_metrics import evaluate_detections
from sam_d2.evaluation.domains import PREFIX
from sam_d2.evaluation.ground_truth import GroundTruth

_ABOVE_COCO = 101
"""A limit of detections with which ``AP@100`` is reported too; whether a dataset needs it, its evaluation tells."""


def metric_names(
    evaluator: InstanceEvaluator, prompts: Sequence[str] = (), detected: Collection[str] = ()
) -> list[str]:
    """Return the names under which a training stores an evaluation's metrics, such as ``segm/AP``.

    Args:
        evaluator: of the dataset, whose ground truth it then holds.
        prompts: test prompts of the model. With several, names begin with the prompt's, and ``segm/AP`` is the mean.
        detected: those of them whose boxes a detector or a file gives: they have box AP, and no mean IoU.
    """
    if evaluator.ground_truth is None:
        evaluator.ground_truth = GroundTruth.from_catalog(evaluator.dataset_name)
    if len(prompts) == 1:
        return _names(evaluator, found=prompts[0] in detected or not evaluator.oracle)
    if not prompts:
        return _names(evaluator, found=not evaluator.oracle)
    by_prompt = ((prompt, _names(evaluator, found=prompt in detected)) for prompt in prompts)
    return [*(f"{prompt}/{name}" for prompt, names in by_prompt for name in names), "segm/AP"]


def _names(evaluator: InstanceEvaluator, *, found: bool) -> list[str]:
    """The names of one evaluation; ``found`` says that its prompts, if there are any, are not the ground truth's."""
    truth = evaluator.ground_truth
    assert truth is not None  # read by the caller
    tasks = evaluator.tasks_of(oracle=not found)
    nothing = GroundTruth([], truth.class_names, truth.category_ids, truth.name)
    names = [
        f"{task}/{metric}"
        for task in tasks
        for metric in evaluate_detections(nothing, [], task=task, max_dets=evaluator.max_dets or _ABOVE_COCO)
    ]
    names += [f"{task}/{PREFIX}{domain}" for task in tasks for domain in truth.domains]
    return names if found else [*names, "prompt/mIoU"]
