"""The masks of 50 boxes in one image by SAM ViT-B, from pixels to pixels.

Each library is called as its documentation says: sam_d2.Predictor, segment_anything's SamPredictor (set_image,
predict_torch) and transformers' SamProcessor and SamModel, with the same random weights, an image of 768 x 1024 pixels
and one mask per box, as bool arrays. What comes before the image (building, loading) is not counted, a first call
neither. The answers are areas of masks and predicted IoU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import Sam

from benchmarks import Benchmark, Measured, Ratio, device, measure
from benchmarks._transformers import has_transformers, renamed

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "sam.py"
SIZE, BOXES = (768, 1024), 50
TURNS = 1 if device() == "cpu" else 10
OURS, PEER, TRANSFORMERS = "sam_d2", "segment_anything", "transformers"

Predict = Callable[[np.ndarray, np.ndarray], tuple[Any, Any]]
"""From an image and boxes to (N, H, W) bool masks and (N,) predicted IoU."""


def seeded_sam() -> Sam:
    torch.manual_seed(0)
    return sam_model_registry["vit_b"]().eval()


def of_sam_d2() -> Predict:
    from sam_d2 import Predictor

    with tempfile.TemporaryDirectory() as folder:
        torch.save(seeded_sam().state_dict(), Path(folder) / "sam.pth")
        predictor = Predictor(CONFIG, Path(folder) / "sam.pth", device())

    def predict(image: np.ndarray, boxes: np.ndarray) -> tuple[Any, Any]:
        found = predictor(image, boxes=boxes)
        return found.pred_masks, found.predicted_iou

    return predict


def of_segment_anything() -> Predict:
    predictor = SamPredictor(seeded_sam().to(device()))

    def predict(image: np.ndarray, boxes: np.ndarray) -> tuple[Any, Any]:
        predictor.set_image(image)
        moved = predictor.transform.apply_boxes_torch(torch.from_numpy(boxes), image.shape[:2]).to(device())
        masks, predicted_iou, _ = predictor.predict_torch(None, None, moved, multimask_output=False)
        return masks[:, 0].cpu(), predicted_iou[:, 0].cpu()

    return predict


def of_transformers() -> Predict:
    from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

    model = SamModel(SamConfig())
    model.load_state_dict(renamed(seeded_sam().state_dict()), strict=True)
    model = model.to(device()).eval()
    processor = SamProcessor(SamImageProcessor())

    @torch.no_grad()
    def predict(image: np.ndarray, boxes: np.ndarray) -> tuple[Any, Any]:
        inputs = processor(image, input_boxes=[boxes.tolist()], return_tensors="pt").to(device())
        found = model(**inputs, multimask_output=False)
        masks = processor.image_processor.post_process_masks(
            found.pred_masks.cpu(), inputs["original_sizes"].cpu(), inputs["reshaped_input_sizes"].cpu()
        )
        return masks[0][:, 0], found.iou_scores[0, :, 0].cpu()

    return predict


def in_turns(build: Callable[[], Predict]) -> Iterator[Measured]:
    random = np.random.default_rng(0)
    # Waves: noise would make every pixel of a mask a border, and turn roundings into other areas.
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    image = np.stack(
        [127 + 120 * np.sin(rows / (9 + 7 * c)) * np.cos(columns / (23 - 5 * c)) for c in range(3)], axis=-1
    )
    corners = np.sort(random.uniform(0, 1, (BOXES, 2, 2)), axis=1) * (SIZE[1] - 1, SIZE[0] - 1)
    predict = build()
    run = partial(predict, image.astype(np.uint8), corners.reshape(BOXES, 4).astype(np.float32))
    run()
    for _ in range(TURNS):
        (masks, predicted_iou), figures = measure(run)
        areas = np.asarray(masks).reshape(BOXES, -1).sum(axis=1)
        yield Measured(figures, [*areas.astype(float).tolist(), *predicted_iou.flatten().tolist()])


PEERS = (PEER, TRANSFORMERS) if has_transformers() else (PEER,)
WAYS = {OURS: of_sam_d2, PEER: of_segment_anything, TRANSFORMERS: of_transformers}


def peer() -> str:
    others = [f"transformers {version('transformers')}"] if has_transformers() else []
    return ", ".join([f"segment_anything {version('segment-anything')}", *others])


BENCHMARK = Benchmark(
    cases={name: partial(in_turns, WAYS[name]) for name in (OURS, *PEERS)},
    ratios=(
        *(Ratio("seconds", OURS, one, at_least=1.0) for one in PEERS),
        *(Ratio(figure, OURS, one) for one in PEERS for figure in ("cpu_seconds", "step_mib")),
    ),
    same_answers=((OURS, *PEERS),),
    tolerance=1e-3,
    in_turn=((OURS, *PEERS),),
    peer=peer,
    gpu=True,
)
