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


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _from(least: float, most: float = math.inf) -> _Range:
    """Return the range of a number from ``least`` up to ``most``."""
    text = f"at least {least}" if most == math.inf else f"from {least} to {most}"
    return _Range(f"a number, {text}", lambda value: _is_number(value) and least <= value <= most)


def _size(least: int) -> _Range:
    """Return the range of a size of SAM's encoder; of another one it may be no single number."""
    return _Range(f"a whole number, at least {least}", lambda value: type(value) is not int or value >= least)


def _are_shares(value: Any) -> bool:
    return isinstance(value, ListConfig) and len(value) == 2 and all(_is_number(one) and 0 <= one < 1 for one in value)


def _are_positive(value: Any) -> bool:
    return isinstance(value, ListConfig) and all(map(_is_positive, value))


def _are_tasks(value: Any) -> bool:
    return value is None or (isinstance(value, ListConfig) and len(value) > 0 and all(task in _TASKS for task in value))


_STEPS = "steps"
_AMP = ("auto", "bfloat16", "float16")
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
    "train.amp.dtype": _Range("auto, bfloat16 or float16", lambda value: value in _AMP),
    "train.ema.decay": _Range(
        "at least 0 and less than 1; or null: no average",
        lambda value: value is None or (_is_number(value) and 0 <= value < 1),
    ),
    "model.freeze": _Range("a list, such as [image_encoder]", lambda value: isinstance(value, ListConfig)),
    "model.pixel_std": _Range("a list of numbers above 0", _are_positive),
    "model.image_encoder.img_size": _size(1),
    "model.image_encoder.patch_size": _size(1),
    "model.image_encoder.embed_dim": _size(1),
    "model.image_encoder.depth": _size(1),
    "model.image_encoder.num_heads": _size(1),
    "model.image_encoder.window_size": _size(0),
    "model.image_encoder.out_chans": _size(1),
    "model.mask_decoder.transformer.num_heads": _size(1),
    "dataloader.train.num_workers": _whole(0, "processes"),
    "dataloader.test.num_workers": _whole(0, "processes"),
    "dataloader.validation.num_workers": _whole(0, "processes"),
    "dataloader.evaluator.max_dets": _whole(1, "detections of an image and class", none="as many as needed"),
    "dataloader.evaluator.engine": _Range(" or ".join(_ENGINES), lambda value: value in _ENGINES),
    "dataloader.evaluator.tasks": _Range(f"a list of {' and '.join(_TASKS)}, or null", _are_tasks),
    "optimizer.lr": _from(0),
    "optimizer.weight_decay": _from(0),
    "optimizer.betas": _Range("two numbers, each at least 0 and less than 1", _are_shares),
    "lr_multiplier.warmup_length": _from(0, 1),
    "lr_multiplier.warmup_factor": _from(0),
}
_HEADS = (("model.image_encoder", "embed_dim", 1), ("model.mask_decoder.transformer", "embedding_dim", 2))
"""Attention of so many channels, and by what they are divided before the heads share them."""
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
    _check_heads(cfg)
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


def _check_heads(cfg: DictConfig) -> None:
    for node, width, divisor in _HEADS:
        channels, heads = OmegaConf.select(cfg, f"{node}.{width}"), OmegaConf.select(cfg, f"{node}.num_heads")
        divisor = OmegaConf.select(cfg, f"{node}.attention_downsample_rate", default=divisor)
        if type(channels) is type(heads) is type(divisor) is int and channels // divisor % heads:
            share = "" if divisor == 1 else f" / {divisor}"
            raise UserError(f"{node}.num_heads={heads}: expected a divisor of {width}{share}, {channels // divisor}.")


def _settings(cfg: DictConfig) -> Iterator[tuple[str, _Range]]:
    """Yield those settings that the config has, with their ranges."""
    missing = object()
    for key, allowed in _RANGES.items():
        if OmegaConf.select(cfg, key, default=missing) is not missing:
            yield key, allowed
    weights: Any = OmegaConf.select(cfg, "model.loss_weights")
    for name in weights if isinstance(weights, DictConfig) else ():
        yield f"model.loss_weights.{name!s}", _from(0)
    prompts: Any = OmegaConf.select(cfg, "model.prompts")
    for name, recipe in prompts.items() if isinstance(prompts, DictConfig) else ():
        for kind in ("train_corrections", "test_corrections"):
            if isinstance(recipe, DictConfig) and kind in recipe:
                yield f"model.prompts.{name!s}.{kind}", _CORRECTIONS
