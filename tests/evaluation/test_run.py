"""One evaluation of a run: what it compares the model with."""

import json
import re
import shutil

import pytest


@pytest.mark.parametrize(("mean_iou", "worse"), [(0.999, True), (0.0, False)])
def test_a_model_worse_than_its_base_is_said_loudly_by_a_later_process_too(
    finished_run, tmp_path, train_net, mean_iou, worse
):
    """The base was scored by the process that began the training; --resume and --eval-only find it in report.json."""
    folder = shutil.copytree(finished_run, tmp_path / "run")
    report = json.loads((folder / "report.json").read_text())
    for row in report["results"]:
        if row["method"] == "base":
            row["metrics"].update(AP=0.0, mIoU=mean_iou)
    base = next(row for row in report["results"] if row["method"] == "base")
    # of another prompt, another dataset, or ranked by another score: nothing to compare with
    for other in ({"prompt": "point"}, {"split": "elsewhere"}, {"score": "stability"}):
        report["results"].append({**base, **other, "metrics": {"AP": 99.0, "mIoU": 0.99}})
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "log.txt").unlink()
    train_net(folder, "--eval-only")
    log = (folder / "log.txt").read_text()
    assert ("*** WORSE than its base (" in log) == worse
    table = log.rpartition("results\n")[2]
    assert len(re.findall(r"^ +base ", table, re.MULTILINE)) == 1
    assert not any(word in log for word in ("prompt point", "elsewhere", "stability"))
