import math

import numpy as np
import pytest

from sam_d2.evaluation import instance_ious, mean_iou

A, HALF_A, B, SPECK = (10, 10, 30, 30), (10, 10, 20, 30), (50, 50, 70, 70), (20.6, 20.6, 20.7, 20.7)


def test_by_prompt_not_by_position(make_truth, make_detections):
    truth = make_truth({1: [(A, 0), (B, 0)]})
    found = make_detections(1, [(B, 0.1), (HALF_A, 0.9)], prompt_index=[1, 0])
    np.testing.assert_array_equal(instance_ious(truth[1], found), [0.5, 1.0])  # 10 x 20 of 20 x 20
    swapped = make_detections(1, [(B, 0.1), (HALF_A, 0.9)], prompt_index=[0, 1])
    np.testing.assert_array_equal(instance_ious(truth[1], swapped), [0.0, 0.0])


def test_mean_over_instances_of_all_images(make_truth, make_detections):
    crowd = (B, 0, {"iscrowd": 1})
    truth = make_truth({1: [crowd, (A, 0), (SPECK, 0), (B, 0)], 2: [(A, 0)], 3: [], 4: [(A, 0)]})
    found = [
        make_detections(1, [(A, 0.9), (A, 0.9)], prompt_index=[0, 1]),  # rows of the instances, crowd not counted
        make_detections(2, [(HALF_A, 0.9)], prompt_index=[0]),
        make_detections(3, []),
    ]
    result = mean_iou(truth, found)
    # image 1: A 1, speck left out, B not predicted 0; image 2: 1/2; image 4 not predicted at all: 0
    assert result.value == pytest.approx((1 + 0 + 0.5 + 0) / 4)
    assert (result.instances, result.empty, result.missing) == (4, 1, 2)


def test_the_surest_of_several_counts(make_truth, make_detections):
    truth = make_truth({1: [(A, 0)]})

    def iou(*scores):
        found = make_detections(1, list(zip((A, HALF_A, B), scores, strict=True)), prompt_index=[0, 0, 0])
        return instance_ious(truth[1], found)[0]

    assert (iou(0.1, 0.9, 0.5), iou(0.9, 0.1, 0.5), iou(0.1, 0.2, 0.3)) == (0.5, 1.0, 0.0)
    assert iou(0.7, 0.7, 0.7) == 1.0  # the first of equals


@pytest.mark.parametrize("count", [16, 17, 300])
def test_many_masks_of_an_image(make_truth, make_detections, count):
    """More than are compared at once, and than pycocotools can take the areas of with NumPy 2."""
    boxes = np.random.default_rng(count).integers(0, 60, (count, 2, 2))
    true = [(x, y, x + 20, y + 30) for x, y in boxes[:, 0].tolist()]
    found = [(x, y, x + 30, y + 20) for x, y in boxes[:, 1].tolist()]
    order = np.random.default_rng(0).permutation(count).tolist()
    truth = make_truth({1: [(box, 0) for box in true] + [(SPECK, 0)]})
    detections = make_detections(1, [(found[row], 0.5) for row in order], prompt_index=order)
    expected = []
    for (x, y, right, bottom), (left, top, end, low) in zip(true, found, strict=True):
        both = max(min(right, end) - max(x, left), 0) * max(min(bottom, low) - max(y, top), 0)
        expected.append(both / (2 * 600 - both))
    np.testing.assert_array_equal(instance_ious(truth[1], detections), [*expected, np.nan])
    assert np.count_nonzero(expected) > count / 4
    result = mean_iou(truth, [detections])
    assert (result.value, result.empty) == (pytest.approx(np.mean(expected), abs=1e-12), 1)


def test_undefined_and_wrong(make_truth, make_detections):
    assert math.isnan(mean_iou(make_truth({1: []}), []).value)
    truth = make_truth({1: [(A, 0)]})
    for wrong in ([1], [-1]):
        with pytest.raises(ValueError, match="image id 1 spans"):
            mean_iou(truth, [make_detections(1, [(A, 0.9)], prompt_index=wrong)])
    with pytest.raises(ValueError, match="no prompt_index"):
        mean_iou(truth, [make_detections(1, [(A, 0.9)])])
