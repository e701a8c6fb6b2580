"""COCO results files in the forms that tools write, and with the mistakes that they hold."""

import math

import numpy as np
import pycocotools.mask as mask_utils
import pytest

from sam_d2.errors import UserError
from sam_d2.evaluation import detections_from_coco, evaluate_detections

A = (10, 20, 30, 50)
MASK = np.zeros((100, 100), dtype=np.uint8, order="F")
MASK[20:50, 10:30] = 1
COMPRESSED = mask_utils.encode(MASK)
# down the columns of height 100: 10 columns and 20 pixels off, then 20 times 30 on and 70 off, the last up to the end
UNCOMPRESSED = {"size": [100, 100], "counts": [1020, *[30, 70] * 19, 30, 50 + 70 * 100]}
BOX = {"image_id": 1, "category_id": 0, "score": 0.5, "bbox": [10, 20, 20, 30]}
MASKED = {"image_id": 1, "category_id": 0, "score": 0.5, "segmentation": UNCOMPRESSED}


@pytest.fixture
def truth(make_truth):
    return make_truth({1: [(A, 0)], "b": [(A, 0)]}, name="tiles")


@pytest.mark.parametrize(
    "segmentation",
    [
        [[10, 20, 30, 20, 30, 50, 10, 50]],
        [[10, 20, 20, 20, 20, 50, 10, 50], [20, 20, 30, 20, 30, 50, 20, 50]],
        COMPRESSED,
        {**COMPRESSED, "counts": COMPRESSED["counts"].decode()},
        UNCOMPRESSED,
    ],
    ids=["polygon", "two polygons", "RLE bytes", "RLE text", "RLE counts"],
)
def test_every_form_of_mask(truth, segmentation):
    rows = [{**MASKED, "image_id": image_id, "segmentation": segmentation} for image_id in (1, "b")]
    found = detections_from_coco(rows, truth)
    for image in found:
        np.testing.assert_array_equal(mask_utils.decode(image.rles[0]), MASK)
        assert image.boxes.tolist() == [[*A]]
    assert evaluate_detections(truth, found)["AP"] == 100


@pytest.mark.parametrize("other", [{}, {"segmentation": []}, {"segmentation": None}])
def test_boxes_alone(truth, other):
    [found] = detections_from_coco([{**BOX, **other}, {**BOX, "score": 0.25}], truth)
    assert found.rles is None
    assert (found.boxes.tolist(), found.scores.tolist()) == ([[*A], [*A]], [0.5, 0.25])


def test_a_mask_beside_an_empty_box_has_its_own(truth):
    [found] = detections_from_coco([{**MASKED, "bbox": []}], truth)
    assert found.boxes.tolist() == [[*A]]


def without(row, key):
    return {name: value for name, value in row.items() if name != key}


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (BOX, without(BOX, "score"), "no 'score'"),
        (BOX, without(BOX, "category_id"), "no 'category_id'"),
        (BOX, without(BOX, "bbox"), "neither segmentation nor bbox"),
        (BOX, {**BOX, "score": math.nan}, "score is nan"),
        (BOX, {**BOX, "score": math.inf}, "score is inf"),
        (BOX, {**BOX, "score": None}, "cannot be used"),
        (BOX, {**BOX, "bbox": [1, 2, math.nan, 4]}, "bbox is"),
        (BOX, {**BOX, "bbox": [1, 2, 3]}, "cannot be used"),
        (BOX, {**BOX, "category_id": 9}, r"category 9 is not one of \[0\]"),
        (BOX, MASKED, "has a mask, unlike those before it"),
        (MASKED, BOX, "has no mask, unlike those before it"),
        (MASKED, {**MASKED, "segmentation": {"size": [50, 200], "counts": [10000]}}, r"\(50, 200\).*\(100, 100\)"),
        (MASKED, {**MASKED, "segmentation": ["x"]}, "cannot be used"),
    ],
)
def test_mistakes_are_named_with_row_and_image(truth, first, second, message):
    with pytest.raises(UserError, match=rf"tiles: result 1 \(image id 'b'\).*{message}"):
        detections_from_coco([first, {**second, "image_id": "b"}], truth)


def test_unknown_or_no_image(truth):
    with pytest.raises(UserError, match="image id 7, which is not in the dataset"):
        detections_from_coco([{**BOX, "image_id": 7}], truth)
    with pytest.raises(UserError, match=r"result 0 .* has no 'image_id'"):
        detections_from_coco([without(BOX, "image_id")], truth)
