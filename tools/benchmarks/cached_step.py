"""A training step of SAM ViT-B with a frozen encoder and cached embeddings, against one without.

Twenty box prompts of one made image, canvas 1024, random weights, AdamW on the mask decoder. ``seconds`` are those of
a mean step of 20 epochs: the first one encodes the image and fills the cache, the others read it. The peer is
segment_anything's modules as a training loop without a cache has them: the encoder in each step, the prompts of an
image at once, masks upsampled to the image, Dice on them. The losses are not the same; the answers compared are the
low-res logits and predicted IoU of all prompts before the first step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segment_anything import sam_model_registry
from torch import Tensor

import sam_d2  # noqa: F401  makes detectron2 importable
from benchmarks import Benchmark, Measured, Ratio, device, measure
from detectron2.config import instantiate
from detectron2.structures import Instances, PolygonMasks
from sam_d2.config import apply_overrides, load_config
from sam_d2.engine.optim import parameter_groups
from sam_d2.modeling.embedding_cache import EmbeddingCache
from sam_d2.modeling.prompts import Prompts

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CANVAS, PROMPTS, EPOCHS, LATER = 1024, 20, 20, 3


def made_instances() -> Instances:
    """Return polygons of 12 corners, 4 rows of 5 in an image that fills the canvas."""
    angles = np.arange(12) * np.pi / 6
    corners = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    centres = [(100 + 200 * column, 128 + 256 * row) for row in range(4) for column in range(5)]
    polygons = [(np.array(centre) + 80 * corners).reshape(-1) for centre in centres]
    instances = Instances((CANVAS, CANVAS))
    instances.gt_masks = PolygonMasks([[polygon] for polygon in polygons])
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    instances.gt_classes = torch.zeros(PROMPTS, dtype=torch.int64)
    return instances


def made_image() -> Tensor:
    return torch.randint(0, 256, (3, CANVAS, CANVAS), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def seeded_sam(size: str) -> Any:
    torch.manual_seed(0)
    return sam_model_registry[size]()


def of_epochs(step: Callable[[], object], later: int = LATER) -> dict[str, float]:
    """Return the figures of a mean step of all epochs, from the first step and some of the later ones."""
    _, first = measure(step)
    others = [measure(step)[1] for _ in range(later)]
    figures: dict[str, float] = {}
    for name in ("seconds", "cpu_seconds"):
        mean = sum(found[name] for found in others) / later
        figures |= {name: (first[name] + (EPOCHS - 1) * mean) / EPOCHS, f"later_{name}": mean}
    return figures | {"peak_mib": max(found["peak_mib"] for found in (first, *others))}


def ours(size: str, config: str, dtype: str) -> Measured:
    cfg = apply_overrides(load_config(CONFIGS / config), ["train.init_checkpoint=", "model.prompts.box.train.jitter=0"])
    model = instantiate(cfg.model)
    model.load_state_dict(seeded_sam(size).state_dict(), strict=True)
    model.to(device()).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=1e-4)
    instances = made_instances()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "image"
        file.write_bytes(made_image().numpy().tobytes())
        names = {"file_name": str(file), "cache_variant": "plain", "height": CANVAS, "width": CANVAS}
        sample = {"image": made_image(), "instances": instances, "seed": 0, **names}
        model.embedding_cache = EmbeddingCache(Path(folder) / "cache", dtype=dtype)

        def step() -> None:
            optimizer.zero_grad()
            sum(model([sample]).values()).backward()
            optimizer.step()

        model(  # warm up with an image of its own, which leaves the cache empty of the measured one
            [{**sample, "cache_variant": "warm-up"}]
        )
        with torch.no_grad():
            embedding = model._embeddings([{**sample, "cache_variant": "warm-up"}])
            answer = model.decode(embedding[0], Prompts(boxes=instances.gt_boxes.tensor).to(device()))
        return Measured(of_epochs(step), answered(*answer))


def system_1(size: str, later: int) -> Measured:
    sam = seeded_sam(size).to(device())
    sam.image_encoder.requires_grad_(False)
    sam.prompt_encoder.requires_grad_(False)
    optimizer = torch.optim.AdamW(sam.mask_decoder.parameters(), lr=1e-4)
    instances = made_instances()
    masks = np.stack([instances.gt_masks[row : row + 1].polygons[0][0] for row in range(PROMPTS)])
    truth = torch.stack([drawn(polygon) for polygon in masks]).float().to(device())
    image = sam.preprocess(made_image()[None].to(device()))
    boxes = instances.gt_boxes.tensor.to(device())

    def low_res() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            embedding = sam.image_encoder(image)
            sparse, dense = sam.prompt_encoder(points=None, boxes=boxes, masks=None)
        return sam.mask_decoder(
            image_embeddings=embedding,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )

    def step() -> None:
        optimizer.zero_grad()
        logits = sam.postprocess_masks(low_res()[0], (CANVAS, CANVAS), (CANVAS, CANVAS))[:, 0]
        found = logits.sigmoid()
        overlap, total = (found * truth).sum(dim=(1, 2)), found.sum(dim=(1, 2)) + truth.sum(dim=(1, 2))
        (1 - (2 * overlap + 1) / (total + 1)).mean().backward()
        optimizer.step()

    with torch.no_grad():
        answer = answered(*low_res())
    return Measured(of_epochs(step, later), answer)


def drawn(polygon: np.ndarray) -> Tensor:
    from detectron2.structures import BitMasks

    return BitMasks.from_polygon_masks([[polygon]], CANVAS, CANVAS).tensor[0]


def answered(logits: Tensor, predicted_iou: Tensor) -> list[float]:
    return [*logits[:, 0, ::32, ::32].flatten().tolist(), *predicted_iou.flatten().tolist()]


def benchmark(size: str, config: str, *, at_least: float, later: int) -> Benchmark:
    """Return the comparison for a size of SAM."""
    exact, half, peer = "cached, float32", "cached, bfloat16", "segment_anything, no cache"
    return Benchmark(
        cases={
            exact: partial(ours, size, config, "float32"),
            half: partial(ours, size, config, "bfloat16"),
            peer: partial(system_1, size, later),
        },
        ratios=(
            Ratio("seconds", exact, peer, at_least=at_least),
            Ratio("cpu_seconds", exact, peer),
            Ratio("peak_mib", exact, peer),
            Ratio("seconds", half, peer),
        ),
        same_answers=((exact, peer),),
        tolerance=1e-4 if device() == "cpu" else 1e-3,
        peer=lambda: f"segment_anything {version('segment-anything')}",
        gpu=True,
    )


BENCHMARK = benchmark("vit_b", "sam.py", at_least=2.5, later=LATER)
