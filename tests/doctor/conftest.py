"""A sound dataset file for the doctor's tests, with its images."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

# Two images of 40 x 30 px (width, height), each with a square of 10 x 10 px and a triangle.
# Square [5, 5] to [15, 15]: area 100. Triangle (20, 5), (30, 5), (20, 15): encloses 50 px^2, and pycocotools draws 45:
# of the rows under the diagonal 9, 8, ..., 1 pixels lie inside, and none of the tenth.
SQUARE = [5, 5, 15, 5, 15, 15, 5, 15]
TRIANGLE = [20, 5, 30, 5, 20, 15]
WIDTH, HEIGHT = 40, 30


def coco_content() -> dict[str, Any]:
    images, annotations = [], []
    for number in (1, 2):
        images.append({"id": number, "file_name": f"doctor_{number}.png", "width": WIDTH, "height": HEIGHT})
        for category, polygon, area in ((1, SQUARE, 100), (2, TRIANGLE, 45)):
            x, y = polygon[:2]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": category, "bbox": [x, y, 10, 10],
                 "area": area, "iscrowd": 0, "segmentation": [list(polygon)]}
            )  # fmt: skip
    categories = [{"id": 1, "name": "square"}, {"id": 2, "name": "triangle"}]
    return {"info": {"year": 2026}, "images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def coco() -> dict[str, Any]:
    """Annotations 1 and 2 are of image 1, 3 and 4 of image 2; odd ones are squares."""
    return coco_content()


@pytest.fixture
def dicts() -> list[dict[str, Any]]:
    """The same scene in Detectron2's form."""
    content = coco_content()
    return [
        {"file_name": image["file_name"], "width": WIDTH, "height": HEIGHT, "image_id": image["id"],
         "annotations": [
             {"bbox": [one["bbox"][0], one["bbox"][1], one["bbox"][0] + 10, one["bbox"][1] + 10], "bbox_mode": 0,
              "category_id": one["category_id"] - 1, "segmentation": one["segmentation"]}
             for one in content["annotations"] if one["image_id"] == image["id"]
         ]}
        for image in content["images"]
    ]  # fmt: skip


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """``write(content, name)``: a dataset file in the test's folder, with two images of noise beside it."""

    def write_dataset(content: object, name: str = "dataset.json") -> Path:
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        for number in (1, 2):
            path = tmp_path / f"doctor_{number}.png"
            if not path.exists():
                Image.fromarray(noise(number, HEIGHT, WIDTH, 3)).save(path)
        return file

    return write_dataset
