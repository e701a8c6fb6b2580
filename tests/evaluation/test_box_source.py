"""Where boxes come from: as many prompts as detections count, and classes that are the dataset's."""

import json

import numpy as np
import pytest
import torch

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from sam_d2.config import apply_overrides, load_config
from sam_d2.errors import UserError
from sam_d2.evaluation import InstanceEvaluator, evaluate_detections, results_table
from sam_d2.evaluation.box_source import DetectorBoxes, FileBoxes
from sam_d2.evaluation.detections import ImageDetections
from sam_d2.model_classes import KEY

NAME = "boxes_made"
COUNT = 150


@pytest.fixture
def crowded():
    """Registered dataset with an image of 150 squares in 15 columns, and the boxes of these."""
    boxes = [[6 * (n % 15), 6 * (n // 15), 6 * (n % 15) + 5, 6 * (n // 15) + 5] for n in range(COUNT)]
    annotations = [
        {
            "bbox": [x0, y0, x1, y1],
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": 0,
            "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
        }
        for x0, y0, x1, y1 in boxes
    ]
    record = {"image_id": 1, "file_name": "1.png", "height": 100, "width": 100, "annotations": annotations}
    DatasetCatalog.register(NAME, lambda: [record])
    MetadataCatalog.get(NAME).thing_classes = ["square"]
    yield boxes
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture
def prompts_of(crowded, tmp_path):
    """``prompts_of(max_boxes=..., min_score=..., max_dets=...)``: evaluator, prompts and the file's own rows."""
    rows = [
        {"image_id": 1, "category_id": 0, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": 0.99 - row / 200}
        for row, (x0, y0, x1, y1) in enumerate(crowded)
    ]
    (tmp_path / "boxes.json").write_text(json.dumps(rows))

    def of(*, max_dets=None, **limits):
        evaluator = InstanceEvaluator(NAME, max_dets=max_dets)
        evaluator.reset()
        return evaluator, *FileBoxes(tmp_path / "boxes.json", **limits).boxes_for(evaluator)

    return of


def test_by_default_the_pair_gets_as_many_boxes_as_count_of_their_maker(prompts_of, root):
    """150 true boxes: with all of them as masks the AP is 100, as that of the file; of 100 it would be 67 of 101."""
    asked = load_config(root / "configs" / "sam_tiny.py").dataloader.detector
    evaluator, prompts, (own,) = prompts_of(max_boxes=asked.max_boxes, min_score=asked.min_score)
    found = prompts[1]
    truth = evaluator.ground_truth
    masks = ImageDetections(
        1, found.scores.double().numpy(), found.pred_classes.numpy(), found.pred_boxes.tensor.double().numpy(),
        [one.rle for one in truth[1].instances],
    )  # fmt: skip
    assert own.metric("AP") == evaluate_detections(truth, [masks])["AP"] == 100
    assert prompts.left_out == {}


@pytest.mark.parametrize(
    ("limits", "left_out", "words"),
    [
        ({"max_boxes": 100, "min_score": 0.0}, {"max_boxes": 50}, "(without 50 boxes beyond max_boxes)"),
        ({"max_boxes": None, "min_score": 0.25}, {"min_score": 1}, "(without 1 box below min_score)"),
        ({"max_boxes": None, "min_score": 0.0, "max_dets": 40}, {"limit": 110}, "(without 110 boxes beyond max dets)"),
    ],
)
def test_what_is_left_out_stands_in_the_rows(prompts_of, limits, left_out, words):
    evaluator, prompts, (own,) = prompts_of(**limits)
    assert prompts.left_out == left_out and own.prompts_left_out == {}
    evaluator.ask("detector", source="file", score="class_score", left_out=prompts.left_out)
    evaluator.reset()
    evaluator.detections = [ImageDetections(1, np.zeros(0), np.zeros(0, np.int64), np.zeros((0, 4)), [], factors=None)]
    evaluator.evaluate()
    assert {row.task: row.prompts_left_out for row in evaluator.results} == {"segm": left_out, "bbox": left_out}
    assert words in results_table(evaluator.results)


@pytest.fixture
def detector_of(root, tmp_path):
    """``detector_of(count, names)``: boxes of a detector of so many classes, whose run recorded these names or none."""
    weights = tmp_path / "model_final.pth"

    def of(count, names, **options):
        cfg = apply_overrides(load_config(root / "configs" / "mask_rcnn_R_18_FPN.py"), [])
        if names is not None:
            cfg = apply_overrides(cfg, [f"+{KEY}.names={names}", f"+{KEY}.ids={list(range(count))}"])
        head = "roi_heads.box_predictor.cls_score.weight"
        torch.save({"model": {head: torch.zeros(count + 1, 4)}}, weights)
        return DetectorBoxes(cfg, weights, 0.0, None, torch.device("cpu"), 0, tmp_path, **options)

    return of


@pytest.fixture
def animals():
    """Registered dataset of two classes."""
    DatasetCatalog.register("animals_made", lambda: [])
    MetadataCatalog.get("animals_made").thing_classes = ["cat", "dog"]
    yield "animals_made"
    DatasetCatalog.remove("animals_made")
    MetadataCatalog.remove("animals_made")


def test_classes_of_other_names_are_refused(detector_of, animals):
    detector_of(2, ["cat", "dog"]).check(animals)
    with pytest.raises(UserError, match=r"'dog' is 'cat', 'cat' is 'dog' there.*match_classes=false"):
        detector_of(2, ["dog", "cat"]).check(animals)
    with pytest.raises(UserError, match=r"other classes than animals_made: 'hound' is 'dog' there"):
        detector_of(2, ["cat", "hound"]).check(animals)
    detector_of(2, ["cat", "hound"], match_classes=False).check(animals)


def test_names_that_nobody_knows_are_assumed_and_said(detector_of, animals):
    assert detector_of(2, None)._require_classes(2, animals) == "'class 0' is 'cat', 'class 1' is 'dog'"
    assert detector_of(2, ["cat", "dog"])._require_classes(2, animals) == ""


def test_without_a_record_80_classes_are_cocos(detector_of, animals):
    MetadataCatalog.remove(animals)
    MetadataCatalog.get(animals).thing_classes = [f"thing {number}" for number in range(80)]
    with pytest.raises(UserError, match=r"'person' is 'thing 0', 'bicycle' is 'thing 1', .* and 75 more there"):
        detector_of(80, None).check(animals)
