"""A training step of the tiny SAM, 4 images of 10 to 300 prompts: how prompts are put together.

The images have 10, 50, 100 and 300 box prompts. sam_d2 decodes chunks of 32 prompts of any image. The others are the
same model and losses with segment_anything's own decoder: chunks of 32 prompts of one image, image by image, and one
call per instance. Same random weights; the step is losses and gradients, whose values and sizes are the answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from segment_anything.modeling import MaskDecoder

import sam_d2  # noqa: F401  makes detectron2 importable
from benchmarks import Benchmark, Measured, Ratio, device, measure
from detectron2.config import instantiate
from detectron2.structures import Instances, PolygonMasks
from sam_d2.config import load_config

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "sam_tiny.py"
COUNTS, SIDE = (10, 50, 100, 300), 128


def sample(count: int, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    corners = random.uniform(4, SIDE - 24, (count, 2)).astype(np.float32)
    sides = random.uniform(4, 20, (count, 2)).astype(np.float32)
    (x0, y0), (x1, y1) = corners.T, (corners + sides).T
    rectangles = np.stack([x0, y0, x1, y0, x1, y1, x0, y1], axis=1)
    masks = PolygonMasks([[one.astype(np.float64)] for one in rectangles])
    instances = Instances((SIDE, SIDE), gt_masks=masks, gt_boxes=masks.get_bounding_boxes())
    instances.gt_classes = torch.zeros(count, dtype=torch.int64)
    image = torch.from_numpy(random.integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8))
    return {"image": image, "instances": instances, "height": SIDE, "width": SIDE, "seed": seed}


def training_step(shared: bool, chunk: int) -> Measured:
    cfg = load_config(CONFIG)
    if not shared:
        cfg.model.mask_decoder._target_ = MaskDecoder
    cfg.model.instances_per_chunk = chunk
    torch.manual_seed(0)
    model = instantiate(cfg.model).to(device()).train()

    def run(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        model.zero_grad()
        losses = model(samples)
        sum(losses.values()).backward()
        return losses

    run([sample(2, 9)])
    samples = [sample(count, seed) for seed, count in enumerate(COUNTS)]
    losses, figures = measure(lambda: run(samples))
    sizes = [one.grad.norm() for one in model.parameters() if one.grad is not None]
    return Measured(figures, [one.item() for one in (*losses.values(), *sizes)])


OURS, PER_IMAGE, PER_INSTANCE = "sam_d2", "image by image", "instance by instance"

BENCHMARK = Benchmark(
    cases={
        OURS: lambda: training_step(True, 32),
        PER_IMAGE: lambda: training_step(False, 32),
        PER_INSTANCE: lambda: training_step(False, 1),
    },
    ratios=(
        Ratio("seconds", OURS, PER_INSTANCE, at_least=3.0),
        Ratio("seconds", OURS, PER_IMAGE, at_least=1.0 if device() == "cpu" else 2.0),
        Ratio("step_mib", OURS, PER_IMAGE, limit=1.0),
        *(Ratio("cpu_seconds", OURS, other) for other in (PER_INSTANCE, PER_IMAGE)),
    ),
    same_answers=((OURS, PER_IMAGE, PER_INSTANCE),),
    tolerance=1e-4 if device() == "cpu" else 1e-3,
    gpu=True,
)
