"""A dataset of boxes, and a tiny SAM with random weights in a run's folder."""

import gc
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.config import instantiate
from sam_d2.config import apply_overrides, load_config, save_config
from sam_d2.engine.checkpoint import Checkpointer

SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]


@pytest.fixture
def boxes(tmp_path) -> Path:
    """``boxes.json`` beside its 5 images of 64 x 48 and 40 x 60 px.

    Of image 30 (place 0): two boxes, one of them half outside; of 10 (1): a crowd, a box without area, one outside of
    the image, one with a mask already; of 20 (2): nothing; of 40 and 50 (3, 4): 3 and 1 boxes. Annotations of an image
    do not stand together.
    """
    rng = np.random.default_rng(5)
    images = []
    for number, id_ in enumerate((30, 10, 20, 40, 50)):
        width, height = ((64, 48), (40, 60))[number % 2]
        pixels = np.kron(
            rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8)
        )
        Image.fromarray(pixels).save(tmp_path / f"{id_}.png")
        images.append({"id": id_, "file_name": f"{id_}.png", "height": height, "width": width, "license": 4})
    images[0] = {**images[0], "captured": "2026-01-01"}
    annotations = [
        {"id": 9, "image_id": 40, "category_id": 8, "bbox": [4.0, 5, 20, 30], "iscrowd": 0, "note": "kept é"},
        {"id": 0, "image_id": 30, "category_id": 3, "bbox": [2, 2.25, 30, 20]},
        {"id": 4, "image_id": 10, "category_id": 3, "bbox": [0, 0, 1, 48], "iscrowd": 1, "area": 48,
         "segmentation": {"size": [60, 40], "counts": [0, 48, 2352]}},
        {"id": 5, "image_id": 10, "category_id": 3, "bbox": [5, 5, 0, 10], "segmentation": []},
        {"id": 6, "image_id": 10, "category_id": 3, "bbox": [50, 5, 10, 10], "segmentation": None},
        {"id": 7, "image_id": 10, "category_id": 8, "bbox": [10, 10, 20, 20], "area": 400.5, "segmentation": SQUARE},
        {"id": 1, "image_id": 30, "category_id": 3, "bbox": [50, 30, 28, 30]},
        {"id": 11, "image_id": 50, "category_id": 3, "bbox": [8, 8, 40, 30]},
        {"id": 10, "image_id": 40, "category_id": 3, "bbox": [1, 1, 38, 58]},
        {"id": 12, "image_id": 40, "category_id": 3, "bbox": [10, 20, 12, 18]},
    ]  # fmt: skip
    content = {
        "licenses": [{"id": 4, "name": "CC BY 4.0"}],
        "info": {"description": "by hand", "year": 2026},
        "categories": [{"id": 8, "name": "dog", "supercategory": "animal"}, {"id": 3, "name": "cat"}],
        "images": images,
        "annotations": annotations,
        "revision": 12,
    }
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps(content))
    return file


@pytest.fixture(scope="session")
def tiny_sam(tmp_path_factory, root, tiny_overrides, with_random_weights) -> Path:
    """Folder of a run: config.yaml and model_final.pth; its masks have borders, and pixels."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    cfg = apply_overrides(load_config(root / "configs" / "sam_tiny.py"), tiny_overrides)
    save_config(cfg, folder / "config.yaml")
    model = with_random_weights(lambda: instantiate(cfg.model), 100)
    Checkpointer(model, str(folder)).save("model_final")
    return folder


@pytest.fixture
def tool(root, monkeypatch, tiny_sam):
    """``tool(dataset, output, *words)``: run tools/masks_from_boxes.py in this process; returns its exit code."""

    def run(dataset, output, *words) -> int:
        program = str(root / "tools" / "masks_from_boxes.py")
        line = ["--dataset", dataset, "--config-file", tiny_sam, "--output", output, "--device", "cpu", *words]
        monkeypatch.setattr(sys, "argv", [program, *map(str, line)])
        monkeypatch.delenv("RANK", raising=False)
        threads = torch.get_num_threads()
        try:
            gc.collect()  # a journal is locked until its process ends, and here all runs are in one
            with pytest.raises(SystemExit) as end:
                runpy.run_path(program, run_name="__main__")
        finally:
            torch.set_num_threads(threads)
        return end.value.code

    return run


@pytest.fixture
def whole(tool, boxes, tmp_path):
    """The output of a run that nobody interrupts."""
    output = tmp_path / "whole.json"
    assert tool(boxes, output) == 0
    return output
