"""The detectors' mapper: Detectron2's numerics, and every file that sam_d2 reads."""

import json

import numpy as np
import pycocotools.mask as mask_utils
import pytest
import torch
from PIL import Image

import detectron2.data.transforms as T
from detectron2.data import DatasetMapper
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from sam_d2.data.detection_mapper import DetectionMapper
from sam_d2.data.loader import seeded
from sam_d2.errors import UserError

WIDTH, HEIGHT = 60, 40
TRIANGLE = [10.25, 5.5, 30.75, 5.5, 20.0, 25.0]
SQUARE = [40.0, 10.0, 56.0, 10.0, 56.0, 26.0, 40.0, 26.0]


def annotation(polygon, category=0, **more):
    xs, ys = polygon[0::2], polygon[1::2]
    box = [min(xs), min(ys), max(xs), max(ys)]
    return {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "segmentation": [polygon], "category_id": category, **more}


@pytest.fixture
def record(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    annotations = [annotation(TRIANGLE), annotation(SQUARE, 1), annotation([1, 1, 9, 1, 9, 9], iscrowd=1)]
    file = str(tmp_path / "a.png")
    return {"file_name": file, "image_id": 7, "height": HEIGHT, "width": WIDTH, "annotations": annotations}


def augmentations():
    return [
        T.RandomFlip(prob=0.5),
        T.RandomCrop("absolute_range", (30, 50)),
        T.ResizeShortestEdge([48, 56, 64], max_size=90, sample_style="choice"),
    ]


@pytest.mark.parametrize("recompute_boxes", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_gives_what_detectron2s_mapper_gives(record, seed, recompute_boxes):
    options = {"augmentations": augmentations(), "image_format": "BGR", "recompute_boxes": recompute_boxes}
    theirs = DatasetMapper(True, use_instance_mask=True, **options)
    with seeded(seed):
        expected = theirs(record)
    with seeded(seed):
        found = DetectionMapper(is_train=True, **options)(record)
    assert torch.equal(found["image"], expected["image"])
    one, two = found["instances"], expected["instances"]
    assert one.image_size == two.image_size and len(one) == len(two)
    assert torch.equal(one.gt_classes, two.gt_classes)
    torch.testing.assert_close(one.gt_boxes.tensor, two.gt_boxes.tensor, rtol=0, atol=0)
    assert isinstance(one.gt_masks, PolygonMasks)
    for mine, other in zip(one.gt_masks.polygons, two.gt_masks.polygons, strict=True):
        np.testing.assert_array_equal(np.concatenate(mine), np.concatenate(other))
    assert json.loads(json.dumps(record)) == record, "the dataset dict is left as it is"


def test_the_channels_follow_the_model(record):
    rgb = DetectionMapper(is_train=True, image_format="RGB")(record)["image"]
    bgr = DetectionMapper(is_train=True, image_format="BGR")(record)["image"]
    assert torch.equal(rgb.flip(0), bgr) and not torch.equal(rgb, bgr)


def test_one_rle_makes_bitmaps_and_whole_numbers_keep_fractions(record):
    rle = mask_utils.merge(mask_utils.frPyObjects([SQUARE], HEIGHT, WIDTH))
    record["annotations"][0]["segmentation"] = [[10, 5, 30, 5, 30, 25, 10, 25]]
    record["annotations"][1]["segmentation"] = rle
    double = DetectionMapper(is_train=True, augmentations=[T.ResizeShortestEdge(60, max_size=90)])
    sample = double(record)["instances"]
    assert isinstance(sample.gt_masks, BitMasks)
    # 1.5 times as large: 20 x 20 pixels become 30 x 30
    assert sample.gt_masks.tensor[0].sum() == 900
    record["annotations"][1:] = []
    polygon = double(record)["instances"].gt_masks.polygons[0][0]
    np.testing.assert_allclose(polygon, np.array([10, 5, 30, 5, 30, 25, 10, 25]) * 1.5)


def test_an_image_without_objects_is_legal(record):
    record["annotations"] = record["annotations"][2:]
    for is_train in (True, False):
        sample = DetectionMapper(is_train=is_train, augmentations=[T.ResizeShortestEdge(80, 120)])(record)
        assert len(sample["instances"]) == 0 and sample["instances"].gt_boxes.tensor.shape == (0, 4)
        assert sample["image"].shape == (3, 80, 120)


def test_at_a_test_the_annotations_stay_where_they_are(record):
    sample = DetectionMapper(is_train=False, augmentations=[T.ResizeShortestEdge(80, 120)])(record)
    assert sample["image"].shape == (3, 80, 120) and sample["instances"].image_size == (HEIGHT, WIDTH)
    torch.testing.assert_close(sample["instances"].gt_boxes.tensor[0], torch.tensor([10.25, 5.5, 30.75, 25.0]))


def test_another_size_is_an_error_with_both(record):
    record["width"] = 61
    with pytest.raises(UserError, match=r"a.png \(image id 7\): the file has 60 x 40 .* the annotations say 61 x 40"):
        DetectionMapper(is_train=True)(record)
