"""Pseudo ground truth is said wherever figures or pictures of it stand, found in the file or told by the config."""

import json

import numpy as np
import pytest

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from sam_d2.evaluation import InstanceEvaluator
from sam_d2.evaluation.box_source import FileBoxes
from sam_d2.evaluation.calibration import MeasuredScores
from sam_d2.evaluation.gallery import gallery_rows, write_gallery
from sam_d2.evaluation.results import PSEUDO
from sam_d2.evaluation.run import PromptedEvaluation
from sam_d2.evaluation.side_by_side import side_by_side

NAME = "pseudo_made"


@pytest.fixture
def registered():
    annotation = {
        "bbox": [10, 10, 50, 50],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 0,
        "segmentation": [[10, 10, 50, 10, 50, 50, 10, 50]],
    }
    record = {"image_id": 1, "file_name": "1.png", "height": 100, "width": 100, "annotations": [annotation]}
    DatasetCatalog.register(NAME, lambda: [record])
    MetadataCatalog.get(NAME).thing_classes = ["thing"]
    yield annotation
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.mark.parametrize("told", [True, False])
def test_rows_of_a_file_and_of_the_baselines(registered, tmp_path, told):
    """Where the config says it, no annotation has a provenance that would."""
    evaluator = InstanceEvaluator(NAME, pseudo_ground_truth=told)
    evaluator.reset()
    (tmp_path / "boxes.json").write_text(
        json.dumps([{"image_id": 1, "category_id": 0, "bbox": [9, 9, 40, 40], "score": 0.5}])
    )
    _, own = FileBoxes(tmp_path / "boxes.json", 0.0, None).boxes_for(evaluator)
    evaluation = PromptedEvaluation(evaluator, [], tmp_path)
    evaluation._asked["box"] = evaluator
    rows = [*own, *evaluation._score_baselines()]
    assert {row.method for row in rows} == {"detector", "box_as_mask", "ellipse"}
    assert {row.pseudo_ground_truth for row in rows} == {told} == {evaluator.truth_is_pseudo}


def test_lines_of_a_calibration():
    found = MeasuredScores("box", "made", "stability", np.array([0.5, 0.6]), np.array([0.4, np.nan]), pseudo=True)
    assert found.words == "made (pseudo ground truth), box prompts, stability, 1 masks"


def test_the_gallerys_legend(make_truth, fed_back, tmp_path, monkeypatch):
    labels = []
    monkeypatch.setattr(
        "sam_d2.evaluation.gallery.write_tiles",
        lambda path, tiles, title, handles: labels.append([handle.get_label() for handle in handles]),
    )
    truth = make_truth({1: [((10, 10, 50, 50), 0)]})
    grey = np.full((100, 100, 3), 128, dtype=np.uint8)
    rows = gallery_rows(truth, fed_back(truth), read_image=lambda name: grey)
    for pseudo in (True, False):
        write_gallery(tmp_path / "g.png", rows, pseudo=pseudo)
    assert [found[0] for found in labels] == [PSEUDO, "ground truth"]


def test_the_heading_of_the_truth_beside_its_prediction(make_truth, monkeypatch):
    headings = []
    monkeypatch.setattr(
        "sam_d2.evaluation.side_by_side._with_heading", lambda image, text: headings.append(text) or image
    )
    grey = np.full((100, 100, 3), 128, dtype=np.uint8)
    for extra in ({}, {"provenance": {"model": "sam"}}):
        truth = make_truth({1: [((10, 10, 50, 50), 0, extra)]})
        side_by_side(grey, truth[1], None, ["thing"], 0.5)
    assert headings[0::2] == ["ground truth: 1", f"{PSEUDO}: 1"]
