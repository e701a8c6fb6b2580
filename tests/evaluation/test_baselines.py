import json
import math

import numpy as np
import pycocotools.mask as mask_utils
import pytest

from sam_d2.evaluation import GroundTruth, box_as_mask, evaluate_baselines, inscribed_ellipse


def pixels(rle):
    return mask_utils.decode(rle).astype(bool)


def centres(height, width):
    y, x = np.mgrid[:height, :width]
    return x + 0.5, y + 0.5


@pytest.mark.parametrize(
    "box",
    [(2, 3, 9, 8), (2.5, 3.5, 8.6, 7.4), (-3, -2, 5, 30), (0, 0, 12, 10), (4, 4, 4, 9), (20, 20, 30, 30)],
)
def test_pixels_whose_centre_is_inside(box):
    x, y = centres(10, 12)
    x0, y0, x1, y1 = box
    boxes = np.array([box], dtype=np.float64)
    np.testing.assert_array_equal(pixels(box_as_mask(boxes, (10, 12))[0]), (x0 <= x) & (x < x1) & (y0 <= y) & (y < y1))
    with np.errstate(divide="ignore"):
        radius = ((x - (x0 + x1) / 2) / ((x1 - x0) / 2)) ** 2 + ((y - (y0 + y1) / 2) / ((y1 - y0) / 2)) ** 2
    np.testing.assert_array_equal(pixels(inscribed_ellipse(boxes, (10, 12))[0]), radius < 1)


@pytest.mark.parametrize("draw", [box_as_mask, inscribed_ellipse])
def test_boxes_of_an_image_are_drawn_as_each_alone(draw):
    size = (40, 55)
    corners = np.random.default_rng(4).uniform(-9, 60, (60, 2, 2))
    boxes = np.concatenate([np.sort(corners, axis=1).reshape(-1, 4), [[0, 0, 55, 40], [5, 5, 5, 5], [-9, -9, 99, 99]]])
    together = draw(boxes, size)
    assert together == [rle for box in boxes for rle in draw(box[None], size)] and len(together) == 63
    areas = [pixels(rle).sum() for rle in together]
    assert areas[-2] == 0 and areas[-1] > 2000 and 0 < np.count_nonzero(areas[:60]) < 60
    assert draw(np.zeros((0, 4)), size) == []


def test_ellipse_has_pi_quarters_of_its_box():
    (rle,) = inscribed_ellipse(np.array([[100.0, 50, 900, 650]]), (700, 1000))
    area = mask_utils.area(rle)
    assert area == pytest.approx(math.pi / 4 * 800 * 600, rel=1e-3)


def test_scored_like_a_model(make_truth):
    crowd = ((60, 60, 90, 90), 0, {"iscrowd": 1})
    # the file's box is loose; the baseline takes the tight one of the mask, which a rectangle fills
    truth = make_truth({1: [((10, 10, 30, 30), 0, {"bbox": [0, 0, 50, 50]}), crowd], 2: []})
    box, ellipse = evaluate_baselines(truth, prompt="point", pseudo_ground_truth=True)
    assert (box.method, ellipse.method) == ("box_as_mask", "ellipse")
    assert (box.split, box.prompt, box.score, box.max_dets) == ("made", "point", "constant", 100)
    assert box.pseudo_ground_truth
    assert (box.metrics["AP"], box.metrics["mIoU"]) == (100, 1)
    assert ellipse.metrics["mIoU"] == pytest.approx(math.pi / 4, abs=0.01)


def test_ice_wedge_polygons(real_data):
    records = json.loads((real_data / "iwp/dataset_test.json").read_text())
    truth = GroundTruth.from_dataset_dicts(records, ["iwp"], name="iwp_test")
    box, ellipse = evaluate_baselines(truth)
    # 0.698 and 0.770 are on record; they count the three empty masks as 0, which lowers the means by 0.0004
    assert box.metrics["mIoU"] == pytest.approx(0.698, abs=5e-4)
    assert ellipse.metrics["mIoU"] * 5113 / 5116 == pytest.approx(0.770, abs=5e-4)
    assert box.max_dets == 285
