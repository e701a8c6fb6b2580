import json
import logging
import math
from dataclasses import replace

import numpy as np
import pytest

from sam_d2.errors import UserError
from sam_d2.evaluation import (
    GroundTruth,
    detection_limit,
    detections_from_coco,
    detections_to_coco,
    evaluate_detections,
)
from sam_d2.evaluation.coco_metrics import evaluate_rankings

ENGINES = ("faster_coco_eval", "pycocotools")
A, B, NOWHERE = (10, 10, 30, 30), (50, 50, 70, 70), (10, 60, 30, 80)

pytestmark = pytest.mark.parametrize("engine", ENGINES)


def test_hit_miss_hit(engine, make_truth, make_detections):
    truth = make_truth({1: [(A, 0), (B, 0)]})
    found = [make_detections(1, [(A, 0.9), (NOWHERE, 0.8), (B, 0.7)])]
    metrics = evaluate_detections(truth, found, engine=engine)
    # precision down the ranks 1, 1/2, 2/3 at recall 1/2, 1/2, 1; of COCO's 101 recall points the 51 up to
    # 0.50 have precision 1, the 50 above have 2/3
    expected = 100 * (51 * 1 + 50 * 2 / 3) / 101
    for name in ("AP", "AP50", "AP75", "APs", "AP-thing"):
        assert metrics[name] == pytest.approx(expected, abs=1e-9), name
    # 20 x 20 is small (< 32^2): nothing of the other sizes to find
    assert all(math.isnan(metrics[name]) for name in ("APm", "APl", "ARm", "ARl"))
    # the surest detection finds one of two; all of them find both
    assert [metrics[name] for name in ("AR1", "AR10", "AR100", "AR", "ARs", "AR-thing")] == [
        50,
        100,
        100,
        100,
        100,
        100,
    ]
    assert "AP@100" not in metrics  # the limit is 100 itself


@pytest.mark.parametrize("task", ["segm", "bbox"])
def test_iou_decides_at_which_thresholds_a_detection_is_right(engine, task, make_truth, make_detections):
    truth = make_truth({1: [((10, 10, 17, 17), 0)]})
    found = [make_detections(1, [((10, 10, 17, 16), 0.9)])]
    metrics = evaluate_detections(truth, found, task=task, engine=engine)
    # IoU 42 / 49 = 0.857: right at the 8 thresholds 0.50 .. 0.85 of 10
    assert (metrics["AP"], metrics["AP50"], metrics["AP75"], metrics["AR"]) == (80, 100, 100, 80)


def test_class_mean(engine, make_truth, make_detections):
    truth = make_truth({1: [(A, 0), (B, 1)], 2: []}, classes=("cat", "dog", "never seen"))
    found = [make_detections(1, [(A, 0.9, 0), (B, 0.8, 0)]), make_detections(2, [(A, 0.7, 2)])]
    metrics = evaluate_detections(truth, found, engine=engine)
    # cat is found first, dog is not (its mask is called a cat); the third class has nothing to find
    assert (metrics["AP-cat"], metrics["AP-dog"], metrics["AP"]) == (100, 0, 50)
    assert math.isnan(metrics["AP-never seen"])


def test_classes_of_one_name_have_a_metric_each(engine, make_truth, make_detections):
    truth = make_truth({1: [(A, 0), (B, 1)]}, classes=("cell", "cell"))
    metrics = evaluate_detections(truth, [make_detections(1, [(A, 0.9, 0)])], engine=engine)
    assert (metrics["AP-cell"], metrics["AP-cell (id 1)"], metrics["AP"]) == (100, 0, 50)


def test_crowd_is_neither_right_nor_wrong(engine, make_truth, make_detections):
    crowd = (40, 40, 90, 90)
    found = [make_detections(1, [(B, 0.9), (A, 0.8)])]
    ignoring = make_truth({1: [(A, 0), (crowd, 0, {"iscrowd": 1})]})
    assert evaluate_detections(ignoring, found, engine=engine)["AP"] == 100
    # were it an instance, B (IoU 400/2500) would be wrong and rank first: precision 1/2 up to recall 1/2
    counting = make_truth({1: [(A, 0), (crowd, 0)]})
    assert evaluate_detections(counting, found, engine=engine)["AP"] == pytest.approx(100 * 51 * 0.5 / 101, abs=1e-9)


def test_limit_follows_the_data(engine, make_truth, fed_back):
    cells = [((x, y, x + 4, y + 4), 0) for y in range(0, 100, 5) for x in range(0, 40, 5)]  # 20 x 8 = 160
    truth = make_truth({1: cells})
    assert detection_limit(truth) == 160
    metrics = evaluate_detections(truth, fed_back(truth), engine=engine)
    assert (metrics["AP"], metrics["AR"]) == (100, 100)
    # 100 of 160 found: recall 0.625, so the 63 recall points 0 .. 0.62 of 101 have precision 1
    assert metrics["AP@100"] == pytest.approx(100 * 63 / 101, abs=1e-9)
    assert metrics["AR100"] == pytest.approx(62.5, abs=1e-9)
    assert metrics["AR10"] == pytest.approx(100 * 10 / 160, abs=1e-9)
    # a limit under COCO's: 40 of 160 found, so 26 recall points
    assert evaluate_detections(truth, fed_back(truth), engine=engine, max_dets=40)["AP"] == pytest.approx(
        100 * 26 / 101, abs=1e-9
    )


def test_limit_of_boxes_without_masks(engine, make_truth, fed_back):
    none = {"segmentation": None}
    cells = [((x, y, x + 4, y + 4), 0, none) for y in range(0, 75, 5) for x in range(0, 50, 5)]  # 15 x 10 = 150
    truth = make_truth({1: [*cells, (A, 0, {**none, "iscrowd": 1})]})
    assert (detection_limit(truth), detection_limit(truth, "bbox")) == (100, 150)
    metrics = evaluate_detections(truth, fed_back(truth, boxes=True), task="bbox", engine=engine)
    # 100 of 150 found: recall 0.667, so the 67 recall points 0 .. 0.66 of 101 have precision 1
    assert (metrics["AP"], metrics["AP@100"]) == (100, pytest.approx(100 * 67 / 101, abs=1e-9))


def test_empty_masks(engine, make_truth, make_detections, fed_back, caplog):
    speck = (20.6, 20.6, 20.7, 20.7)  # holds no pixel centre
    truth = make_truth({1: [(A, 0), (speck, 0)], 2: []})
    assert evaluate_detections(truth, fed_back(truth), engine=engine)["AP"] == 100
    assert "1 instances have an empty mask" in caplog.text
    # nothing is predicted for it: still nothing is missed
    assert evaluate_detections(truth, [make_detections(1, [(A, 0.5)])], engine=engine)["AP"] == 100
    # a second empty prediction, or one where no empty instance is, is wrong: precision 1/2
    nothing = (0, 0, 0, 0)
    twice = [make_detections(1, [(nothing, 0.9), (nothing, 0.8), (A, 0.5)])]
    elsewhere = [make_detections(1, [(A, 0.5)]), make_detections(2, [(nothing, 0.9)])]
    for found in (twice, elsewhere):
        assert evaluate_detections(truth, found, engine=engine)["AP"] == pytest.approx(50, abs=1e-9)


def test_nothing_predicted_and_nothing_to_find(engine, make_truth, make_detections):
    truth = make_truth({1: [(A, 0)], 2: []})
    for found in ([], [make_detections(1, []), make_detections(2, [])]):
        metrics = evaluate_detections(truth, found, engine=engine)
        assert (metrics["AP"], metrics["AR"], metrics["AR1"]) == (0, 0, 0)
    without = make_truth({1: [], 2: []})
    assert math.isnan(evaluate_detections(without, [make_detections(1, [(A, 0.9)])], engine=engine)["AP"])


def test_image_without_annotations_counts_its_false_positives(engine, make_truth, make_detections):
    truth = make_truth({1: [(A, 0)], 2: []})
    found = [make_detections(1, [(A, 0.5)]), make_detections(2, [(A, 0.9)])]
    assert evaluate_detections(truth, found, engine=engine)["AP"] == pytest.approx(50, abs=1e-9)


def test_equal_scores_rank_by_image_id(engine, make_truth, make_detections):
    truth = make_truth({7: [], 3: [(A, 0)]})
    found = [make_detections(7, [(A, 0.5)]), make_detections(3, [(A, 0.5)])]
    # image 3 goes first: full recall before the false positive of image 7
    assert evaluate_detections(truth, found, engine=engine)["AP"] == 100


@pytest.mark.parametrize("ids", [(0, 1), (2**40, 2**40), (5, 5), ("a", "b")])
def test_any_annotation_ids(engine, ids, make_truth, fed_back):
    truth = make_truth({1: [(A, 0, {"id": ids[0]}), (B, 0, {"id": ids[1]})]})
    assert evaluate_detections(truth, fed_back(truth), engine=engine)["AP"] == 100


@pytest.mark.parametrize("ids", [("left.png", "right.png"), (2**63 + 1, 2**63), (0, "0")])
def test_any_image_ids(engine, ids, make_truth, fed_back):
    truth = make_truth({ids[0]: [(A, 0)], ids[1]: [(B, 0)]})
    found = fed_back(truth)
    assert evaluate_detections(truth, found, engine=engine)["AP"] == 100
    assert {row["image_id"] for row in detections_to_coco(found, truth)} == set(ids)


def test_area_is_the_files(engine, make_truth, fed_back):
    # 20 x 20 called 50 x 50 by the file: medium
    truth = make_truth({1: [(A, 0, {"area": 2500})]})
    metrics = evaluate_detections(truth, fed_back(truth), engine=engine)
    assert metrics["ARm"] == 100
    assert math.isnan(metrics["ARs"])


def test_unknown_image_or_class(engine, make_truth, make_detections):
    truth = make_truth({1: [(A, 0)]}, name="tiles")
    with pytest.raises(UserError, match=r"tiles.*image id 2"):
        evaluate_detections(truth, [make_detections(2, [(A, 0.9)])], engine=engine)
    with pytest.raises(UserError, match=r"tiles.*class 1.*1 classes"):
        evaluate_detections(truth, [make_detections(1, [(A, 0.9, 1)])], engine=engine)
    with pytest.raises(ValueError, match="two lots"):
        evaluate_detections(truth, [make_detections(1, [(A, 0.9)])] * 2, engine=engine)
    with pytest.raises(UserError, match="category 9"):
        detections_from_coco([{"image_id": 1, "category_id": 9, "score": 1.0, "bbox": [0, 0, 1, 1]}], truth)


def random_scene(make_truth, make_detections, seed):
    """Three classes, crowd regions, misses, duplicates, ties of score and boxes of all three sizes."""
    rng = np.random.default_rng(seed)

    def boxes(count):
        corners = rng.integers(0, 60, size=(count, 2))
        return [
            (int(x), int(y), int(x + w), int(y + h))
            for (x, y), (w, h) in zip(corners, rng.integers(3, 40, (count, 2)), strict=True)
        ]

    images, found = {}, []
    for image_id in range(12):
        truth = boxes(int(rng.integers(0, 9)))
        images[image_id] = [(box, int(rng.integers(3)), {"iscrowd": int(rng.random() < 0.15)}) for box in truth]
        rows = [
            (box, round(float(rng.random()), 1), category)
            for box, category, _ in images[image_id]
            if rng.random() < 0.8
        ]
        shifted = [((x0 + 1, y0, x1 + 2, y1), round(float(rng.random()), 1), c) for (x0, y0, x1, y1), _, c in rows]
        stray = [(box, round(float(rng.random()), 1), int(rng.integers(3))) for box in boxes(3)]
        found.append(make_detections(image_id, rows + shifted + stray))
    return make_truth(images, classes=("a", "b", "c")), found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("task", ["segm", "bbox"])
def test_engines_agree(engine, seed, task, make_truth, make_detections):
    truth, found = random_scene(make_truth, make_detections, seed)
    metrics = evaluate_detections(truth, found, task=task, engine=engine)
    reference = evaluate_detections(truth, found, task=task, engine=ENGINES[1 - ENGINES.index(engine)])
    assert metrics.keys() == reference.keys()
    np.testing.assert_allclose(list(metrics.values()), list(reference.values()), rtol=0, atol=1e-9)
    assert 0 < metrics["AP"] < 100


@pytest.mark.parametrize("limit", [100, 2])
@pytest.mark.parametrize("task", ["segm", "bbox"])
def test_other_scores_of_the_same_detections(engine, limit, task, make_truth, make_detections):
    """Each ranking is what it is alone, also where detections are beyond the limit in one and not in another."""
    truth, found = random_scene(make_truth, make_detections, 5)
    found[0] = make_detections(0, [(A, 0.5)] * 60 + [(B, 0.5)] * 70)
    rng = np.random.default_rng(0)
    rankings = {name: [rng.random(len(image)).round(1) for image in found] for name in "abc"}
    together = evaluate_rankings(truth, found, rankings, task=task, engine=engine, max_dets=limit)
    for name, scores in rankings.items():
        images = [replace(image, scores=values) for image, values in zip(found, scores, strict=True)]
        alone = evaluate_detections(truth, images, task=task, engine=engine, max_dets=limit)
        np.testing.assert_equal(together[name], alone)
    assert len({metrics["AP"] for metrics in together.values()}) == 3


def test_coco_round_trip(engine, make_truth, make_detections):
    truth, found = random_scene(make_truth, make_detections, 0)
    rows = json.loads(json.dumps(detections_to_coco(found, truth)))
    again = evaluate_detections(truth, detections_from_coco(rows, truth), engine=engine)
    np.testing.assert_equal(again, evaluate_detections(truth, found, engine=engine))


@pytest.mark.parametrize("task", ["segm", "bbox"])
def test_published_numbers_of_the_coco_api(engine, task, real_data):
    folder = real_data / "eval/cocoapi_val2014_100"
    truth = GroundTruth.from_coco(json.loads((folder / "instances_val2014_100.json").read_text()), name="val2014")
    results = json.loads((folder / f"instances_val2014_fake{task}100_results.json").read_text())
    metrics = evaluate_detections(truth, detections_from_coco(results, truth), task=task, engine=engine)
    published = json.loads((folder / "expected.json").read_text())["published_full_by_faster_coco_eval"][task]
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    np.testing.assert_allclose([metrics[name] / 100 for name in names], published, rtol=0, atol=1e-9)


REAL_SETS = {
    "iwp/dataset_train.json": 6045,
    "iwp/dataset_test.json": 5116,
    "coco_tiny80/annotations/instances_train2017.json": 705,
    "coco_tiny80/annotations/instances_val2017.json": 815,
    "nuts18/annotations/trainval.json": 165,
    "mushroom_dense/annotations/train.coco.json": 10335,
    "mushroom_dense/annotations/valid.coco.json": 702,
    "mushroom_dense/annotations/test.coco.json": 594,
    "dsb2018_nuclei/derived/instances.json": 4824,
}
SLOW_WITH_PYCOCOTOOLS = (
    "iwp/dataset_train.json",
    "iwp/dataset_test.json",
    "mushroom_dense/annotations/train.coco.json",
    "dsb2018_nuclei/derived/instances.json",
)


def fed_back_is_exactly_100(engine, file, real_data, fed_back, caplog):
    content = json.loads((real_data / file).read_text())
    if isinstance(content, list):
        truth = GroundTruth.from_dataset_dicts(content, ["iwp"], name=file)
    else:
        truth = GroundTruth.from_coco(content, name=file)
    assert sum(len(image.annotations) for image in truth.images) == REAL_SETS[file]
    caplog.set_level(logging.ERROR)
    metrics = evaluate_detections(truth, fed_back(truth), engine=engine)
    for name, value in metrics.items():
        if name not in ("AP@100", "AR1", "AR10", "AR100"):
            assert value == 100 or math.isnan(value), name
    assert metrics["AP"] == 100


def test_boxes_of_real_data_without_masks_fed_back_are_exactly_100(engine, real_data, fed_back):
    if engine == "pycocotools":
        pytest.skip("7 s with pycocotools")
    records = json.loads((real_data / "iwp/dataset_test.json").read_text())
    for annotation in (annotation for record in records for annotation in record["annotations"]):
        del annotation["segmentation"]
    truth = GroundTruth.from_dataset_dicts(records, ["iwp"])
    assert evaluate_detections(truth, fed_back(truth, boxes=True), task="bbox", engine=engine)["AP"] == 100


@pytest.mark.parametrize("file", REAL_SETS)
def test_ground_truth_fed_back_is_exactly_100(engine, file, real_data, fed_back, caplog):
    if engine == "pycocotools" and file in SLOW_WITH_PYCOCOTOOLS:
        pytest.skip("4 to 10 s with pycocotools: among the slow tests")
    fed_back_is_exactly_100(engine, file, real_data, fed_back, caplog)


@pytest.mark.slow
@pytest.mark.parametrize("file", SLOW_WITH_PYCOCOTOOLS)
def test_ground_truth_fed_back_is_exactly_100_slow(engine, file, real_data, fed_back, caplog):
    fed_back_is_exactly_100(engine, file, real_data, fed_back, caplog)
