import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest

from sam_d2.errors import UserError
from sam_d2.evaluation import Result, write_report
from sam_d2.evaluation.report_data import (
    VERSION,
    EvaluationInfo,
    Run,
    evaluation_path,
    flat_config,
    read_curves,
    read_evaluation,
    read_run,
    write_evaluation,
)
from sam_d2.evaluation.report_instances import evaluation_of

A, HALF_A, B = (10, 10, 30, 30), (10, 10, 20, 30), (50, 50, 60, 90)


def info(**keys):
    standard = {
        "version": VERSION, "split": "made", "prompt": "box", "prompt_source": "ground_truth",
        "score": "predicted_iou", "written": "2026-01-02T03:04:05+00:00", "checkpoint": "model_final.pth",
        "device": "cpu", "versions": {"torch": "2"}, "seconds": 1.0, "paired": True,
        "image_names": ["1.png", "2.png"], "class_names": ["a", "b"], "config": "model: {}\n", "tiles": [],
    }  # fmt: skip
    return EvaluationInfo(**{**standard, **keys})


def result(**keys):
    standard = {
        "split": "made", "prompt": "box", "prompt_source": "ground_truth", "method": "model", "task": "segm",
        "score": "predicted_iou", "max_dets": 100, "pseudo_ground_truth": False, "seconds": 1.5,
        "metrics": {"AP": 50.0, "mIoU": 0.5},
    }  # fmt: skip
    return Result(**{**standard, **keys})


@pytest.fixture
def paired(make_truth, make_detections):
    """Instances A and B on image 1, A on image 2; one half right, one not predicted, one predicted twice."""
    truth = make_truth({1: [(A, 0), (B, 1)], 2: [(A, 0)]}, ["a", "b"])
    found = [
        make_detections(1, [(HALF_A, 0.7)], prompt_index=[0]),
        make_detections(2, [(HALF_A, 0.4), (A, 0.6)], prompt_index=[0, 0]),
    ]
    return evaluation_of(truth, found, info())


def test_each_instance_with_its_own_prediction(paired):
    assert paired.image.tolist() == [0, 0, 1]
    assert paired.category.tolist() == [0, 1, 0]
    assert paired.size.tolist() == [20, 20, 20]  # 20 x 20 and 10 x 40 square pixels
    assert paired.iou.tolist() == [0.5, 0, 1]  # of two predictions the surer counts
    assert paired.score.tolist() == pytest.approx([0.7, math.nan, 0.6], nan_ok=True)
    assert paired.baselines["box_as_mask"].tolist() == [1, 1, 1]
    # a circle covers pi / 4 of its square; pixels of a circle of diameter 20 come within 1 % of it
    assert paired.baselines["ellipse"][0] == pytest.approx(math.pi / 4, rel=0.01)


def test_detections_stand_with_the_instance_of_their_class(make_truth, make_detections):
    truth = make_truth({1: [(A, 0), (B, 1)], 2: [(A, 1)], 3: []}, ["a", "b"])
    found = [make_detections(1, [(A, 0.9, 1), (HALF_A, 0.3, 0), (B, 0.8, 1)]), make_detections(2, [(A, 0.9, 0)])]
    detector = info(prompt_source="detector", paired=False, image_names=["1.png", "2.png", "3.png"])
    rows = evaluation_of(truth, found, detector)
    assert rows.iou.tolist() == [0.5, 1, 0]  # the whole of A was found as the other class
    assert rows.score.tolist() == pytest.approx([0.3, 0.8, math.nan], nan_ok=True)
    assert rows.baselines == {}


def test_written_and_read_again(tmp_path, paired):
    path = evaluation_path(tmp_path / "run", "box")
    paired.pictures = []
    write_evaluation(path, paired)
    again = read_evaluation(path)
    assert again.info == paired.info
    for name in ("image", "category", "size", "iou", "score"):
        np.testing.assert_array_equal(getattr(again, name), getattr(paired, name))
    np.testing.assert_array_equal(again.baselines["ellipse"], paired.baselines["ellipse"])
    assert [file.name for file in path.parent.iterdir()] == ["instances_box.npz"]


def test_a_kind_of_prompt_names_no_folder(tmp_path):
    assert evaluation_path(tmp_path, "../../etc/x").parent == tmp_path


@pytest.mark.parametrize("damage", ["cut", "text", "columns", "row", "version", "pickle"])
def test_damaged_evaluation(tmp_path, paired, damage):
    path = tmp_path / "instances_box.npz"
    if damage == "columns":
        paired.size = paired.size[:2]
    if damage == "row":
        paired.image[0] = 7
    if damage == "version":
        paired.info.version = 99
    write_evaluation(path, paired)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    if damage == "text":
        path.write_text("no archive")
    if damage == "pickle":
        np.savez(path, info=np.array([{}], dtype=object))
    with pytest.raises(UserError, match=r"instances_box\.npz: .*--eval-only"):
        read_evaluation(path)


def test_run_folder(tmp_path, paired):
    write_report(tmp_path / "report.json", [result()])
    older = msgspec.structs.replace(paired.info, prompt="point", written="2025-01-01T00:00:00+00:00")
    write_evaluation(evaluation_path(tmp_path, "box"), paired)
    paired.info = older
    write_evaluation(evaluation_path(tmp_path, "point"), paired)
    run = read_run(tmp_path)
    assert [one.info.prompt for one in run.evaluations] == ["box", "point"]
    assert run.oracle and run.config == "model: {}\n" and run.curves == {}
    (tmp_path / "config.yaml").write_text("train: {max_iter: 3}\n")
    assert read_run(tmp_path).config == "train: {max_iter: 3}\n"


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: folder.rmdir(), "no such run folder"),
        (lambda folder: None, "nothing was evaluated"),
        (lambda folder: (folder / "report.json").write_text("{"), "not a report that can be read"),
        (lambda folder: (folder / "report.json").write_text('{"version": 1, "results": []}'), "holds no results"),
    ],
)
def test_no_run(tmp_path, prepare, message):
    folder = tmp_path / "run"
    folder.mkdir()
    prepare(folder)
    with pytest.raises(UserError, match=message):
        read_run(folder)


def test_curves_of_a_run_that_was_killed_and_resumed(tmp_path):
    lines = [
        {"iteration": 9, "total_loss": 2.0, "lr": 0.1},
        {"iteration": 19, "total_loss": 1.5},
        {"iteration": 19, "total_loss": 1.25, "segm/AP": 3.0},  # done again after the resume: the later counts
        {"iteration": 29, "total_loss": float("nan"), "note": "x"},
        [1, 2],
    ]
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"iteration": 39, "total'
    (tmp_path / "metrics.json").write_text(text)
    assert read_curves(tmp_path / "metrics.json") == {
        "total_loss": [(9, 2.0), (19, 1.25)],
        "lr": [(9, 0.1)],
        "segm/AP": [(19, 3.0)],
    }
    assert read_curves(tmp_path / "none.json") == {}


def test_config_by_dotted_key():
    run = Run(Path("run"), [], [], {}, "train: {max_iter: 3, amp: {}}\nlist: [1, {a: 2}]\nnone: null\n")
    assert flat_config(run) == {
        "train.max_iter": "3", "train.amp": "{}", "list": "[1, {'a': 2}]", "none": "None",
    }  # fmt: skip
    with pytest.raises(UserError, match="not YAML"):
        flat_config(Run(Path("run"), [], [], {}, "a: [1"))
