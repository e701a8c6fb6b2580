"""One evaluation of a run: what it compares the model with."""

import json
import re
import shutil
from collections import OrderedDict

import pytest

from detectron2.config import instantiate
from sam_d2.config import apply_overrides, load_config
from sam_d2.evaluation import InstanceEvaluator
from sam_d2.evaluation.run import PromptedEvaluation


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
    # of another prompt, another dataset, other boxes, or ranked by another score: nothing to compare with
    for other in ({"prompt": "point"}, {"split": "elsewhere"}, {"score": "stability"}, {"prompt_boxes": "mask"}):
        report["results"].append({**base, **other, "metrics": {"AP": 99.0, "mIoU": 0.99}})
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "log.txt").unlink()
    train_net(folder, "--eval-only")
    log = (folder / "log.txt").read_text()
    assert ("*** WORSE than its base (" in log) == worse
    table = log.rpartition("results\n")[2]
    assert len(re.findall(r"^ +base ", table, re.MULTILINE)) == 1
    assert not any(word in log for word in ("prompt point", "elsewhere", "score stability", "the masks' own boxes"))


def test_a_base_of_other_annotations_is_no_comparison(finished_run, tmp_path, train_net):
    folder = shutil.copytree(finished_run, tmp_path / "run")
    report = json.loads((folder / "report.json").read_text())
    for row in report["results"]:
        if row["method"] == "base":
            row.update(ground_truth="of before they were corrected", metrics={"AP": 99.0, "mIoU": 0.99})
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "log.txt").unlink()
    train_net(folder, "--eval-only")
    log = (folder / "log.txt").read_text()
    assert "WORSE than its base" not in log and not re.search("^ +base ", log, re.MULTILINE)


def test_the_best_checkpoint_is_selected_on_the_split_that_chose_it(finished_run, tmp_path, train_net):
    folder = shutil.copytree(finished_run, tmp_path / "run")

    def selected():
        rows = json.loads((folder / "report.json").read_text())["results"]
        return [row["method"] for row in rows if row["selected"] and row["ranks"]]

    assert selected() == []
    train_net(folder, "--eval-only", f"train.init_checkpoint={folder / 'model_best.pth'}")
    assert selected() == ["model"]
    train_net(folder, "--eval-only")
    assert selected() == []


def test_recomputed_boxes_are_said_and_replace_no_row(finished_run, tmp_path, train_net):
    folder = shutil.copytree(finished_run, tmp_path / "run")
    before = json.loads((folder / "report.json").read_text())["results"]
    train_net(folder, "--eval-only", "dataloader.train.mapper.recompute_boxes=true")
    after = json.loads((folder / "report.json").read_text())["results"]
    assert after[: len(before)] == before and {row["prompt_boxes"] for row in before} == {"file"}
    assert {(row["prompt_boxes"], row["method"]) for row in after[len(before) :]} == {
        ("mask", "model"), ("mask", "box_as_mask"), ("mask", "ellipse"),
    }  # fmt: skip
    assert "oracle: ground-truth prompts, the masks' own boxes |" in (folder / "log.txt").read_text()
    assert "the masks&#x27; own boxes" in (folder / "report.html").read_text()


@pytest.mark.parametrize("before", [None, "point"])
def test_it_leaves_the_model_with_the_prompt_that_it_had(root, tiny_overrides, tmp_path, monkeypatch, before):
    """Also where something ends it on the way."""
    cfg = apply_overrides(load_config(root / "configs" / "sam_tiny.py"), [*tiny_overrides, "model.prompt=mixed"])
    model = instantiate(cfg.model)
    model.test_prompt = before
    asked = []

    def interrupted(model, loader, evaluator):
        asked.append(model.test_prompt)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return OrderedDict()

    monkeypatch.setattr("sam_d2.evaluation.run.inference_on_dataset", interrupted)
    with pytest.raises(KeyboardInterrupt):
        PromptedEvaluation(InstanceEvaluator("unread"), [], tmp_path)(model)
    assert asked == ["box", "point"] and model.test_prompt == before
