"""Settings that are numbers or one of a few words: their ranges, checked before a run begins."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sam_d2.errors import UserError

_ENGINES = ("faster_coco_eval", "pycocotools")
_TASKS = ("segm", "bbox")
_SEEDS = 2**31
"""Room for the processes' own seeds below what NumPy takes, 2**32."""


@dataclass(frozen=True)
class _Range:
    """What a setting may be, in words and as a test."""

    text: str
    holds: Callable[[Any], bool]


def _whole(least: int, meaning: str = "", *, most: float = math.inf, none: str = "") -> _Range:
    """Return the range of a whole number from ``least`` up to ``most``; ``none`` says what null means, if it may be."""
    text = f"a whole number, at least {least}" if most == math.inf else f"a whole number from {least} to {most}"
    return _Range(
        text + (f": {meaning}" if meaning else "") + (f"; or null: {none}" if none else ""),
        lambda value: (value is None and bool(none)) or (type(value) is int and least <= value <= most),
    )


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _are_tasks(value: Any) -> bool:
    return value is None or (isinstance(value, ListConfig) and len(value) > 0 and all(task in _TASKS for task in value))


_STEPS = "steps"
_RANGES = {
    "train.max_iter": _whole(1, _STEPS),
    "train.seed": _whole(0, most=_SEEDS - 1),
    "train.accumulate": _whole(1, "batches of a step"),
    "train.clip_gradient_norm": _Range(
        "a number above 0, the largest norm of the gradient; or null: not clipped",
        lambda value: value is None or _is_positive(value),
    ),
    "train.checkpointer.period": _whole(1, "steps between two checkpoints"),
    "train.checkpointer.max_to_keep": _whole(1, "checkpoints", none="all are kept"),
    "train.eval_period": _whole(0, "steps between two evaluations, 0 for the one after training alone"),
    "train.log_period": _whole(1, _STEPS),
    "dataloader.train.num_workers": _whole(0, "processes"),
    "dataloader.test.num_workers": _whole(0, "processes"),
    "dataloader.evaluator.max_dets": _whole(1, "detections of an image and class", none="as many as needed"),
    "dataloader.evaluator.engine": _Range(" or ".join(_ENGINES), lambda value: value in _ENGINES),
    "dataloader.evaluator.tasks": _Range(f"a list of {' and '.join(_TASKS)}, or null", _are_tasks),
    "optimizer.lr": _Range("a number, at least 0", lambda value: value == 0 or _is_positive(value)),
}
_CORRECTIONS = _whole(0, "clicks after the first prompt")


def check_numbers(cfg: DictConfig) -> None:
    """Refuse settings out of their range, before anything is read or built; a config need not have them all.

    Raises:
        UserError: a setting is out of its range, or images would be resized to another size than the canvas. The
            message names what is wrong, and what it may be.
    """
    try:
        _check(cfg)
    except OmegaConfBaseException as error:
        raise UserError(f"the config cannot be read: {' '.join(str(error).split())[:200]}.") from error


def _check(cfg: DictConfig) -> None:
    wrong = [
        f"{key}={'null' if value is None else value}: expected {allowed.text}"
        for key, allowed in _settings(cfg)
        if not allowed.holds(value := OmegaConf.select(cfg, key))
    ]
    if wrong:
        raise UserError("; ".join(wrong) + ".")
    _check_canvas(cfg)
    tasks = OmegaConf.select(cfg, "dataloader.evaluator.tasks") or []
    source = OmegaConf.select(cfg, "dataloader.evaluator.prompt_source", default="ground_truth")
    if "bbox" in tasks and source == "ground_truth":
        raise UserError(
            f"dataloader.evaluator.tasks={tasks}: with prompts from the ground truth a bbox AP would measure the "
            "prompts. Take [segm]."
        )


def _check_canvas(cfg: DictConfig) -> None:
    """Refuse a mapper that fills only a part of the canvas: the model would be trained on another scale, unseen."""
    canvas = OmegaConf.select(cfg, "model.image_encoder.img_size")
    for part in ("train", "test", "validation"):
        size = OmegaConf.select(cfg, f"dataloader.{part}.mapper.image_size")
        if canvas is not None and size is not None and size != canvas:
            raise UserError(
                f"dataloader.{part}.mapper.image_size={size}: expected the canvas, "
                f"model.image_encoder.img_size={canvas}. Change the canvas; the mappers follow it."
            )


def _settings(cfg: DictConfig) -> Iterator[tuple[str, _Range]]:
    """Yield those settings that the config has, with their ranges."""
    missing = object()
    for key, allowed in _RANGES.items():
        if OmegaConf.select(cfg, key, default=missing) is not missing:
            yield key, allowed
    prompts: Any = OmegaConf.select(cfg, "model.prompts")
    for name, recipe in prompts.items() if isinstance(prompts, DictConfig) else ():
        for kind in ("train_corrections", "test_corrections"):
            if isinstance(recipe, DictConfig) and kind in recipe:
                yield f"model.prompts.{name!s}.{kind}", _CORRECTIONS
