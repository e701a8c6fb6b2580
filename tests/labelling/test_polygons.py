"""Polygons of masks, rasterised again by pycocotools."""

import numpy as np
import pycocotools.mask as mask_utils
import pytest
from scipy.ndimage import binary_fill_holes, gaussian_filter

from sam_d2.labelling.polygons import mask_to_polygons


def rasterised(polygons, shape):
    return mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(polygons, *shape))).astype(bool)


def test_a_pixel_by_hand():
    mask = np.zeros((4, 5), dtype=bool)
    mask[1, 2] = True
    (polygon,) = mask_to_polygons(mask)
    # four points a quarter of a pixel inside of its edges 2, 3 and 1, 2
    assert sorted(zip(polygon[::2], polygon[1::2], strict=True)) == [
        (2.25, 1.25),
        (2.25, 1.75),
        (2.75, 1.25),
        (2.75, 1.75),
    ]
    assert np.array_equal(rasterised([polygon], mask.shape), mask)


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


@pytest.mark.parametrize("seed", range(20))
def test_any_mask_with_its_holes_filled_pixel_by_pixel(seed):
    rng = np.random.default_rng(seed)
    mask = gaussian_filter(rng.standard_normal((60, 80)), rng.uniform(0.5, 6)) > 0
    # Parts that touch at a corner count as one, so a hole must be closed for diagonal steps too.
    filled = binary_fill_holes(mask, structure=np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]]))
    assert np.array_equal(rasterised(mask_to_polygons(mask), mask.shape), filled)
