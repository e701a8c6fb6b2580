import copy

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, PolygonMasks

PIXELS = np.random.RandomState(0).randint(0, 256, (10, 20, 3)).astype(np.uint8)
TRIANGLE = [2.0, 1.0, 12.0, 1.0, 12.0, 9.0]


@pytest.fixture
def record(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(PIXELS).save(path)
    box = {"bbox": [2, 1, 10, 8], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 3, "segmentation": [TRIANGLE]}
    return {
        "file_name": str(path),
        "height": 10,
        "width": 20,
        "image_id": "x",
        "annotations": [box, {**box, "iscrowd": 1}, {**box, "bbox": [4, 4, 0, 3]}],
    }


def mapper(is_train=True, augmentations=(), **options):
    options = {"image_format": "BGR", "use_instance_mask": True, **options}
    return DatasetMapper(is_train, augmentations=list(augmentations), **options)


def test_training_sample(record):
    given = copy.deepcopy(record)
    sample = mapper(augmentations=[T.HFlipTransform(20), T.ResizeTransform(10, 20, 20, 40, 0)])(record)
    assert record == given
    # Flipped and doubled with the nearest pixel, blue first, channels first.
    expected = PIXELS[:, ::-1, ::-1].repeat(2, 0).repeat(2, 1).transpose(2, 0, 1)
    np.testing.assert_array_equal(sample["image"].numpy(), expected)
    assert sample["image"].dtype == torch.uint8 and sample["image"].is_contiguous()
    assert (sample["height"], sample["width"], sample["image_id"]) == (10, 20, "x")
    assert "annotations" not in sample
    instances = sample["instances"]
    assert instances.image_size == (20, 40)
    # The crowd and the box without width are gone; x 2-12 becomes 8-18, doubled 16-36.
    torch.testing.assert_close(instances.gt_boxes.tensor, torch.tensor([[16.0, 2, 36, 18]]))
    assert instances.gt_classes.tolist() == [3]
    assert isinstance(instances.gt_masks, PolygonMasks)


def test_test_sample_has_no_annotations(record):
    sample = mapper(is_train=False, image_format="RGB")(record)
    assert sorted(sample) == ["file_name", "height", "image", "image_id", "width"]
    np.testing.assert_array_equal(sample["image"].numpy(), PIXELS.transpose(2, 0, 1))


def test_masks_are_optional(record):
    assert not mapper(use_instance_mask=False)(record)["instances"].has("gt_masks")
    bitmaps = mapper(instance_mask_format="bitmask")(record)["instances"].gt_masks
    assert isinstance(bitmaps, BitMasks) and bitmaps.tensor.shape == (1, 10, 20)


def test_boxes_made_anew_from_cut_masks(record):
    mask = np.zeros((10, 20), np.uint8, order="F")
    mask[2:9, 3:15] = 1
    mask[2:5, 3:10] = 0
    record["annotations"] = [{**record["annotations"][0], "segmentation": mask_util.encode(mask)}]
    cut = mapper(augmentations=[T.CropTransform(0, 0, 10, 6)], recompute_boxes=True, instance_mask_format="bitmask")(
        record
    )
    # Of the L that is left, rows 5 and columns 3-9 lie in the window.
    torch.testing.assert_close(cut["instances"].gt_boxes.tensor, torch.tensor([[3.0, 5, 10, 6]]))
    with pytest.raises(AssertionError):
        mapper(use_instance_mask=False, recompute_boxes=True)


def test_images_without_instances(record):
    record["annotations"] = []
    instances = mapper()(record)["instances"]
    assert len(instances) == 0 and instances.gt_boxes.tensor.shape == (0, 4)
    del record["annotations"]
    assert "instances" not in mapper()(record)


def test_wrong_size_in_the_record(record):
    record["width"] = 21
    with pytest.raises(utils.SizeMismatchError):
        mapper()(record)


def test_label_file(record, tmp_path):
    labels = np.random.RandomState(1).randint(0, 5, (10, 20)).astype(np.uint8)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    record["sem_seg_file_name"] = str(tmp_path / "labels.png")
    sample = mapper(augmentations=[T.HFlipTransform(20)])(record)
    np.testing.assert_array_equal(sample["sem_seg"].numpy(), labels[:, ::-1])
    assert sample["sem_seg"].dtype == torch.int64
    assert "sem_seg_file_name" not in sample


def test_random_choices_follow_the_seed(record):
    random = mapper(augmentations=[T.RandomFlip(), T.ResizeShortestEdge((8, 20))])
    shapes = []
    for _ in range(2):
        np.random.seed(5)
        shapes.append([random(record)["image"].shape for _ in range(6)])
    assert shapes[0] == shapes[1]
    assert len(set(shapes[0])) > 1
