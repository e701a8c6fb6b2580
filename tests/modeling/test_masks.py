"""Masks rasterised in part and averaged to the low-res frame, against a raster of the whole image."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
import torch.nn.functional as F

from detectron2.structures import BitMasks, PolygonMasks
from sam_d2.modeling.masks import low_res_targets, mask_extent, rasterise_crop

CANVAS, STRIDE = 64, 4
SIDE = CANVAS // STRIDE
# Neither side is a multiple of the stride: the last cells reach over the image's edge.
SIZE = (45, 62)


def blob(random: np.random.Generator, x: float, y: float, radius: float) -> np.ndarray:
    corners = int(random.integers(3, 12))
    angles = np.sort(random.uniform(0, 2 * np.pi, corners))
    radii = radius * random.uniform(0.4, 1, corners)
    return np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], axis=1).reshape(-1)


def shapes() -> dict[str, list[np.ndarray]]:
    random = np.random.default_rng(5)
    named = {
        "inside": [blob(random, 30, 20, 12)],
        "left": [blob(random, 0, 20, 12)],
        "top": [blob(random, 30, 0, 9)],
        "right": [blob(random, 62, 20, 12)],
        "bottom": [blob(random, 30, 45, 12)],
        "corner": [blob(random, 61, 44, 15)],
        "outside": [blob(random, 90, 20, 10)],
        "far left": [blob(random, -30, 20, 10)],
        "all": [np.array([-5.0, -5, 70, -5, 70, 50, -5, 50])],
        "pixel": [np.array([10.0, 10, 11, 10, 11, 11, 10, 11])],
        "sliver": [np.array([10.0, 10, 40, 10.2, 10, 10.4])],
        "two parts": [blob(random, 10, 10, 8), blob(random, 50, 35, 9)],
        "overlapping parts": [blob(random, 30, 20, 10), blob(random, 34, 24, 10)],
        "none": [],
    }
    for index in range(30):
        x, y, radius = random.uniform(-5, 67), random.uniform(-5, 50), random.uniform(1, 25)
        named[f"random {index}"] = [blob(random, x, y, radius)]
    return named


SHAPES = shapes()
POLYGONS = PolygonMasks(list(SHAPES.values()))


def full_raster(polygons: list[np.ndarray]) -> np.ndarray:
    """The mask as COCO's own code draws it in the whole image."""
    if not polygons:
        return np.zeros(SIZE, dtype=bool)
    return mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, *SIZE))).astype(bool)


RASTERS = np.stack([full_raster(polygons) for polygons in SHAPES.values()])


@pytest.fixture(params=["polygons", "bitmaps"])
def masks(request):
    return POLYGONS if request.param == "polygons" else BitMasks(RASTERS)


def test_the_shapes_are_not_trivial():
    areas = RASTERS.sum(axis=(1, 2))
    assert (areas == 0).sum() < len(areas) / 4 and areas[list(SHAPES).index("all")] == SIZE[0] * SIZE[1]


def test_targets_are_the_mean_over_a_padded_raster(masks):
    padded = torch.zeros(len(RASTERS), CANVAS, CANVAS)
    padded[:, : SIZE[0], : SIZE[1]] = torch.from_numpy(RASTERS).float()
    expected = F.avg_pool2d(padded[:, None], STRIDE)[:, 0]
    targets = low_res_targets([(masks, SIZE)], SIDE, STRIDE)
    assert targets.shape == (len(masks), SIDE, SIDE) and targets.dtype == torch.float32
    for name, target, value in zip(SHAPES, targets, expected, strict=True):
        torch.testing.assert_close(target, value, msg=lambda text, name=name: f"{name}: {text}")


def test_padding_is_background():
    row = list(SHAPES).index("all")
    target = low_res_targets([(POLYGONS[row], SIZE)], SIDE, STRIDE)[0]
    # 62 columns are 15 whole cells and a half, 45 rows are 11 cells and a quarter
    assert (target[:11, :15] == 1).all()
    assert (target[:11, 15] == 0.5).all() and (target[11, :15] == 0.25).all() and target[11, 15] == 0.125
    assert (target[12:] == 0).all()
    assert target.sum().item() == SIZE[0] * SIZE[1] / STRIDE**2


def test_an_image_that_fills_the_canvas():
    masks = PolygonMasks([[np.array([0.0, 0, 64, 0, 64, 64, 0, 64])]])
    assert (low_res_targets([(masks, (64, 64))], SIDE, STRIDE) == 1).all()


def test_masks_of_several_images_and_kinds_are_drawn_as_each_alone():
    """To the bit: what is drawn beside it, and how far that reaches, is nothing to a mask."""
    sizes = [SIZE, (64, 30), SIZE, (20, 64), (64, 64)]
    parts = [POLYGONS, POLYGONS[5:20], BitMasks(RASTERS[:7]), PolygonMasks([]), POLYGONS[8:9]]
    targets = low_res_targets(list(zip(parts, sizes, strict=True)), SIDE, STRIDE)
    alone = [
        low_res_targets([(masks[row : row + 1], size)], SIDE, STRIDE)
        for masks, size in zip(parts, sizes, strict=True)
        for row in range(len(masks))
    ]
    assert len(targets) == sum(map(len, parts)) and torch.equal(targets, torch.cat(alone))
    for row in range(len(POLYGONS)):
        assert torch.equal(targets[row], low_res_targets([(BitMasks(RASTERS[row : row + 1]), SIZE)], SIDE, STRIDE)[0])
    assert low_res_targets([], SIDE, STRIDE).shape == (0, SIDE, SIDE)


def test_a_stride_of_one_gives_the_pixels():
    targets = low_res_targets([(POLYGONS, SIZE)], CANVAS, 1)
    assert torch.equal(targets[:, : SIZE[0], : SIZE[1]], torch.from_numpy(RASTERS).float())
    assert targets.sum() == RASTERS.sum()


def test_no_masks_have_no_targets():
    assert low_res_targets([(PolygonMasks([]), SIZE)], SIDE, STRIDE).shape == (0, SIDE, SIDE)
    assert low_res_targets([(BitMasks(np.zeros((0, *SIZE))), SIZE)], SIDE, STRIDE).shape == (0, SIDE, SIDE)


def test_a_crop_is_a_part_of_the_whole(masks):
    random = np.random.default_rng(0)
    for row, raster in enumerate(RASTERS):
        x0, y0, x1, y1 = mask_extent(masks, row, SIZE)
        outside = raster.copy()
        outside[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = False
        assert not outside.any(), f"{list(SHAPES)[row]}: the extent cuts the mask"
        if x1 <= x0 or y1 <= y0:
            continue
        # any crop that holds the extent, also one that reaches over the image
        left, top = random.integers(0, x0 + 1), random.integers(0, y0 + 1)
        right, bottom = x1 + random.integers(0, 9), y1 + random.integers(0, 9)
        crop = rasterise_crop(masks, row, (left, top, right, bottom))
        assert crop.shape == (bottom - top, right - left) and crop.dtype == bool
        inside = crop[: SIZE[0] - top, : SIZE[1] - left]
        expected = raster[top:bottom, left:right]
        assert np.array_equal(inside, expected), list(SHAPES)[row]


def test_extents():
    for row, raster in enumerate(RASTERS):
        if raster.any():
            ys, xs = raster.nonzero()
            tight = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            assert mask_extent(BitMasks(RASTERS), row, SIZE) == tight
    assert mask_extent(BitMasks(np.zeros((1, *SIZE))), 0, SIZE) == (0, 0, 0, 0)
    assert mask_extent(PolygonMasks([[]]), 0, SIZE) == (0, 0, 0, 0)
    # corners 10.4..30.2 and 20.6..40: whole pixels 10..31 and 20..40, one more on each side, inside of 62 x 45
    masks = PolygonMasks([[np.array([10.4, 20.6, 30.2, 25, 15, 40])], [np.array([0.5, -3, 61.5, 10, 30, 50])]])
    assert mask_extent(masks, 0, SIZE) == (9, 19, 32, 41)
    assert mask_extent(masks, 1, SIZE) == (0, 0, 62, 45)


def test_empty_crops_are_empty(masks):
    assert rasterise_crop(masks, 0, (5, 5, 5, 9)).shape == (4, 0)
    assert rasterise_crop(masks, 0, (5, 9, 8, 5)).shape == (0, 3)
