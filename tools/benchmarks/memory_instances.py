"""Peak memory of a training step with 313 instances in an image against 64.

It must not grow with their number. The shapes are those of SAM ViT-B: canvas 1024, embeddings of 256 x 64 x 64,
masks of 256 x 256 cells, chunks of 32 instances. The image encoder is replaced by a made embedding: it is frozen and
runs once per image whatever the number of instances, so its memory would only hide what grows. Targets, losses,
backward pass and AdamW's step are included. ``step_mib`` is what the step takes above model and annotations;
annotations as bitmaps of the resized image grow by 1 MiB per instance before it begins, which ``peak_mib`` shows.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import sam_d2  # noqa: F401  makes detectron2 importable
from benchmarks import Benchmark, Measured, Ratio, measure
from detectron2.config import LazyCall, instantiate
from detectron2.structures import BitMasks, Instances, PolygonMasks
from sam_d2.config import load_config
from sam_d2.engine.optim import parameter_groups

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "sam.py"
CANVAS = 1024
FEW, MANY = 64, 313  # 313: the most instances of an image of the ice-wedge tiles
COLUMNS = 18  # of a grid that holds them all


class MadeEmbedding(nn.Module):
    """Stands in for a frozen image encoder: any image has the same random embedding."""

    embedding: Tensor

    def __init__(self, img_size: int, patch_size: int, out_chans: int) -> None:
        super().__init__()
        self.img_size = img_size
        tokens = img_size // patch_size
        self.register_buffer("embedding", torch.randn(1, out_chans, tokens, tokens))

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, C, S/p, S/p) whatever the (B, 3, S, S) images show."""
        return self.embedding.expand(len(images), -1, -1, -1)


def made_instances(count: int, bitmaps: bool) -> Instances:
    """The first ``count`` polygons of a grid, 12 corners each, in an image that fills the canvas."""
    random = np.random.default_rng(0)
    cell = CANVAS / COLUMNS
    centres = np.array([[column + 0.5, row + 0.5] for row in range(COLUMNS) for column in range(COLUMNS)]) * cell
    angles = np.arange(12) * np.pi / 6
    corners = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    radii = random.uniform(0.3, 0.6, (len(centres), 12, 1)) * cell
    polygons = (centres[:, None] + corners * radii).reshape(len(centres), -1)
    instances = Instances((CANVAS, CANVAS))
    masks = PolygonMasks([[polygon] for polygon in polygons[:count]])
    instances.gt_boxes = masks.get_bounding_boxes()
    instances.gt_masks = BitMasks.from_polygon_masks(masks, CANVAS, CANVAS) if bitmaps else masks
    instances.gt_classes = torch.zeros(count, dtype=torch.int64)
    return instances


def training_step(count: int, bitmaps: bool) -> Measured:
    cfg = load_config(CONFIG)
    cfg.model.image_encoder = LazyCall(MadeEmbedding)(img_size=CANVAS, patch_size=16, out_chans=256)
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=1e-4)
    image = torch.zeros((3, CANVAS, CANVAS), dtype=torch.uint8)
    sample = {"image": image, "instances": made_instances(count, bitmaps), "seed": 0}

    def step() -> list[float]:
        losses = model([sample])
        sum(losses.values()).backward()
        optimizer.step()
        return [loss.item() for loss in losses.values()]

    answer, figures = measure(step)
    return Measured(figures, answer)


BENCHMARK = Benchmark(
    cases={
        f"{kind}, {count}": partial(training_step, count, kind == "bitmaps")
        for kind in ("polygons", "bitmaps")
        for count in (FEW, MANY)
    },
    ratios=(
        Ratio("step_mib", f"polygons, {MANY}", f"polygons, {FEW}", limit=1.15),
        Ratio("peak_mib", f"polygons, {MANY}", f"polygons, {FEW}", limit=1.15),
        Ratio("step_mib", f"bitmaps, {MANY}", f"bitmaps, {FEW}", limit=1.15),
        Ratio("peak_mib", f"bitmaps, {MANY}", f"bitmaps, {FEW}", limit=1.15),
        Ratio("seconds", f"polygons, {MANY}", f"polygons, {FEW}"),
    ),
    same_answers=tuple((f"polygons, {count}", f"bitmaps, {count}") for count in (FEW, MANY)),
)
