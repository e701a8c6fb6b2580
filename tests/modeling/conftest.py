"""Made images with annotated instances, and small models with random weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sam_d2  # noqa: F401
from detectron2.config import instantiate
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from sam_d2.config import apply_overrides, load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CANVAS = 64
SMALL = [
    f"model.image_encoder.img_size={CANVAS}",
    "model.image_encoder.patch_size=8",
    "model.image_encoder.embed_dim=32",
    "model.image_encoder.depth=1",
    "model.image_encoder.num_heads=2",
    "model.image_encoder.out_chans=32",
    "model.mask_decoder.transformer.mlp_dim=32",
    "model.mask_decoder.transformer.num_heads=2",
    "model.mask_decoder.iou_head_hidden_dim=32",
]


def regular_polygon(x: float, y: float, radius: float, corners: int = 7) -> np.ndarray:
    angles = np.arange(corners) * 2 * np.pi / corners
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1).reshape(-1)


@pytest.fixture
def make_instances() -> Callable[..., Instances]:
    """``make_instances(polygons of each instance, (height, width), bitmaps=False)``, all of class 0."""

    def make(polygons: list[list[Any]], size: tuple[int, int], bitmaps: bool = False) -> Instances:
        instances = Instances(size)
        masks = PolygonMasks([[np.asarray(part, dtype=np.float64) for part in parts] for parts in polygons])
        boxes = masks.get_bounding_boxes() if polygons else Boxes(torch.zeros((0, 4)))
        boxes.clip(size)
        instances.gt_boxes = boxes
        instances.gt_classes = torch.zeros(len(polygons), dtype=torch.int64)
        instances.gt_masks = BitMasks.from_polygon_masks(masks.polygons, *size) if bitmaps else masks
        return instances

    return make


@pytest.fixture
def make_sample(make_instances: Callable[..., Instances]) -> Callable[..., dict[str, Any]]:
    """``make_sample(count, size)``: noise with ``count`` polygons of growing class index, as the mapper gives it."""

    def make(count: int, size: tuple[int, int], seed: int = 0, bitmaps: bool = False) -> dict[str, Any]:
        random = np.random.default_rng(seed)
        height, width = size
        polygons = [
            [regular_polygon(random.uniform(0, width), random.uniform(0, height), random.uniform(3, 15))]
            for _ in range(count)
        ]
        instances = make_instances(polygons, size, bitmaps)
        instances.gt_classes = torch.arange(count)
        return {
            "image": torch.from_numpy(random.integers(0, 256, (3, height, width), dtype=np.uint8)),
            "instances": instances,
            "height": height,
            "width": width,
            "seed": seed,
        }

    return make


@pytest.fixture
def build_model() -> Callable[..., torch.nn.Module]:
    """``build_model("model.prompt=point", ...)``: a smaller configs/sam_tiny.py, the same weights each time.

    Canvas 64, patches of 8 pixels, so 8 x 8 tokens of width 32 and masks of 32 x 32 cells.
    """

    def build(*overrides: str) -> torch.nn.Module:
        cfg = apply_overrides(load_config(CONFIGS / "sam_tiny.py"), [*SMALL, *overrides])
        torch.manual_seed(0)
        return instantiate(cfg.model)

    return build


@pytest.fixture
def batch(make_sample: Callable[..., dict[str, Any]]) -> list[dict[str, Any]]:
    """A landscape and a portrait image of the canvas with 5 and 7 instances."""
    return [make_sample(5, (48, 64), seed=1), make_sample(7, (64, 40), seed=2)]
