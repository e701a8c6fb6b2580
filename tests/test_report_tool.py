"""tools/report.py, and the page that a run of train_net.py leaves behind."""

import importlib.util
import json
import shutil

import numpy as np
import pytest

from sam_d2.errors import UserError
from sam_d2.evaluation import read_report
from sam_d2.evaluation.report_data import read_evaluation, read_run


@pytest.fixture
def report_tool(root, monkeypatch):
    """``report_tool(*arguments)``: the program's exit code."""
    spec = importlib.util.spec_from_file_location("report_tool", root / "tools" / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["report.py", *map(str, arguments)])
        return module.main()

    return call


def test_what_a_run_leaves(finished_run):
    found = read_evaluation(finished_run / "instances_box.npz")
    # the shapes' test part: images of 2, 3, 2 and 0 shapes, and the crowd, which is no instance
    assert len(found.iou) == 7 and len(found.info.image_names) == 4
    [model] = [row for row in read_report(finished_run / "report.json") if row.method == "model" and row.ranks]
    assert np.mean(found.iou, dtype=np.float64) == pytest.approx(model.metric("mIoU"), abs=1e-6)
    assert "step 6" in found.info.checkpoint and "max_iter: 6" in found.info.config
    assert {"python", "torch", "sam_d2", "detectron2"} <= set(found.info.versions)
    assert len(found.pictures) == len(found.info.tiles) == 3  # of the images with shapes
    curves = read_run(finished_run).curves
    assert [step for step, _ in curves["segm/AP"]] == sorted({step for step, _ in curves["segm/AP"]})
    text = (finished_run / "report.html").read_text()
    assert "oracle" in text and text.count("data:image/jpeg;base64,") == 6


def test_page_is_rebuilt_from_the_folder_alone(finished_run, report_tool, tmp_path, capsys):
    folder = tmp_path / "moved"
    shutil.copytree(finished_run, folder, ignore=shutil.ignore_patterns("*.pth", "coco_*", "*.png", "report.html"))
    before = (finished_run / "report.html").read_text()
    assert report_tool(folder) == 0
    again = (folder / "report.html").read_text()
    assert again == before.replace(f"{finished_run.name}: box", "moved: box")
    printed = capsys.readouterr().out
    assert "mIoU" in printed and f"Wrote {folder / 'report.html'}" in printed


def test_two_runs_side_by_side(finished_run, report_tool, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(finished_run, other, ignore=shutil.ignore_patterns("*.pth", "coco_*"))
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("max_iter: 6", "max_iter: 7"))
    output = tmp_path / "pages" / "both.html"
    assert report_tool(finished_run, other, "--output", output) == 0
    text = output.read_text()
    assert "2 runs side by side" in text and "train.max_iter" in text and "train.output_dir" not in text
    assert {finished_run.name, "other"} <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such run folder"), ({}, "nothing was evaluated"), ({"report.json": "{"}, "not a report")],
)
def test_nothing_to_report(report_tool, tmp_path, content, message):
    folder = tmp_path / "run"
    if content is not None:
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_text(text)
    with pytest.raises(UserError, match=message):
        report_tool(folder)
    assert not (folder / "report.html").exists()


def test_the_full_path_is_said(finished_run, report_tool, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert report_tool(finished_run, finished_run) == 0
    assert f"Wrote {tmp_path / 'comparison.html'}" in capsys.readouterr().out


def test_output_is_a_folder(finished_run, report_tool, tmp_path):
    with pytest.raises(UserError, match="is a folder; name the file"):
        report_tool(finished_run, "--output", tmp_path)


def test_damaged_metrics_do_not_hide_the_report(finished_run, report_tool, tmp_path):
    (tmp_path / "report.json").write_text((finished_run / "report.json").read_text())
    (tmp_path / "metrics.json").write_text(json.dumps({"iteration": 1, "total_loss": 1}) + "\n\x00\x00")
    assert report_tool(tmp_path) == 0
    assert "Loss in training" in (tmp_path / "report.html").read_text()
