"""Score against true IoU."""

import math

import numpy as np
import pytest

from sam_d2.evaluation.reliability import Bin, prediction_ious, reliabilities, reliability


def test_by_hand():
    scores = np.array([0.05, 0.15, 0.11, 0.95, 1.0, 1.2])
    ious = np.array([0.25, 0.35, 0.15, 0.85, 0.75, 0.80])
    found = reliability("stability", scores, ious)
    expected = [Bin(1, 0.05, 0.25), Bin(2, 0.13, 0.25), Bin(3, 1.05, 0.80)]  # above 1 is the last bin's
    assert found.score == "stability" and len(found.bins) == 3
    for one, other in zip(found.bins, expected, strict=True):
        assert (one.count, one.score, one.iou) == (other.count, pytest.approx(other.score), pytest.approx(other.iou))
    # (1 * 0.20 + 2 * 0.12 + 3 * 0.25) / 6
    assert found.ece == pytest.approx(1.19 / 6)


def test_a_score_that_is_the_iou_has_no_error_and_a_constant_one_its_bias():
    ious = np.linspace(0.003, 0.997, 500)
    assert reliability("s", ious, ious).ece == pytest.approx(0)
    assert reliability("s", np.ones(500), ious).ece == pytest.approx(0.5)


@pytest.mark.parametrize(("score", "row"), [(-0.2, 0), (0.0, 0), (0.1, 1), (0.3, 3), (0.999, 9), (1.0, 9), (3.0, 9)])
def test_edges_belong_to_the_bin_above_but_for_1(score, row):
    # a second prediction in the middle of the expected bin shares it
    found = reliability("s", np.array([score, row / 10 + 0.05]), np.array([0.5, 0.5]))
    assert [one.count for one in found.bins] == [2]


def test_none_and_unknown():
    assert reliability("s", np.zeros(0), np.zeros(0)) == reliability("s", np.array([0.5]), np.array([math.nan]))
    assert reliability("s", np.zeros(0), np.zeros(0)).ece is None
    assert reliability("s", np.array([0.5, 0.5]), np.array([math.nan, 0.25])).bins == [Bin(1, 0.5, 0.25)]


def test_several_scores_over_all_images():
    rankings = {"a": [np.array([0.9]), np.array([0.5])], "b": [np.array([0.2]), np.array([0.2])]}
    found = reliabilities(rankings, [np.array([0.8]), np.array([0.6])])
    assert {name: one.ece for name, one in found.items()} == pytest.approx({"a": 0.1, "b": 0.5})
    assert reliabilities({"a": []}, [])["a"].ece is None


def test_prompted_predictions_are_measured_against_their_instance(make_truth, make_detections):
    truth = make_truth({1: [((0, 0, 10, 10), 0), ((50, 50, 60, 60), 0)], 2: []})
    # the first answers instance 1 with half of it, the second instance 0 with a mask elsewhere
    found = make_detections(1, [((50, 50, 60, 55), 0.9), ((50, 50, 60, 60), 0.8)], prompt_index=[1, 0])
    ious = prediction_ious(truth, [found, make_detections(2, [])], prompted=True)
    assert [values.tolist() for values in ious] == [[0.5, 0.0], []]
    with pytest.raises(ValueError, match="no prompt_index"):
        prediction_ious(truth, [make_detections(1, [((0, 0, 5, 5), 0.5)])], prompted=True)
    with pytest.raises(ValueError, match=r"spans 2\.\.2, but the image has 2 instances"):
        prediction_ious(truth, [make_detections(1, [((0, 0, 5, 5), 0.5)], prompt_index=[2])], prompted=True)


def test_an_instance_without_a_pixel_gives_no_iou(make_truth, make_detections):
    truth = make_truth({1: [((0, 0, 10, 10), 0), ((20, 20, 20, 30), 0)]})
    found = make_detections(1, [((0, 0, 10, 10), 0.9), ((20, 20, 21, 30), 0.8)], prompt_index=[0, 1])
    assert prediction_ious(truth, [found], prompted=True)[0].tolist() == pytest.approx([1.0, math.nan], nan_ok=True)


def test_others_are_measured_against_the_best_instance_of_their_class(make_truth, make_detections):
    truth = make_truth(
        {1: [((0, 0, 10, 10), 0), ((0, 0, 20, 10), 0), ((50, 50, 60, 60), 1)]}, classes=["cat", "dog", "cow"]
    )
    found = make_detections(
        1,
        [
            ((0, 0, 16, 10), 0.9, 0),  # 100 / 160 with the first, 160 / 200 with the second
            ((50, 50, 60, 60), 0.8, 0),  # on an instance of another class
            ((50, 50, 60, 60), 0.7, 1),
            ((0, 0, 10, 10), 0.6, 2),  # of a class without instances
        ],
    )
    found.prompt_index = np.array([9, 9, 9, 9])  # a detector's boxes: no instances' rows
    assert prediction_ious(truth, [found], prompted=False)[0].tolist() == [0.8, 0.0, 1.0, 0.0]


def test_what_lies_in_a_crowd_is_of_no_account(make_truth, make_detections):
    truth = make_truth(
        {1: [((0, 0, 40, 40), 0, {"iscrowd": 1}), ((30, 30, 50, 50), 0), ((0, 0, 40, 40), 1)]}, ["a", "b"]
    )
    found = make_detections(
        1,
        [
            ((0, 0, 10, 10), 0.9),  # all of it in the crowd
            ((30, 0, 50, 10), 0.8),  # half of it
            ((31, 0, 51, 10), 0.7),  # less than half: a false positive
            ((30, 30, 50, 48), 0.6),  # 360 / 400 with the instance, though it begins in the crowd
            ((0, 0, 10, 10), 0.5, 1),  # the crowd is of another class: 100 / 1600
        ],
    )
    expected = [math.nan, math.nan, 0.0, 0.9, 0.0625]
    assert prediction_ious(truth, [found], prompted=False)[0].tolist() == pytest.approx(expected, nan_ok=True)
