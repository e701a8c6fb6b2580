"""COCO AP of boxes and masks: sam_d2's evaluation against pycocotools, the same figures to 1e-12.

500 images of 480 x 640 pixels with 8,000 instances of 80 classes and 24,000 detections: from the parsed file of
annotations and the list of results to the figures, on both sides. The peer is COCO, loadRes and COCOeval for each
kind, with its own limit of 100 detections; the answers are the 12 figures that it prints for each, 0-1. sam_d2's
evaluation, which rounds per cent to 10 decimals, has those of each class too. Two images warm the libraries up.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import sam_d2  # noqa: F401  makes detectron2 importable
from benchmarks import Benchmark, Measured, Ratio, measure
from sam_d2.evaluation import GroundTruth, detections_from_coco, evaluate_detections

IMAGES, INSTANCES, DETECTIONS, CLASSES, SIZE = 500, 16, 3, 80, (480, 640)
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


Made = tuple[dict[str, Any], list[dict[str, Any]]]


def made(images: int) -> Made:
    """Return a COCO dataset and results: of each instance three masks that are off by some pixels, a fifth misnamed."""
    random = np.random.default_rng(0)
    angles = np.arange(24) * 2 * np.pi / 24

    def outline(x: float, y: float, width: float, height: float) -> dict[str, Any]:
        wave = 1 + 0.15 * np.sin(3 * angles + random.uniform(0, 6))
        points = np.stack([x + width * wave * np.cos(angles), y + height * wave * np.sin(angles)], axis=1)
        rle = mask_util.frPyObjects([points.clip(0, SIZE[::-1]).ravel().tolist()], *SIZE)[0]
        return {
            "segmentation": {"size": list(SIZE), "counts": rle["counts"].decode()},
            "bbox": mask_util.toBbox(rle).tolist(),
            "area": float(mask_util.area(rle)),
        }

    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        for _ in range(INSTANCES):
            place = random.uniform((30, 30), (SIZE[1] - 30, SIZE[0] - 30))
            sides, category = random.uniform(8, 90, 2), int(random.integers(CLASSES)) + 1
            record = {"id": len(annotations) + 1, "image_id": image, "category_id": category, "iscrowd": 0}
            annotations.append({**record, **outline(*place, *sides)})
            for _ in range(DETECTIONS):
                moved = outline(*(place + random.normal(0, 6, 2)), *(sides * random.uniform(0.8, 1.2, 2)))
                named = category if random.random() < 0.8 else int(random.integers(CLASSES)) + 1
                del moved["area"]
                results.append({"image_id": image, "category_id": named, "score": float(random.random()), **moved})
    records = [
        {"id": one, "file_name": f"{one}.jpg", "height": SIZE[0], "width": SIZE[1]} for one in range(1, images + 1)
    ]
    categories = [{"id": one, "name": str(one)} for one in range(1, CLASSES + 1)]
    return {"images": records, "categories": categories, "annotations": annotations}, results


def measured(run: Callable[[Made], list[float]]) -> Measured:
    run(made(2))  # libraries warm up
    everything = made(IMAGES)
    return Measured(*reversed(measure(lambda: run(everything))))


def ours(given: Made) -> list[float]:
    dataset, results = given
    truth = GroundTruth.from_coco(dataset)
    found = detections_from_coco(results, truth)
    rows = [evaluate_detections(truth, found, task=task, max_dets=100) for task in ("bbox", "segm")]
    return [row[name] / 100 for row in rows for name in METRICS]


def peer(given: Made) -> list[float]:
    dataset, results = given
    figures: list[float] = []
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset
        truth.createIndex()
        # Where results have boxes, loadRes takes them for the extent of the masks too.
        masks = [{name: value for name, value in row.items() if name != "bbox"} for row in results]
        for task, rows in (("bbox", results), ("segm", masks)):
            evaluator = COCOeval(truth, truth.loadRes(rows), task)
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
            figures += evaluator.stats.tolist()
    return figures


OURS, PEER = "sam_d2", "pycocotools"

BENCHMARK = Benchmark(
    cases={OURS: partial(measured, ours), PEER: partial(measured, peer)},
    ratios=(
        Ratio("seconds", OURS, PEER, at_least=2.5),
        *(Ratio(figure, OURS, PEER) for figure in ("cpu_seconds", "step_mib")),
    ),
    same_answers=((OURS, PEER),),
    tolerance=1e-12,
)
