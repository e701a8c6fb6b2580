"""From low-res logits to boxes, areas and run lengths, against segment_anything with pycocotools.

100 masks of an image of 1200 x 1600 pixels, canvas 1024: objects of 6 to 30 % of the image's height, as instances are,
or of half the image each, where there is the most to do. The peer is Sam.postprocess_masks, the threshold, and
pycocotools' encode, area and toBbox mask by mask; sam_d2 works out stability and mean probability in the same pass. The
answers are areas, boxes and checksums of the codes, which must be equal.
"""

from __future__ import annotations

import zlib
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from segment_anything.modeling import Sam

from benchmarks import Benchmark, Measured, Ratio, device, measure
from sam_d2.modeling.postprocess import encode_logits

CANVAS, RESIZED, ORIGINAL = 1024, (768, 1024), (1200, 1600)
MASKS, CELLS = 100, 256
RADII = {"objects": (8.0, 40.0), "half the image": (100.0, 130.0)}


def made_logits(radii: tuple[float, float]) -> torch.Tensor:
    """Return (100, 256, 256) logits of wavy discs, as steep as SAM's, with noise."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(CELLS), torch.arange(CELLS), indexing="ij")
    logits = []
    for u, v, size in torch.rand(MASKS, 3, generator=generator).tolist():
        dx, dy = x - u * CELLS, y - v * CELLS * RESIZED[0] / CANVAS
        angle = torch.atan2(dy, dx)
        radius = (radii[0] + size * (radii[1] - radii[0])) * (1 + 0.2 * (5 * angle).sin() + 0.1 * (11 * angle).sin())
        logits.append((1.5 * (radius - dx.hypot(dy))).clamp(-12, 12) + 0.3 * torch.randn(x.shape, generator=generator))
    return torch.stack(logits).to(device())


def answer(areas: Any, boxes: Any, rles: list[dict[str, Any]]) -> list[float]:
    codes = [float(zlib.crc32(rle["counts"])) for rle in rles]
    return [*np.asarray(areas, float).tolist(), *np.asarray(boxes, float).ravel().tolist(), *codes]


def ours(radii: tuple[float, float]) -> Measured:
    logits = made_logits(radii)
    encode_logits(logits[:1], CANVAS, RESIZED, ORIGINAL)
    codes, figures = measure(lambda: encode_logits(logits, CANVAS, RESIZED, ORIGINAL))
    return Measured(figures, answer(codes.areas, codes.boxes, codes.rles))


def peer(radii: tuple[float, float]) -> Measured:
    logits = made_logits(radii)
    sam: Any = SimpleNamespace(image_encoder=SimpleNamespace(img_size=CANVAS))

    def run(logits: torch.Tensor) -> tuple[list[Any], list[Any], list[Any]]:
        masks = (Sam.postprocess_masks(sam, logits[:, None], RESIZED, ORIGINAL) > 0)[:, 0].cpu().numpy()
        rles = [mask_util.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
        return [mask_util.area(rle) for rle in rles], [mask_util.toBbox(rle) for rle in rles], rles

    run(logits[:1])
    (areas, boxes, rles), figures = measure(lambda: run(logits))
    edges = np.array(boxes)
    edges[:, 2:] += edges[:, :2]
    return Measured(figures, answer(areas, edges, rles))


WAYS = {"sam_d2": ours, "segment_anything": peer}
PAIRS = tuple(tuple(f"{name}, {way}" for way in WAYS) for name in RADII)

BENCHMARK = Benchmark(
    cases={f"{name}, {way}": partial(run, radii) for name, radii in RADII.items() for way, run in WAYS.items()},
    ratios=(
        Ratio("seconds", *PAIRS[0], at_least=4.0),
        Ratio("step_mib", *PAIRS[0], at_least=5.0),
        *(Ratio(figure, *PAIRS[1]) for figure in ("seconds", "step_mib")),
        *(Ratio("cpu_seconds", *pair) for pair in PAIRS),
    ),
    same_answers=PAIRS,
    tolerance=0.0,
    gpu=True,
)
