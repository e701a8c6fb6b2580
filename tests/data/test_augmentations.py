"""torchvision's augmentations as Detectron2's: colours, and a perspective that polygons, masks and boxes follow."""

import numpy as np
import pycocotools.mask as mask_utils
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

import detectron2.data.transforms as T
from detectron2.structures import BitMasks, BoxMode
from sam_d2.data.augmentations import (
    ColorJitter,
    Equalize,
    GaussianBlur,
    Grayscale,
    Perspective,
    PerspectiveTransform,
    Posterize,
)
from sam_d2.data.detection_mapper import DetectionMapper
from sam_d2.data.loader import seeded
from sam_d2.data.mapper import PromptableMapper
from sam_d2.errors import UserError

ALL = [
    Equalize(prob=1.0),
    Posterize(bits=3, prob=1.0),
    Grayscale(prob=1.0),
    GaussianBlur(kernel_size=5, sigma=[0.5, 2.0], prob=1.0),
    ColorJitter(0.4, 0.4, [0.5, 1.5], 0.1),
    Perspective(distortion_scale=0.5, prob=1.0),
]
# x' = 2x, y' = y + 3 of the source for a place (x, y) of the result
SHRINKS = PerspectiveTransform([2, 0, 0, 0, 1, 3, 0, 0])
# A trapezium: in the result, y = 0 keeps its place and at y = 10 the divisor is 2
TILTS = PerspectiveTransform([1, 0, 0, 0, 1, 0, 0, 0.1])


def photograph(height=60, width=90):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def name_of(augmentation):
    return type(augmentation).__name__


@pytest.mark.parametrize("augmentation", ALL, ids=name_of)
def test_keeps_shape_and_type_and_repeats_itself(augmentation):
    image = photograph()
    transform = augmentation.get_transform(image)
    first, again = transform.apply_image(image), transform.apply_image(image)
    assert first.shape == image.shape and first.dtype == np.uint8
    assert np.array_equal(first, again) and not np.array_equal(first, image)


@pytest.mark.parametrize("augmentation", ALL, ids=name_of)
def test_the_loaders_seed_decides(augmentation):
    image = photograph()

    def drawn(seed):
        with seeded(seed):
            return augmentation.get_transform(image).apply_image(image)

    assert np.array_equal(drawn(3), drawn(3))
    if name_of(augmentation) in ("GaussianBlur", "ColorJitter", "Perspective"):
        assert not np.array_equal(drawn(3), drawn(4))


@pytest.mark.parametrize("augmentation", ALL[:5], ids=name_of)
def test_colours_leave_geometry_alone(augmentation):
    transform = augmentation.get_transform(photograph())
    points, mask = np.array([[1.5, 2.0]]), np.eye(4, dtype=np.uint8)
    assert np.array_equal(transform.apply_coords(points), points)
    assert np.array_equal(transform.apply_segmentation(mask), mask)


def test_probability():
    image = photograph()
    with seeded(0):
        changed = sum(
            not isinstance(Posterize(bits=3, prob=0.2).get_transform(image), T.NoOpTransform) for _ in range(1000)
        )
    # 200 expected, with a standard deviation of sqrt(1000 * 0.2 * 0.8) = 12.6
    assert abs(changed - 200) < 50
    for augmentation in (Equalize(0.0), Perspective(prob=0.0)):
        assert isinstance(augmentation.get_transform(image), T.NoOpTransform)


def test_posterize_keeps_the_highest_bits():
    image = np.full((2, 2, 3), 0b10111111, dtype=np.uint8)
    assert (Posterize(bits=3, prob=1.0).get_transform(image).apply_image(image) == 0b10100000).all()


def test_equalize_is_torchvisions():
    image = (photograph() // 4).astype(np.uint8)
    found = Equalize(1.0).get_transform(image).apply_image(image)
    expected = F.equalize(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    assert np.array_equal(found, expected) and found.max() == 255


@pytest.mark.parametrize(("image_format", "luma"), [("RGB", 0.299 * 200), ("BGR", 0.114 * 200)])
def test_grayscale_knows_the_order_of_the_channels(image_format, luma):
    image = np.zeros((2, 2, 3), dtype=np.uint8)
    image[:, :, 0] = 200
    found = Grayscale(1.0, image_format).get_transform(image).apply_image(image)
    assert (found == int(luma)).all()


def test_perspective_moves_a_point_as_worked_out_by_hand():
    # The result's (20, 7) shows the source's (2 * 20, 7 + 3) = (40, 10), and so (40, 10) comes to (20, 7).
    np.testing.assert_allclose(SHRINKS.apply_coords(np.array([[40.0, 10.0]])), [[20.0, 7.0]])
    # The result's (30, 10) shows (30, 10) / (0.1 * 10 + 1) = (15, 5).
    np.testing.assert_allclose(TILTS.apply_coords(np.array([[15.0, 5.0]])), [[30.0, 10.0]])
    assert SHRINKS.apply_coords(np.zeros((0, 2))).shape == (0, 2)


def test_perspective_moves_a_pixel_as_worked_out_by_hand():
    mask = np.zeros((12, 40), dtype=np.uint8)
    mask[5:9, 10:20] = 1
    # x halves and y loses 3: rows 2 to 5, columns 5 to 9
    expected = np.zeros_like(mask)
    expected[2:6, 5:10] = 1
    assert np.array_equal(SHRINKS.apply_segmentation(mask), expected)
    assert np.array_equal(SHRINKS.apply_segmentation(mask.astype(bool)), expected.astype(bool))
    image = np.repeat(mask[:, :, None] * 200, 3, axis=2)
    assert (SHRINKS.apply_image(image)[3:5, 6:9] == 200).all()


def test_perspective_goes_there_and_back():
    points = np.random.default_rng(0).uniform(0, 60, (20, 2))
    transform = Perspective(0.5, prob=1.0).get_transform(photograph())
    assert not np.allclose(transform.apply_coords(points), points)
    np.testing.assert_allclose(transform.inverse().apply_coords(transform.apply_coords(points)), points)


def test_the_corners_stay_in_the_image():
    height, width = 60, 90
    corners = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], dtype=float)
    for seed in range(20):
        with seeded(seed):
            moved = Perspective(0.6, prob=1.0).get_transform(photograph(height, width)).apply_coords(corners)
        inwards = np.abs(moved - corners)
        # by at most 0.6 of half a side: 27 and 18 pixels
        assert (inwards <= np.array([27, 18]) + 1e-4).all()
        assert (moved >= -1e-4).all() and (moved <= corners.max(axis=0) + 1e-4).all()


def rasterised(polygons, height, width):
    return mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(polygons, height, width))).astype(bool)


def test_polygons_follow_the_bitmap():
    height, width = 240, 320
    polygons = [
        [40.0, 50, 140, 60, 120, 170, 50, 150],
        [200.0, 30, 290, 40, 270, 120],
        [180.0, 180, 300, 190, 240, 230],
    ]
    whole = rasterised(polygons, height, width).astype(np.uint8)
    for seed in range(10):
        with seeded(seed):
            transform = Perspective(0.5, prob=1.0).get_transform(photograph(height, width))
        warped = transform.apply_segmentation(whole).astype(bool)
        moved = [
            points.ravel().tolist()
            for points in transform.apply_polygons([np.array(polygon).reshape(-1, 2) for polygon in polygons])
        ]
        drawn = rasterised(moved, height, width)
        iou = (warped & drawn).sum() / (warped | drawn).sum()
        # One pixel along the border is the difference of the two rasterisers; a shift of 2 px would give 0.93.
        assert iou > 0.97, seed


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Posterize(bits=9), "Posterize: bits=9, expected 1 to 8"),
        (lambda: Equalize(prob=1.5), "Equalize: prob=1.5"),
        (lambda: Perspective(distortion_scale=2), "distortion_scale=2, expected 0 to 1"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.fixture
def record(tmp_path):
    """An image with an object of two parts and one of RLE, in Detectron2's form."""
    Image.fromarray(photograph(120, 160)).save(tmp_path / "a.png")
    parts = [[10.0, 10, 50, 10, 50, 40, 10, 40], [90.0, 70, 150, 70, 120, 110]]
    return {
        "file_name": str(tmp_path / "a.png"),
        "image_id": 1,
        "height": 120,
        "width": 160,
        "annotations": [
            {"bbox": [10, 10, 150, 110], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "segmentation": parts}
        ],
    }


def mappers():
    warp = [Perspective(0.4, prob=1.0)]
    yield DetectionMapper(is_train=True, augmentations=warp, image_format="RGB")
    yield PromptableMapper(is_train=True, augmentations=warp, image_size=160)


@pytest.mark.parametrize("mapper", mappers(), ids=name_of)
@pytest.mark.parametrize("rle", [False, True], ids=["polygons", "rle"])
def test_a_mappers_boxes_and_masks_follow_the_perspective(mapper, rle, record):
    annotation = record["annotations"][0]
    if rle:
        annotation["segmentation"] = mask_utils.merge(mask_utils.frPyObjects(annotation["segmentation"], 120, 160))
    with seeded(3):
        sample = mapper(record)
    instances = sample["instances"]
    height, width = instances.image_size
    assert len(instances) == 1 and sample["image"].shape[1:] == (height, width) == (120, 160)
    masks = instances.gt_masks
    if not rle:
        assert len(masks.polygons[0]) == 2, "each part of the object"
        masks = BitMasks.from_polygon_masks(masks, height, width)
    with seeded(3):
        transform = Perspective(0.4, prob=1.0).get_transform(photograph(120, 160))
    whole = rasterised([[10.0, 10, 50, 10, 50, 40, 10, 40], [90.0, 70, 150, 70, 120, 110]], 120, 160)
    warped = transform.apply_segmentation(whole.astype(np.uint8)).astype(bool)
    found = masks.tensor[0].numpy()
    assert (found & warped).sum() / (found | warped).sum() > 0.95
    rows, columns = np.nonzero(found)
    tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(instances.gt_boxes.tensor[0].numpy(), tight, atol=1)
    loose = transform.apply_box(np.array([[10.0, 10, 150, 110]]))[0]
    assert np.abs(loose - tight).max() > 3, "the corners of the file's box would not have been it"


@pytest.mark.parametrize("mapper", mappers(), ids=name_of)
def test_an_image_without_objects_stays(mapper, record):
    record["annotations"] = []
    sample = mapper(record)
    assert len(sample["instances"]) == 0 and sample["instances"].gt_boxes.tensor.shape == (0, 4)
    assert sample["image"].shape == (3, 120, 160)
