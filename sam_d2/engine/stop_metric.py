"""The metric that a training is ended by: which there are, and which way is better."""

from __future__ import annotations

import difflib
from typing import Any

from torch import nn

from sam_d2.engine.distributed import in_main_process
from sam_d2.errors import UserError
from sam_d2.evaluation.coco_evaluator import InstanceEvaluator
from sam_d2.evaluation.metric_names import metric_names
from sam_d2.modeling.prompt_recipes import DETECTOR

_LOSS = "validation_loss"
_AP = "segm/AP"
_MOST_SHOWN = 20
_MAIN = ("segm/AP", "bbox/AP", "prompt/mIoU")


def main_metric(model: Any) -> tuple[str, str]:
    """Return the metric that chooses weights by default, and its words for the log.

    It is the mask AP; with several test prompts their mean, or with a detector's among them that of the detector.

    Args:
        model: its ``test_prompts``, where it has them, are what it is evaluated with, and ``prompts`` says whose boxes
            they are.
    """
    prompts: list[str] = list(getattr(model, "test_prompts", ()))
    if len(prompts) < 2:
        return _AP, _AP
    detected = [prompt for prompt in prompts if model.prompts[prompt].prompt_source == DETECTOR]
    if detected:
        own = model.prompt if model.prompt in detected else detected[0]
        return f"{own}/{_AP}", f"{own}/{_AP}"
    return _AP, f"{_AP}, mean of {', '.join(prompts[:-1])} and {prompts[-1]}:"


def less_is_better(metric: str) -> bool:
    """Tell whether a metric is the validation loss or a term of it; a class may well be called ``loss``."""
    return metric == _LOSS or metric.startswith(f"{_LOSS}_")


def require_metric(metric: str, evaluator: InstanceEvaluator, model: nn.Module, *, validation_loss: bool) -> None:
    """Refuse a metric that no evaluation of the training will give; all processes take part.

    Args:
        metric: ``train.early_stop.metric``.
        evaluator: of the test dataset.
        model: its ``test_prompts``, where it has them, are what it is evaluated with, ``prompts`` says whose boxes they
            are, and ``loss_weights`` names the terms of its loss.
        validation_loss: whether the loss on the test images is computed.

    Raises:
        UserError: there is no such metric. The message has the nearest names, or those of COCO's own metrics.
    """
    in_main_process(lambda: _require_metric(metric, evaluator, model, validation_loss))


def _require_metric(metric: str, evaluator: InstanceEvaluator, model: Any, validation_loss: bool) -> None:
    prompts: list[str] = list(getattr(model, "test_prompts", ()))
    detected = [prompt for prompt in prompts if model.prompts[prompt].prompt_source == DETECTOR]
    names = metric_names(evaluator, prompts, detected)
    terms = [f"validation_{name}" for name in getattr(model, "loss_weights", ())]
    if less_is_better(metric) and not validation_loss:
        raise UserError(f"train.early_stop.metric={metric}: it is not computed. Set train.validation_loss=true.")
    if validation_loss:
        names += [_LOSS, *(terms or [metric] * less_is_better(metric))]
    if metric in names:
        return
    ends = [name for name in names if name.endswith(f"/{metric}")]
    near = ends or difflib.get_close_matches(metric, names, n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    plain = [name for name in names if "AP-" not in name and "AR-" not in name]
    plain.sort(key=lambda name: not name.endswith(_MAIN))  # of several prompts the main ones of each
    plain = plain[:_MOST_SHOWN]
    raise UserError(
        f"train.early_stop.metric={metric}: no evaluation gives it.{hint} There are {', '.join(plain)}, and of each "
        "class segm/AP-<class>."
    )
