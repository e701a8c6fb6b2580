import json
import math

import pytest

from sam_d2.errors import UserError
from sam_d2.evaluation import Result, read_report, write_report


def row(**keys):
    standard = {
        "split": "scenes_test", "images": 5, "instances": 30, "ground_truth": "0123456789abcdef",
        "prompt": "box", "prompt_source": "ground_truth", "method": "model", "task": "segm",
        "score": "predicted_iou", "max_dets": 100, "pseudo_ground_truth": False, "seconds": 1.5,
        "metrics": {"AP": 50.0, "APl": math.nan},
    }  # fmt: skip
    return Result(**{**standard, **keys})


def test_file_as_documented(tmp_path):
    path = tmp_path / "run" / "report.json"
    write_report(path, [row()])
    assert json.loads(path.read_text()) == {
        "version": 1,
        "results": [
            {
                "split": "scenes_test", "images": 5, "instances": 30, "ground_truth": "0123456789abcdef",
                "prompt": "box", "prompt_source": "ground_truth", "prompt_boxes": "file", "method": "model",
                "task": "segm", "score": "predicted_iou", "ranks": True, "max_dets": 100, "pseudo_ground_truth": False,
                "prompts_left_out": {}, "selected": False, "seconds": 1.5, "metrics": {"AP": 50.0, "APl": None},
            }
        ],
    }  # fmt: skip
    [read] = read_report(path)
    assert math.isnan(read.metrics["APl"])
    assert read.metric("AP") == 50
    assert math.isnan(read.metric("AP75"))


def test_same_key_is_replaced_in_place_others_stay(tmp_path):
    path = tmp_path / "report.json"
    write_report(path, [row(method="base"), row()])
    write_report(path, [row(method="base", seconds=9.0), row(score="stability"), row(split="other")])
    read = read_report(path)
    assert [(r.split, r.method, r.score, r.seconds) for r in read] == [
        ("scenes_test", "base", "predicted_iou", 9.0),
        ("scenes_test", "model", "predicted_iou", 1.5),
        ("scenes_test", "model", "stability", 1.5),
        ("other", "model", "predicted_iou", 1.5),
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_boxes_of_the_file_and_of_the_masks_stand_side_by_side(tmp_path):
    path = tmp_path / "report.json"
    write_report(path, [row(seconds=1.0)])
    write_report(path, [row(prompt_boxes="mask", seconds=2.0), row(prompt_source="detector")])
    write_report(path, [row(prompt_boxes="mask", seconds=3.0)])
    assert [(r.prompt_boxes, r.seconds) for r in read_report(path)] == [("file", 1.0), ("mask", 3.0), (None, 1.5)]


def test_a_row_without_the_newer_keys(tmp_path):
    path = tmp_path / "report.json"
    write_report(path, [row()])
    content = json.loads(path.read_text())
    for name in ("images", "instances", "ground_truth", "prompt_boxes"):
        del content["results"][0][name]
    path.write_text(json.dumps(content))
    assert read_report(path)[0].key == row(prompt_boxes="file").key
    assert read_report(path)[0].ground_truth is None


@pytest.mark.parametrize(
    "content",
    ["", '{"version": 1, "results": [', '{"loss": 1}', "[1, 2]", '{"version": 2, "results": []}', "\xff"],
)
def test_damaged_or_foreign_file_is_left_alone(tmp_path, content):
    path = tmp_path / "report.json"
    path.write_bytes(content.encode("latin1"))
    with pytest.raises(UserError, match=r"report.json"):
        write_report(path, [row()])
    assert path.read_bytes() == content.encode("latin1")


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_report(tmp_path / "report.json")


def test_interrupted_write_leaves_the_old_report(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_report(path, [row()])
    before = path.read_bytes()

    def disk_full(self, content):
        with self.open("wb") as file:
            file.write(content[:10])
        raise OSError("no space left on device")

    monkeypatch.setattr(type(path), "write_bytes", disk_full)
    with pytest.raises(OSError, match="no space"):
        write_report(path, [row(split="other")])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
