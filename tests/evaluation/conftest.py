"""Made ground truth and predictions in which every figure can be worked out by hand."""

from collections.abc import Callable, Iterable

import numpy as np
import pycocotools.mask as mask_utils
import pytest

import sam_d2  # noqa: F401
from detectron2.structures import BoxMode
from sam_d2.evaluation import GroundTruth, ImageDetections

SIZE = (100, 100)
Box = tuple[float, float, float, float]


def polygon(box: Box) -> list[list[float]]:
    x0, y0, x1, y1 = box
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def rectangle(box: Box, size: tuple[int, int] = SIZE) -> dict:
    """RLE of the pixels of an integer XYXY box."""
    mask = np.zeros(size, dtype=np.uint8, order="F")
    x0, y0, x1, y1 = (int(edge) for edge in box)
    mask[y0:y1, x0:x1] = 1
    return mask_utils.encode(mask)


@pytest.fixture
def make_truth() -> Callable[..., GroundTruth]:
    """``make_truth({image id: [(box, class) or (box, class, extra keys)]}, classes)``, images 100 x 100."""

    def make(images: dict, classes: Iterable[str] = ("thing",), name: str = "made") -> GroundTruth:
        dicts = []
        for image_id, boxes in images.items():
            annotations = []
            for box, category, *extra in boxes:
                annotation = {
                    "bbox": list(box),
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": category,
                    "segmentation": polygon(box),
                }
                annotations.append({**annotation, **(extra[0] if extra else {})})
            record = {
                "image_id": image_id,
                "file_name": f"{image_id}.png",
                "height": SIZE[0],
                "width": SIZE[1],
            }
            dicts.append({**record, "annotations": annotations})
        return GroundTruth.from_dataset_dicts(dicts, list(classes), name=name)

    return make


@pytest.fixture
def make_detections() -> Callable[..., ImageDetections]:
    """``make_detections(image id, [(box, score) or (box, score, class)], prompt_index)``."""

    def make(image_id: int | str, rows: list, prompt_index: list[int] | None = None) -> ImageDetections:
        full = [(*row, 0) if len(row) == 2 else row for row in rows]
        return ImageDetections(
            image_id,
            np.array([score for _, score, _ in full], dtype=np.float64),
            np.array([category for _, _, category in full], dtype=np.int64),
            np.array([box for box, _, _ in full], dtype=np.float64).reshape(-1, 4),
            [rectangle(box) for box, _, _ in full],
            None if prompt_index is None else np.array(prompt_index, dtype=np.int64),
        )

    return make


@pytest.fixture
def fed_back() -> Callable[..., list[ImageDetections]]:
    """``fed_back(truth)``: its own instances as predictions of score 1; ``boxes=True``: those without a mask too."""

    def make(truth: GroundTruth, boxes: bool = False) -> list[ImageDetections]:
        boxes_only = boxes
        found = []
        for image in truth.images:
            instances = [one for one in image.annotations if not one.crowd] if boxes_only else image.instances
            boxes = np.array([one.bbox for one in instances], dtype=np.float64).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            found.append(
                ImageDetections(
                    image.image_id,
                    np.ones(len(instances)),
                    np.array([one.category for one in instances], dtype=np.int64),
                    boxes,
                    [one.rle for one in instances],
                    np.arange(len(instances)),
                )
            )
        return found

    return make
