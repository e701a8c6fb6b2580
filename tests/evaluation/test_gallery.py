import math

import cv2
import numpy as np
import pytest

from sam_d2.evaluation import gallery_rows, write_gallery
from sam_d2.evaluation.gallery import LONG_SIDE, PREDICTION_COLOUR, TRUTH_COLOUR, draw_masks

A, HALF_A = (10, 10, 30, 30), (10, 10, 20, 30)


def grey(file_name):
    return np.full((100, 100, 3), 120, dtype=np.uint8)


def test_prediction_over_truth(make_truth, make_detections):
    truth = make_truth({1: [(A, 0)]})
    found = make_detections(1, [(HALF_A, 0.9)], prompt_index=[0])
    canvas = np.full((LONG_SIDE, LONG_SIDE, 3), 120, dtype=np.uint8)
    image = draw_masks(canvas, [one.rle for one in truth[1].instances], found.rles)
    assert image.shape == (LONG_SIDE, LONG_SIDE, 3)

    def at(pixel):
        return round(pixel * LONG_SIDE / 100)

    assert tuple(image[at(90), at(90)]) == (120, 120, 120)  # outside
    # a quarter of blue and three of the grey 120 within the truth, cut to an integer
    assert tuple(image[at(20), at(25)]) == tuple(int(0.75 * 120 + 0.25 * channel) for channel in TRUTH_COLOUR)
    distances = np.abs(image[at(20)].astype(int) - np.array(PREDICTION_COLOUR)).sum(axis=1)
    outline = np.flatnonzero(distances < 60)
    # the prediction's left and right edges, at 10 and 20, and nothing purple elsewhere on that row
    assert {round(x * 100 / LONG_SIDE) for x in outline} == {10, 20}


def test_the_photograph_keeps_its_colours(make_truth, make_detections):
    truth = make_truth({1: [(A, 0)]})
    green = np.zeros((100, 100, 3), dtype=np.uint8)
    green[:, :, 1] = 200
    image = draw_masks(green, [one.rle for one in truth[1].instances], [])
    assert tuple(image[90, 90]) == (0, 200, 0)
    assert image[20, 20].argmax() == 1  # within the truth, too


def test_few_images_are_shown_from_worst_to_best_and_labelled_once(make_truth, make_detections):
    # IoU 20 x 20 / 20 x 20 and 10 x 20 / 20 x 20
    truth = make_truth({1: [(A, 0)], 2: [(A, 0)]})
    found = [make_detections(1, [(A, 0.9)], prompt_index=[0]), make_detections(2, [(HALF_A, 0.9)], prompt_index=[0])]
    rows = gallery_rows(truth, found, read_image=grey)
    assert [(row.label, row.file_name, row.mean_iou) for row in rows] == [("", "2.png", 0.5), ("", "1.png", 1.0)]


def test_worst_median_best(make_truth, make_detections):
    # image k has IoU (k + 1) / 20; image 20 has no instance
    truth = make_truth({**{k: [(A, 0)] for k in range(20)}, 20: []})
    found = [make_detections(k, [((10, 10, 11 + k, 30), 0.5)], prompt_index=[0]) for k in range(20)]
    rows = gallery_rows(truth, [*found, make_detections(20, [])], count=6, read_image=grey)
    assert [(row.label, row.file_name) for row in rows] == [
        ("worst", "0.png"), ("worst", "1.png"), ("median", "9.png"), ("median", "10.png"),
        ("best", "18.png"), ("best", "19.png"),
    ]  # fmt: skip
    assert [row.mean_iou for row in rows] == pytest.approx([1 / 20, 2 / 20, 10 / 20, 11 / 20, 19 / 20, 1])


def test_unpaired_predictions_from_a_score_on(make_truth, make_detections):
    truth = make_truth({k: [(A, 0)] for k in range(9)})
    found = [make_detections(k, [(A, 0.9), (HALF_A, 0.4)]) for k in range(9)]
    rows = gallery_rows(truth, found, count=3, read_image=grey)
    assert [(row.label, row.file_name, row.predictions) for row in rows] == [
        ("example", "0.png", 1), ("example", "4.png", 1), ("example", "8.png", 1),
    ]  # fmt: skip
    assert math.isnan(rows[0].mean_iou)


@pytest.mark.parametrize("count", [1, 2, 12])
def test_one_png(tmp_path, make_truth, make_detections, count):
    truth = make_truth({k: [(A, 0)] for k in range(count)})
    found = [make_detections(k, [(A, 0.9)], prompt_index=[0]) for k in range(count)]
    path = tmp_path / "run" / "gallery.png"
    write_gallery(path, gallery_rows(truth, found, read_image=grey), "made")
    image = cv2.imread(str(path))
    assert image.shape[1] == min(count, 3) * LONG_SIDE
    assert image.std() > 10
    assert [p.name for p in path.parent.iterdir()] == ["gallery.png"]


def test_no_rows(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        write_gallery(tmp_path / "gallery.png", [])
