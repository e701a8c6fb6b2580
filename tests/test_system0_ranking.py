"""System 0 ranked good masks by their mean pixel and lost two thirds of its mask AP; here is how, and the repair.

It scored each mask by the mean of its positive pixels, rounded to two decimals, and not by its class. Its published
mask AP is 9.3 beside a box AP of 32.9, its mask AR 32.7 beside 38.7: recall, which knows no order, was hardly hurt.
"""

import copy
import json

import numpy as np
import pycocotools.mask as mask_utils
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import sam_d2  # noqa: F401
from detectron2.structures import Boxes, Instances
from sam_d2.evaluation import GroundTruth, InstanceEvaluator, detections_from_coco, evaluate_detections

SIZE = (100, 100)
TRUE = ((10, 10), (60, 10), (10, 60), (60, 60))
"""Left upper pixels of four objects of 10 x 10 pixels."""
CLASS_SCORES = (0.96, 0.92, 0.82, 0.76)
FALSE = (*((5 + 8 * index, 40) for index in range(11)), (5, 50))
"""Twelve blobs of 6 x 6 pixels where nothing is: one that the class score believes in, eleven that it does not."""
FALSE_CLASS_SCORES = (0.86, *(0.295 - 0.005 * index for index in range(11)))

# Ranked by class score:     T T F T T, then eleven F.
#   recall 1/4, 2/4: precision 1; recall 3/4: 3/4; recall 1: 4/5. What counts at a recall is the best precision from
#   there on: 1 up to 0.50 (51 of COCO's 101 recalls), 4/5 beyond (50). AP = (51 + 50 * 0.8) / 101 = 91/101.
BY_CLASS = 100 * 91 / 101
# Ranked by mean pixel: all twelve F (0.95 each), then the four T (0.75 each).
#   precision 1/13, 2/14, 3/15, 4/16: the best from anywhere on is 1/4. AP = 25.
BY_MEAN_PIXEL = 25.0
# All masks are exact where they are right, so it is the same at every IoU threshold, and all four are found: AR = 100.


def soft_masks():
    """(16, 100, 100) in [0, 1]: objects of 0.9 with an edge of 0.4 around, as good masks have; hard blobs of 0.95."""
    masks = np.zeros((len(TRUE) + len(FALSE), *SIZE))
    for mask, (x, y) in zip(masks, TRUE, strict=False):
        mask[y - 1 : y + 11, x - 1 : x + 11] = 0.4
        mask[y : y + 10, x : x + 10] = 0.9
    for mask, (x, y) in zip(masks[len(TRUE) :], FALSE, strict=True):
        mask[y : y + 6, x : x + 6] = 0.95
    return masks


def mean_pixel(mask):
    """System 0's score of a mask."""
    return round(float(np.mean(mask[mask > 0])), 2)


def coco_truth():
    boxes = [[x, y, 10, 10] for x, y in TRUE]
    annotations = [
        {
            "id": number, "image_id": 1, "category_id": 1, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0,
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        }
        for number, (x, y, w, h) in enumerate(boxes, 1)
    ]  # fmt: skip
    image = {"id": 1, "file_name": "made.png", "width": SIZE[1], "height": SIZE[0]}
    return {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}


def coco_results(scores):
    results = []
    for mask, score in zip(soft_masks() > 0.5, scores, strict=True):
        rle = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
        segmentation = {"size": list(SIZE), "counts": rle["counts"].decode()}
        results.append({"image_id": 1, "category_id": 1, "score": score, "segmentation": segmentation})
    return results


def ap_of_pycocotools(results):
    truth = COCO()
    truth.dataset = json.loads(json.dumps(coco_truth()))
    truth.createIndex()
    found = truth.loadRes(copy.deepcopy(results))  # it adds to them
    evaluator = COCOeval(truth, found, "segm")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return 100 * evaluator.stats[0], 100 * evaluator.stats[8]  # AR at 100 detections


def test_mean_pixels_by_hand():
    # an object: 100 pixels of 0.9 and an edge of 12 * 12 - 100 = 44 of 0.4: (90 + 17.6) / 144 = 0.747
    assert [mean_pixel(mask) for mask in soft_masks()] == [0.75] * 4 + [0.95] * 12


@pytest.mark.parametrize("engine", ["faster_coco_eval", "pycocotools"])
@pytest.mark.parametrize(("ranking", "ap"), [("mean pixel", BY_MEAN_PIXEL), ("class score", BY_CLASS)])
def test_the_same_masks_in_two_orders(engine, ranking, ap):
    scores = [mean_pixel(mask) for mask in soft_masks()]
    results = coco_results(scores if ranking == "mean pixel" else [*CLASS_SCORES, *FALSE_CLASS_SCORES])
    assert ap_of_pycocotools(results) == pytest.approx((ap, 100))
    truth = GroundTruth.from_coco(coco_truth())
    metrics = evaluate_detections(truth, detections_from_coco(results, truth), engine=engine)
    assert (metrics["AP"], metrics["AP50"], metrics["AP75"], metrics["AR"]) == pytest.approx((ap, ap, ap, 100))


def test_one_evaluation_shows_the_failure_and_the_repair():
    soft = torch.from_numpy(soft_masks())
    found = Instances(SIZE)
    found.pred_masks = soft > 0.5
    found.pred_boxes = Boxes(torch.zeros(16, 4))
    found.pred_classes = torch.zeros(16, dtype=torch.int64)
    found.class_score = torch.tensor([*CLASS_SCORES, *FALSE_CLASS_SCORES])
    found.mean_probability = torch.stack([mask[mask > 0.5].mean() for mask in soft]).float()
    found.scores = torch.tensor([mean_pixel(mask) for mask in soft.numpy()])
    truth = GroundTruth.from_coco(coco_truth())
    evaluator = InstanceEvaluator(
        "made",
        ground_truth=truth,
        prompt="none",
        prompt_source="detector",
        score="mean pixel",
        scores=["class_score", "mean_probability", "class_score*mean_probability", "class_score*mean_probability^30"],
        tasks=["segm"],
    )
    evaluator.reset()
    evaluator.process([{"image_id": 1, "height": SIZE[0], "width": SIZE[1]}], [{"instances": found}])
    assert evaluator.evaluate()["segm"]["AP"] == pytest.approx(BY_MEAN_PIXEL)
    rows = {row.score: row for row in evaluator.results}
    # The mean over the thresholded mask (0.9 of objects, 0.95 of blobs) fails as the mean pixel does. Times the class
    # score it is 0.864, 0.828 (T T), 0.817 (F), 0.738, 0.684 (T T), then at most 0.28: the order of the class score. To
    # the power of 30 it is 0.042 of objects and 0.215 of blobs, so that the least blob, 0.245 * 0.215 = 0.053, ranks
    # above the first object, 0.96 * 0.042 = 0.041.
    assert {name: row.metrics["AP"] for name, row in rows.items()} == pytest.approx(
        {
            "mean pixel": BY_MEAN_PIXEL,
            "class_score": BY_CLASS,
            "mean_probability": BY_MEAN_PIXEL,
            "class_score*mean_probability": BY_CLASS,
            "class_score*mean_probability^30": BY_MEAN_PIXEL,
        }
    )
    assert {row.metrics["AR"] for row in rows.values()} == {100}
    assert [name for name, row in rows.items() if row.ranks] == ["mean pixel"]
    # An object's IoU is 1, a blob's 0. Class scores by bins: eleven blobs of 0.27 on average; 0.76; 0.82 and a blob of
    # 0.86, mean 0.84 and IoU 1/2; 0.92 and 0.96: 11 * 0.27 + 0.24 + 2 * 0.34 + 2 * 0.06 = 4.01
    ece = 4.01 / 16
    assert rows["class_score"].metrics["ECE"] == pytest.approx(ece, abs=1e-6)
    # 0.75 of four objects, 0.95 of twelve blobs: (4 * 0.25 + 12 * 0.95) / 16
    assert rows["mean pixel"].metrics["ECE"] == pytest.approx(12.4 / 16, abs=1e-6)


def test_two_decimals_make_ties_that_the_order_of_the_file_decides():
    # Objects of 0.954 and blobs of 0.946 are in the right order: AP 100. Rounded, all are 0.95, and what is listed
    # first ranks first: objects before blobs is 100 again, blobs before objects 25.
    exact = [0.954] * 4 + [0.946] * 12
    assert ap_of_pycocotools(coco_results(exact)[::-1])[0] == pytest.approx(100)
    rounded = coco_results([round(score, 2) for score in exact])
    assert ap_of_pycocotools(rounded)[0] == pytest.approx(100)
    assert ap_of_pycocotools(rounded[::-1])[0] == pytest.approx(BY_MEAN_PIXEL)
