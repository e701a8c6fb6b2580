"""The gap between an AP and 100, by cause: made data in which each share can be worked out by hand.

COCO's AP is the mean over 10 IoU thresholds (0.50, 0.55, ..., 0.95) and 101 recall levels. A mask of 31 of an
instance's 40 columns has IoU 0.775 and is right at 6 thresholds; 37 of 40 (0.925) at 9, 25 of 40 (0.625) at 3. With
one of two instances found the precision counts at 51 of 101 levels.
"""

import numpy as np
import pytest

from sam_d2.evaluation import evaluate_detections
from sam_d2.evaluation.gap import BOX_CAUSES, CAUSES, explain_gap

A = (0, 0, 40, 40)
B = (50, 50, 90, 90)
ELSEWHERE = (0, 60, 30, 90)
HALF = 5100 / 101


def part(box, columns):
    """The first columns of a box."""
    return (box[0], box[1], box[0] + columns, box[3])


@pytest.fixture
def shares(make_truth, make_detections):
    """``shares({id: instances}, {id: found}, {id: oracle's masks})``: the gap; prompts are the boxes of the masks."""

    def explain(instances, found, oracle, boxes=None, classes=("one", "two")):
        truth = make_truth(instances, classes)
        masks = [make_detections(key, rows, list(range(len(rows)))) for key, rows in oracle.items()]
        detections = [make_detections(key, rows) for key, rows in found.items()]
        given = {key: np.array([row[0] for row in rows], float).reshape(-1, 4) for key, rows in found.items()}
        gap = explain_gap(truth, detections, masks, (boxes or given).__getitem__)
        ap = evaluate_detections(truth, detections)["AP"]
        assert gap.total == pytest.approx(100 - ap, abs=1e-9)
        assert gap.total == pytest.approx(sum(getattr(gap, cause) for cause in CAUSES), abs=1e-9)
        causes = ("classes", *BOX_CAUSES, "masks")
        return {cause: value for cause in causes if abs(value := getattr(gap, cause)) > 1e-9}

    return explain


def test_nothing_is_missing(shares):
    assert shares({1: [(A, 0), (B, 1)]}, {1: [(A, 0.9, 0), (B, 0.8, 1)]}, {1: [(A, 0.5, 0), (B, 0.4, 1)]}) == {}


def test_wrong_classes(shares):
    """Each of the other's class: AP 0; with the classes of the instances that they lie on 100."""
    found = {1: [(A, 0.9, 1), (B, 0.8, 0)]}
    assert shares({1: [(A, 0), (B, 1)]}, found, {1: [(A, 0.5, 0), (B, 0.4, 1)]}) == {"classes": pytest.approx(100)}


def test_imprecise_boxes_and_masks(shares):
    """In the detector's box 60, in the true box 90."""
    gap = shares({1: [(A, 0)]}, {1: [(part(A, 31), 0.9)]}, {1: [(part(A, 37), 0.5)]})
    assert gap == {"imprecise": pytest.approx(30), "masks": pytest.approx(10)}


def test_the_box_says_where_a_detection_is_and_not_its_mask(shares):
    found = {1: [(ELSEWHERE, 0.9)]}
    gap = shares({1: [(A, 0)]}, found, {1: [(A, 0.5)]}, boxes={1: np.array([A], dtype=float)})
    assert gap == {"imprecise": pytest.approx(100)}


def test_an_overlap_of_half_is_the_limit(shares):
    """19 of 40 columns are no detection of the instance: without it the AP remains 0; 20 are one."""
    for columns, expected in ((19, {"missed": pytest.approx(100)}), (20, {"imprecise": pytest.approx(90)})):
        # IoU 0.5 of the mask is right at the first threshold, AP 10
        assert shares({1: [(A, 0)]}, {1: [(part(A, columns), 0.9)]}, {1: [(A, 0.5)]}) == expected


def test_false_boxes(shares):
    """A surer one on nothing: precision 1/2, AP 50."""
    gap = shares({1: [(A, 0)]}, {1: [(ELSEWHERE, 0.9), (A, 0.8)]}, {1: [(A, 0.5)]})
    assert gap == {"false": pytest.approx(50)}


def test_false_boxes_of_an_image_without_instances(shares):
    gap = shares({1: [(A, 0)], 2: []}, {1: [(A, 0.8)], 2: [(A, 0.9)]}, {1: [(A, 0.5)], 2: []})
    assert gap == {"false": pytest.approx(50)}


def test_of_two_boxes_of_an_instance_the_surest_remains(shares):
    """The surer, of IoU 0.625, is right at 3 thresholds; at the other 7 it is false and precedes the right one:
    (3 * 100 + 7 * 50) / 10 = 65. With the mask of the true box it is right, and the other comes too late to matter.
    """
    gap = shares({1: [(A, 0)]}, {1: [(part(A, 25), 0.9), (A, 0.8)]}, {1: [(A, 0.5)]})
    assert gap == {"imprecise": pytest.approx(35)}


def test_the_surest_is_the_one_of_the_highest_score(shares):
    """A, found twice, ranks before the rougher B, as the oracle has it; by its other score it would rank behind."""
    rough = part(B, 31)
    found, oracle = {1: [(A, 0.1), (rough, 0.5), (A, 0.9)]}, {1: [(A, 0.9), (rough, 0.1)]}
    boxes = {1: np.array([A, B, A], dtype=float)}
    gap = shares({1: [(A, 0), (B, 0)]}, found, oracle, boxes=boxes, classes=("one",))
    assert gap == {"masks": pytest.approx(0.4 * (100 - HALF))}


def test_missed_boxes(shares):
    gap = shares({1: [(A, 0), (B, 0)]}, {1: [(A, 0.9)]}, {1: [(A, 0.5), (B, 0.4)]}, classes=("one",))
    assert gap == {"missed": pytest.approx(100 - HALF)}


def test_an_image_without_a_detection(shares):
    gap = shares({1: [(A, 0)], 2: [(B, 0)]}, {1: [(A, 0.9)], 2: []}, {1: [(A, 0.5)], 2: [(B, 0.4)]}, classes=("one",))
    assert gap == {"missed": pytest.approx(100 - HALF)}


def test_ranking(shares):
    """Of A and three quarters of B the detector is surer of B, the oracle of A. At 4 thresholds B is false: before A
    the precision at A is 1/2 at half of the recall, after A it is 1: 4 thresholds * HALF / 2 / 10.
    """
    rough = part(B, 31)
    found, oracle = {1: [(A, 0.1), (rough, 0.9)]}, {1: [(A, 0.9), (rough, 0.1)]}
    gap = shares({1: [(A, 0), (B, 0)]}, found, oracle, boxes={1: np.array([A, B], dtype=float)}, classes=("one",))
    assert gap == {"ranking": pytest.approx(0.4 * HALF / 2), "masks": pytest.approx(0.4 * (100 - HALF))}


def test_a_share_may_be_negative(shares):
    """As above, with the ranking the other way about."""
    rough = part(B, 31)
    found, oracle = {1: [(A, 0.9), (rough, 0.1)]}, {1: [(A, 0.1), (rough, 0.9)]}
    gap = shares({1: [(A, 0), (B, 0)]}, found, oracle, boxes={1: np.array([A, B], dtype=float)}, classes=("one",))
    worse = 0.4 * HALF / 2
    assert gap == {"ranking": pytest.approx(-worse), "masks": pytest.approx(0.4 * (100 - HALF) + worse)}


NESTED = (0, 0, 40, 24)
"""In A, with an IoU of 0.6."""


@pytest.mark.parametrize(
    "instances",
    [
        [(A, 0), (A, 1)],  # two classes on one box
        [(NESTED, 0), (A, 1)],
        [(A, 0), (A, 0)],  # two objects of a class that have the same box
        [(A, 0), (NESTED, 0)],
    ],
)
@pytest.mark.parametrize("scores", [(0.9, 0.8), (0.8, 0.9)])
def test_a_detector_that_finds_all_has_no_share(shares, instances, scores):
    """Also where both prompts lie nearer to one instance than to the other: each instance is taken once."""
    found = [(box, score, category) for (box, category), score in zip(instances, scores, strict=True)]
    boxes = [[box for box, _ in instances], [instances[0][0]] * 2, [(0, 0, 40, 32)] * 2]
    for prompts in boxes:
        assert shares({1: instances}, {1: found}, {1: found}, boxes={1: np.array(prompts, dtype=float)}) == {}


def test_a_second_detection_of_another_class_is_false(shares):
    """The instance is its own class's, so the class of the surer one is not repaired: AP of "one" 100 all along.

    "two", an instance of which is elsewhere and found last, has its first detection on nothing: precision 1/2.
    """
    instances = {1: [(A, 0), (B, 1)]}
    found = {1: [(A, 0.9, 1), (A, 0.8, 0), (B, 0.7, 1)]}
    gap = shares(instances, found, {1: [(A, 0.5, 0), (B, 0.4, 1)]})
    assert gap == {"false": pytest.approx(25)}


def test_a_crowd_is_no_instance(shares, make_truth):
    """Boxes in a crowd region are neither right nor wrong, and its class repairs none."""
    crowd = (B, 1, {"iscrowd": 1})
    gap = shares({1: [(A, 0), crowd]}, {1: [(A, 0.8, 0), (B, 0.9, 1)]}, {1: [(A, 0.5, 0)]})
    assert gap == {}


def test_the_shares_of_any_detections_sum_to_the_gap(shares):
    rng = np.random.default_rng(0)

    def boxes(count):
        low = rng.integers(0, 50, (count, 2))
        return [tuple(box) for box in np.concatenate([low, low + rng.integers(10, 50, (count, 2))], axis=1).tolist()]

    instances = {key: [(box, int(rng.integers(2))) for box in boxes(5)] for key in range(4)}
    found = {
        key: [
            (tuple(np.clip(np.add(box, rng.integers(-6, 7, 4)), 0, 100).tolist()), rng.random(), int(rng.integers(2)))
            for box, _ in [*rows, *rows[:2]]
        ]
        for key, rows in instances.items()
    }
    oracle = {key: [(box, rng.random(), category) for box, category in rows] for key, rows in instances.items()}
    assert set(shares(instances, found, oracle)) >= {"classes", "imprecise", "false"}


def test_masks_and_boxes_that_do_not_belong_together(shares):
    with pytest.raises(ValueError, match="1 masks of 2 boxes"):
        shares({1: [(A, 0)]}, {1: [(A, 0.9)]}, {1: [(A, 0.5)]}, boxes={1: np.zeros((2, 4))})
