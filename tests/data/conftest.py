"""Dataset files for the tests of sam_d2.data."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

# Images are searched for in all folders above the file too: their names must be none that could lie up there.
# Two images of 8 x 6 px (height, width), given in descending order of ids; category ids with a gap, unsorted.
# The square polygon [1, 1] to [3, 4] has area 2 * 3 = 6 and the box XYWH [1, 1, 2, 3].
SQUARE = [[1, 1, 3, 1, 3, 4, 1, 4]]
COCO = {
    "info": {"description": "made by hand"},
    "images": [
        {"id": 20, "file_name": "sam_d2_test_b.png", "height": 8, "width": 6},
        {"id": 10, "file_name": "sam_d2_test_a.png", "height": 8, "width": 6},
    ],
    "annotations": [
        {"id": 0, "image_id": 10, "category_id": 7, "bbox": [1, 1, 2, 3], "iscrowd": 0, "area": 6,
         "segmentation": SQUARE},
        # 8 x 6 = 48 pixels, 10 background, 4 foreground, 34 background
        {"id": 2, "image_id": 20, "category_id": 3, "bbox": [1, 2, 1, 4], "iscrowd": 1, "area": 4,
         "segmentation": {"size": [8, 6], "counts": [10, 4, 34]}},
        {"id": 1, "image_id": 10, "category_id": 3, "bbox": [1, 1, 2, 3], "iscrowd": 0, "area": 6,
         "segmentation": SQUARE},
    ],
    "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
}  # fmt: skip
DICTS = [
    {
        "file_name": "sam_d2_test_b.png", "height": 8, "width": 6, "image_id": 5,
        "annotations": [{"bbox": [1, 1, 3, 4], "bbox_mode": 0, "category_id": 1, "segmentation": SQUARE}],
    },
    {"file_name": "sam_d2_test_a.png", "height": 8, "width": 6, "image_id": 4, "annotations": []},
]  # fmt: skip


@pytest.fixture
def coco() -> dict:
    return json.loads(json.dumps(COCO))


@pytest.fixture
def dicts() -> list[dict]:
    return json.loads(json.dumps(DICTS))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a dataset file, and an empty file for each of its images beside it."""

    def write_dataset(content: object, name: str = "dataset.json", images: str = ".") -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
        folder = file.parent / images
        folder.mkdir(parents=True, exist_ok=True)
        for image in ("sam_d2_test_a.png", "sam_d2_test_b.png"):
            (folder / image).touch()
        return file

    return write_dataset
