import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

from detectron2.data import MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks

UPRIGHT = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


@pytest.mark.parametrize(
    ("tag", "stored"),
    [
        # What the camera stores for each tag, so that the picture is UPRIGHT.
        (1, UPRIGHT),
        (2, UPRIGHT[:, ::-1]),
        (3, UPRIGHT[::-1, ::-1]),
        (4, UPRIGHT[::-1]),
        (5, UPRIGHT.transpose(1, 0, 2)),
        (6, np.rot90(UPRIGHT, 1)),
        (7, UPRIGHT[::-1, ::-1].transpose(1, 0, 2)),
        (8, np.rot90(UPRIGHT, -1)),
        (99, UPRIGHT),
    ],
)
def test_exif_orientation(tmp_path, tag, stored):
    exif = Image.Exif()
    exif[0x0112] = tag
    path = tmp_path / "image.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    np.testing.assert_array_equal(utils.read_image(str(path), "RGB"), UPRIGHT)


def test_formats(tmp_path):
    path = str(tmp_path / "image.png")
    Image.fromarray(UPRIGHT).save(path)
    np.testing.assert_array_equal(utils.read_image(path, "BGR"), UPRIGHT[:, :, ::-1])
    np.testing.assert_array_equal(utils.read_image(path), UPRIGHT)
    assert utils.read_image(path, "L").shape == (2, 3, 1)
    yuv = utils.read_image(path, "YUV-BT.601")
    np.testing.assert_allclose(yuv[:, :, 0], UPRIGHT @ [0.299, 0.587, 0.114] / 255)
    np.testing.assert_allclose(utils.convert_image_to_rgb(yuv, "YUV-BT.601"), UPRIGHT, atol=0.01)
    np.testing.assert_array_equal(utils.convert_image_to_rgb(torch.from_numpy(UPRIGHT), "BGR"), UPRIGHT[:, :, ::-1])
    grey = utils.convert_image_to_rgb(UPRIGHT[:, :, :1], "L")
    np.testing.assert_array_equal(grey, UPRIGHT[:, :, :1].repeat(3, axis=2))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA"])
def test_every_mode_becomes_three_channels(tmp_path, mode):
    path = str(tmp_path / "image.png")
    Image.fromarray(UPRIGHT).convert(mode).save(path)
    assert utils.read_image(path, "RGB").shape == (2, 3, 3)


def test_image_size_is_checked_or_filled_in():
    record = {}
    utils.check_image_size(record, UPRIGHT)
    assert record == {"height": 2, "width": 3}
    utils.check_image_size(record, UPRIGHT)
    with pytest.raises(utils.SizeMismatchError, match=r"a\.png, got \(3, 2\), expect \(2, 3\)"):
        utils.check_image_size({"file_name": "a.png", "height": 3, "width": 2}, UPRIGHT)
    assert issubclass(utils.SizeMismatchError, ValueError)


def annotation(**more):
    return {"bbox": [2.0, 1.0, 4.0, 3.0], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, **more}


def test_box_and_polygon_follow_the_image():
    # 10 x 20 flipped and doubled: x 2-6 becomes 14-18, then 28-36; y 1-4 becomes 2-8.
    transforms = [T.HFlipTransform(20), T.ResizeTransform(10, 20, 20, 40)]
    given = annotation(segmentation=[[2.0, 1.0, 6.0, 1.0, 6.0, 4.0]])
    moved = utils.transform_instance_annotations(given, transforms, (20, 40))
    np.testing.assert_allclose(moved["bbox"], [28, 2, 36, 8])
    assert moved["bbox_mode"] == BoxMode.XYXY_ABS
    np.testing.assert_allclose(moved["segmentation"], [[36, 2, 28, 2, 28, 8]])
    assert moved is given


def test_box_is_clipped_to_the_image():
    given = {"bbox": [-5, -5, 50, 50], "bbox_mode": BoxMode.XYXY_ABS}
    moved = utils.transform_instance_annotations(given, T.TransformList([]), (20, 40))
    np.testing.assert_allclose(moved["bbox"], [0, 0, 40, 20])


def test_rle_becomes_a_mask_that_follows_the_image():
    mask = np.zeros((4, 6), np.uint8, order="F")
    mask[1, 0:2] = 1
    moved = utils.transform_instance_annotations(
        annotation(segmentation=mask_util.encode(mask)), [T.HFlipTransform(6)], (4, 6)
    )
    np.testing.assert_array_equal(moved["segmentation"], mask[:, ::-1])
    with pytest.raises(AssertionError):
        utils.transform_instance_annotations(
            annotation(segmentation=mask_util.encode(mask)), [T.HFlipTransform(6)], (5, 6)
        )
    with pytest.raises(ValueError):
        utils.transform_instance_annotations(annotation(segmentation="?"), [T.NoOpTransform()], (4, 6))


def test_instances_with_polygons():
    polygon = np.array([2.0, 1.0, 6.0, 1.0, 6.0, 4.0])
    instances = utils.annotations_to_instances([annotation(segmentation=[polygon])] * 2, (10, 20))
    assert instances.image_size == (10, 20)
    torch.testing.assert_close(instances.gt_boxes.tensor, torch.tensor([[2.0, 1, 6, 4]] * 2))
    assert instances.gt_classes.tolist() == [1, 1] and instances.gt_classes.dtype == torch.int64
    assert isinstance(instances.gt_masks, PolygonMasks)
    with pytest.raises(ValueError, match="mask_format=='polygon'"):
        utils.annotations_to_instances([annotation(segmentation=np.zeros((4, 6)))], (4, 6))


def test_instances_with_bitmaps_of_all_kinds():
    mask = np.zeros((4, 6), np.uint8, order="F")
    mask[1:3, 2:5] = 1
    square = [2.0, 1.0, 5.0, 1.0, 5.0, 3.0, 2.0, 3.0]  # the same pixels
    kinds = [[square], mask_util.encode(mask), np.ascontiguousarray(mask[:, ::-1])[:, ::-1]]  # the last runs backwards
    annos = [annotation(segmentation=kind) for kind in kinds]
    masks = utils.annotations_to_instances(annos, (4, 6), mask_format="bitmask").gt_masks
    assert isinstance(masks, BitMasks)
    for row in masks.tensor:
        np.testing.assert_array_equal(row.numpy(), mask)
    with pytest.raises(ValueError):
        utils.annotations_to_instances([annotation(segmentation="?")], (4, 6), mask_format="bitmask")
    with pytest.raises(AssertionError):
        utils.annotations_to_instances(annos, (4, 6), mask_format="outline")


def test_instances_of_nothing():
    empty = utils.annotations_to_instances([], (4, 6))
    assert len(empty) == 0 and empty.gt_boxes.tensor.shape == (0, 4)
    assert empty.gt_classes.dtype == torch.int64
    assert not empty.has("gt_masks")


def test_empty_instances_are_left_out():
    instances = Instances((4, 6))
    instances.gt_boxes = Boxes(torch.tensor([[0.0, 0, 2, 2], [1, 1, 1, 3], [0, 0, 2, 2]]))
    instances.gt_classes = torch.arange(3)
    masks = torch.ones(3, 4, 6)
    masks[2] = 0
    instances.gt_masks = BitMasks(masks)
    assert utils.filter_empty_instances(instances).gt_classes.tolist() == [0]
    assert utils.filter_empty_instances(instances, by_mask=False).gt_classes.tolist() == [0, 2]
    kept, which = utils.filter_empty_instances(instances, by_box=False, return_mask=True)
    assert kept.gt_classes.tolist() == [0, 1] and which.tolist() == [True, True, False]
    assert len(utils.filter_empty_instances(instances, by_mask=False, box_threshold=2.5)) == 0
    with pytest.raises(AssertionError):
        utils.filter_empty_instances(instances, by_box=False, by_mask=False)


def test_metadata_consistency():
    names = ["utils_a", "utils_b"]
    try:
        MetadataCatalog.get("utils_a").key = 1
        with pytest.raises(AttributeError):
            utils.check_metadata_consistency("key", names)
        MetadataCatalog.get("utils_b").key = 2
        with pytest.raises(ValueError, match="different metadata 'key'"):
            utils.check_metadata_consistency("key", names)
        utils.check_metadata_consistency("key", names[:1])
        utils.check_metadata_consistency("key", [])
    finally:
        for name in names:
            MetadataCatalog.remove(name)
