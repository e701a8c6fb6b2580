"""Numbers of a config: everything out of its range is refused with what it may be, and nothing else is."""

import math

import pytest
from omegaconf import OmegaConf

from sam_d2.config import apply_overrides, load_config
from sam_d2.config_numbers import check_numbers
from sam_d2.errors import UserError


@pytest.fixture
def cfg(root):
    return load_config(root / "configs" / "sam_tiny.py")


def test_every_config_passes(root):
    files = [file for file in (root / "configs").glob("*.py") if file.name != "__init__.py"]
    assert len(files) > 5
    for file in files:
        check_numbers(load_config(file))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train.max_iter", 0, "a whole number, at least 1: steps"),
        ("train.max_iter", 2.5, "a whole number, at least 1"),
        ("train.max_iter", None, "a whole number, at least 1"),
        ("train.max_iter", "many", "a whole number, at least 1"),
        ("train.seed", -1, "a whole number from 0 to 2147483647"),
        ("train.seed", 2**31, "a whole number from 0 to 2147483647"),
        ("train.accumulate", 0, "at least 1: batches of a step"),
        ("train.clip_gradient_norm", -1.0, "a number above 0"),
        ("train.clip_gradient_norm", 0, "a number above 0"),
        ("train.clip_gradient_norm", math.inf, "a number above 0"),
        ("train.checkpointer.period", 0, "at least 1: steps between two checkpoints"),
        ("train.checkpointer.max_to_keep", 0, "at least 1: checkpoints; or null: all are kept"),
        ("train.eval_period", -1, "at least 0: steps between two evaluations"),
        ("train.log_period", 0, "at least 1: steps"),
        ("train.log_period", True, "at least 1: steps"),
        ("dataloader.train.num_workers", -1, "at least 0: processes"),
        ("dataloader.evaluator.max_dets", 0, "at least 1: detections of an image and class; or null"),
        ("dataloader.evaluator.engine", "foo", "faster_coco_eval or pycocotools"),
        ("dataloader.evaluator.tasks", ["mask"], "a list of segm and bbox"),
        ("dataloader.evaluator.tasks", [], "a list of segm and bbox"),
        ("dataloader.evaluator.tasks", "segm", "a list of segm and bbox"),
        ("model.prompts.clicks.train_corrections", -1, "at least 0: clicks after the first prompt"),
        ("model.prompts.clicks_5.test_corrections", -1, "at least 0: clicks after the first prompt"),
        ("optimizer.lr", -0.1, "a number, at least 0"),
        ("optimizer.lr", math.nan, "a number, at least 0"),
        ("optimizer.lr", math.inf, "a number, at least 0"),
        ("optimizer.lr", None, "a number, at least 0"),
        ("optimizer.weight_decay", -1, "a number, at least 0"),
        ("optimizer.betas", [0.9, 1.5], "two numbers, each at least 0 and less than 1"),
        ("optimizer.betas", [0.9], "two numbers"),
        ("optimizer.betas", 0.9, "two numbers"),
        ("lr_multiplier.warmup_length", 2, "a number, from 0 to 1"),
        ("lr_multiplier.warmup_factor", -1, "a number, at least 0"),
        ("train.amp.dtype", "fp16", "auto, bfloat16 or float16"),
        ("train.ema.decay", "abc", "at least 0 and less than 1; or null: no average"),
        ("train.ema.decay", 1, "at least 0 and less than 1; or null: no average"),
        ("dataloader.validation.num_workers", -1, "at least 0: processes"),
        ("model.loss_weights.loss_dice", -1, "a number, at least 0"),
        ("model.loss_weights.loss_dice", math.nan, "a number, at least 0"),
        ("model.loss_weights.loss_iou", None, "a number, at least 0"),
        ("model.freeze", "image_encoder", "a list, such as [image_encoder]"),
        ("model.freeze", None, "a list, such as [image_encoder]"),
        ("model.pixel_std", [1.0, 0, 1.0], "a list of numbers above 0"),
        ("model.pixel_std", 3, "a list of numbers above 0"),
        ("model.image_encoder.window_size", -1, "a whole number, at least 0"),
        ("model.image_encoder.patch_size", 0, "a whole number, at least 1"),
        ("model.image_encoder.num_heads", 0, "a whole number, at least 1"),
        ("model.image_encoder.num_heads", 5, "a divisor of embed_dim, 96"),
        ("model.mask_decoder.transformer.num_heads", 5, "a divisor of embedding_dim / 2, 32"),
        ("model.mask_decoder.transformer.num_heads", 64, "a divisor of embedding_dim / 2, 32"),
    ],
)
def test_out_of_range(cfg, key, value, expected):
    OmegaConf.update(cfg, key, value, force_add=True)
    with pytest.raises(UserError) as caught:
        check_numbers(cfg)
    message = str(caught.value)
    assert message.startswith(f"{key}={'null' if value is None else value}: expected ") and expected in message
    assert "\n" not in message and message.endswith(".")


@pytest.mark.parametrize(
    "override",
    [
        "train.eval_period=0",
        "train.clip_gradient_norm=1",
        "train.checkpointer.max_to_keep=null",
        "+dataloader.evaluator.max_dets=null",
        "+dataloader.evaluator.max_dets=1",
        "+dataloader.evaluator.engine=pycocotools",
        "+dataloader.evaluator.tasks=[segm]",
        "optimizer.lr=0",
        "optimizer.weight_decay=0",
        "optimizer.betas=[0,0.999]",
        "lr_multiplier.warmup_length=0",
        "lr_multiplier.warmup_factor=0",
        "train.ema.decay=0",
        "train.ema.decay=null",
        "model.loss_weights.loss_iou=0",
        "model.freeze=[]",
        "model.image_encoder.num_heads=96",
        "model.mask_decoder.transformer.num_heads=32",
        "+model.mask_decoder.transformer.attention_downsample_rate=1",
        "train.seed=0",
    ],
)
def test_within_it(cfg, override):
    check_numbers(apply_overrides(cfg, [override]))


def test_all_are_named(cfg):
    with pytest.raises(UserError, match=r"^train\.max_iter=0: expected .*; train\.log_period=0: expected "):
        check_numbers(apply_overrides(cfg, ["train.max_iter=0", "train.log_period=0"]))


def test_boxes_of_prompts_from_the_ground_truth_are_not_scored(cfg):
    cfg = apply_overrides(cfg, ["+dataloader.evaluator.tasks=[segm,bbox]"])
    with pytest.raises(UserError, match=r"dataloader\.evaluator\.tasks=\['segm', 'bbox'\]: .* Take \[segm\]"):
        check_numbers(cfg)
    check_numbers(apply_overrides(cfg, ["+dataloader.evaluator.prompt_source=detector"]))


@pytest.mark.parametrize("part", ["train", "test", "validation"])
def test_the_mappers_fill_the_canvas(cfg, part):
    with pytest.raises(UserError, match=rf"dataloader\.{part}\.mapper\.image_size=64: expected .*img_size=128"):
        check_numbers(apply_overrides(cfg, [f"dataloader.{part}.mapper.image_size=64"]))
    cfg = apply_overrides(cfg, ["model.image_encoder.img_size=64"])
    check_numbers(cfg)


def test_sizes_of_another_encoder_may_be_of_its_stages():
    check_numbers(OmegaConf.create({"model": {"image_encoder": {"embed_dim": 96, "num_heads": [1, 2], "depth": [2]}}}))


def test_a_config_without_them_passes():
    check_numbers(OmegaConf.create({"model": {}, "train": {"seed": 1}}))
