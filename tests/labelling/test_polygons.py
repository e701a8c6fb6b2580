"""Polygons of masks, rasterised again by pycocotools."""

import numpy as np
import pycocotools.mask as mask_utils
import pytest
from scipy.ndimage import binary_fill_holes, gaussian_filter

from sam_d2.labelling.polygons import mask_to_polygons


def rasterised(polygons, shape):
    return mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(polygons, *shape))).astype(bool)


def area(polygon):
    """By the shoelace formula."""
    x, y = np.reshape(polygon, (-1, 2)).T
    return abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2


def test_a_pixel_by_hand():
    mask = np.zeros((4, 5), dtype=bool)
    mask[1, 2] = True
    (polygon,) = mask_to_polygons(mask)
    assert sorted(zip(polygon[::2], polygon[1::2], strict=True)) == [(2, 1), (2, 2), (3, 1), (3, 2)]
    assert np.array_equal(rasterised([polygon], mask.shape), mask)


def test_a_corner_that_points_inwards_by_hand():
    polygons = mask_to_polygons(np.array([[1, 1, 0], [1, 1, 1], [1, 1, 1]], dtype=bool))
    (points,) = [set(zip(polygon[::2], polygon[1::2], strict=True)) for polygon in polygons]
    assert points == {(0, 0), (2, 0), (2, 1), (3, 1), (3, 3), (0, 3)} and len(polygons[0]) == 12
    assert area(polygons[0]) == 8


def test_no_pixel_no_polygon():
    assert mask_to_polygons(np.zeros((3, 4), dtype=bool)) == []


def test_parts_stay_and_holes_are_filled():
    mask = np.zeros((20, 30), dtype=bool)
    mask[2:12, 3:13] = True
    mask[5:8, 6:9] = False
    mask[15:19, 20:30] = True
    polygons = mask_to_polygons(mask)
    assert len(polygons) == 2
    filled = mask.copy()
    filled[5:8, 6:9] = True
    assert np.array_equal(rasterised(polygons, mask.shape), filled)
    assert sorted(map(area, polygons)) == [40, 100]


@pytest.mark.parametrize("seed", range(20))
def test_any_mask_with_its_holes_filled_pixel_by_pixel(seed):
    rng = np.random.default_rng(seed)
    mask = gaussian_filter(rng.standard_normal((60, 80)), rng.uniform(0.5, 6)) > 0
    # Parts that touch at a corner count as one, so a hole must be closed for diagonal steps too.
    filled = binary_fill_holes(mask, structure=np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]]))
    polygons = mask_to_polygons(mask)
    assert np.array_equal(rasterised(polygons, mask.shape), filled)
    assert sum(map(area, polygons)) == filled.sum()
