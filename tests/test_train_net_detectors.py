"""Detectors through experiments/train_net.py: training, resuming, scoring, fine-tuning, on generated shapes."""

import json
import math
import pickle
import shutil

import pytest
import torch

from detectron2.modeling import GeneralizedRCNN
from sam_d2.config import load_config
from sam_d2.engine.checkpoint import load_checkpoint_file
from sam_d2.errors import UserError
from sam_d2.evaluation.results import read_report

SHORT = ["train.max_iter=4", "train.checkpointer.period=2", "train.eval_period=0"]


@pytest.fixture(scope="module")
def detector(train_net, root, r_18_overrides):
    def run(output, *arguments, overrides=()):
        config = str(root / "configs" / "mask_rcnn_R_18_FPN.py")
        return train_net(output, "--config-file", config, *arguments, overrides=[*r_18_overrides, *SHORT, *overrides])

    return run


@pytest.fixture(scope="module")
def finished(detector, tmp_path_factory):
    """Folder of a run of 4 steps, with a checkpoint after steps 2 and 4."""
    return detector(tmp_path_factory.mktemp("detectors") / "whole", overrides=["train.validation_loss=true"])


def test_a_run_scores_masks_and_boxes_without_prompts(finished):
    rows = {row.task: row for row in read_report(finished / "report.json")}
    assert set(rows) == {"segm", "bbox"}, "one row each, without baselines"
    for row in rows.values():
        assert (row.prompt, row.prompt_source, row.method, row.score) == ("none", "detector", "model", "class_score")
        assert 0 <= row.metrics["AP"] <= 100 and "AP-shape" in row.metrics and "mIoU" not in row.metrics
    page = (finished / "report.html").read_text()
    assert "no prompts" in page and "none prompts" not in page and "racle" not in page
    assert "num_classes: 1" in (finished / "config.yaml").read_text()
    assert load_config(finished / "config.yaml").train.classes == {"names": ["shape"], "ids": [3]}


def test_the_log_says_classes_and_epochs(finished):
    log = (finished / "log.txt").read_text()
    assert "model.roi_heads.num_classes=1: shape" in log
    # 4 steps of 2 images see 8, and 6 images are an epoch: 8 / 6 = 1.333
    assert "train.max_iter=4: 1.333 epochs of 6 images, 2 images a step" in log
    assert "no prompts | score class_score" in log and "oracle" not in log


def test_validation_loss_is_the_detectors(finished):
    lines = [json.loads(line) for line in (finished / "metrics.json").read_text().splitlines()]
    terms = {name for line in lines for name in line if name.startswith("validation_loss")}
    parts = ("cls", "box_reg", "mask", "rpn_cls", "rpn_loc")
    assert terms == {"validation_loss", *(f"validation_loss_{part}" for part in parts)}
    value = next(line["validation_loss"] for line in lines if "validation_loss" in line)
    assert math.isfinite(value) and value > 0


def test_eval_only_gives_the_same_figures(finished, detector):
    before = [row.metrics for row in read_report(finished / "report.json")]
    detector(finished, "--eval-only")
    after = [row.metrics for row in read_report(finished / "report.json")]
    for one, two in zip(before, after, strict=True):
        assert one == pytest.approx(two, abs=1e-9, nan_ok=True)


def test_boxes_alone_are_enough_to_score_a_detectors_boxes(
    finished, detector, train_net, shapes_folder, tmp_path, capsys
):
    folder = shutil.copytree(shapes_folder, tmp_path / "boxes")
    content = json.loads((folder / "dataset_test.json").read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    (folder / "dataset_test.json").write_text(json.dumps(content))
    words = ["--dataset", str(folder), "--eval-only", f"train.init_checkpoint={finished / 'model_final.pth'}"]
    output = detector(tmp_path / "run", *words)
    [row] = read_report(output / "report.json")
    before = next(row for row in read_report(finished / "report.json") if row.task == "bbox")
    assert (row.task, row.instances) == ("bbox", 7) and row.metrics["AP"] == pytest.approx(before.metrics["AP"])
    assert "boxes are scored (bbox) and masks are not" in capsys.readouterr().out
    assert "bbox" in (output / "report.html").read_text()
    with pytest.raises(UserError, match=r"(?s)the file holds boxes alone.*tools/masks_from_boxes\.py"):
        train_net(tmp_path / "sam", "--dataset", str(folder), "--eval-only", "train.init_checkpoint=x.pth")
    assert not (tmp_path / "sam").exists()


def test_a_resume_goes_on_exactly(finished, detector, tmp_path):
    half = tmp_path / "half"
    detector(half)
    for file in ("model_final.pth", "model_0000003.pth", "model_best.pth"):
        (half / file).unlink(missing_ok=True)
    (half / "last_checkpoint").write_text("model_0000001.pth")
    detector(half, "--resume")
    one, two = (load_checkpoint_file(folder / "model_final.pth")["model"] for folder in (finished, half))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_prompts_are_refused(detector, tmp_path):
    with pytest.raises(UserError, match=r"--prompt box: the model of .*R_18_FPN.py takes no prompts"):
        detector(tmp_path / "run", "--prompt", "box")


def test_weights_of_other_classes_begin_a_training_and_nothing_else(finished, detector, tmp_path):
    state = load_checkpoint_file(finished / "model_final.pth")["model"]
    for name, rows in (("box_predictor.cls_score", 4), ("box_predictor.bbox_pred", 12), ("mask_head.predictor", 3)):
        for kind in ("weight", "bias"):
            key = f"roi_heads.{name}.{kind}"
            state[key] = torch.zeros(rows, *state[key].shape[1:])
    torch.save({"model": state}, tmp_path / "other.pth")
    weights = f"train.init_checkpoint={tmp_path / 'other.pth'}"
    with pytest.raises(UserError, match=r"of another shape \(roi_heads.box_predictor.cls_score.weight \(4, 16\) inst"):
        detector(tmp_path / "scored", "--eval-only", overrides=[weights])
    run = detector(tmp_path / "tuned", overrides=[weights, "train.max_iter=1", "optimizer.lr=1e-9"])
    tuned = load_checkpoint_file(run / "model_final.pth")["model"]
    kept = "roi_heads.box_head.fc1.weight"
    torch.testing.assert_close(tuned[kept], state[kept], rtol=0, atol=1e-6)
    assert tuned["roi_heads.box_predictor.cls_score.weight"].shape == (2, 16)
    log = (run / "log.txt").read_text()
    assert "other.pth was trained on other classes: these predictors begin anew" in log


def test_a_pkl_of_a_backbone_begins_a_training_and_nothing_else(finished, detector, tmp_path):
    state = load_checkpoint_file(finished / "model_final.pth")["model"]
    prefix = "backbone.bottom_up."
    resnet = {name.removeprefix(prefix): value.numpy() for name, value in state.items() if name.startswith(prefix)}
    resnet["stem.fc.weight"] = resnet["stem.conv1.weight"]  # a classifier's
    content = {"model": resnet, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "R-18.pkl").write_bytes(pickle.dumps(content))
    weights = f"train.init_checkpoint={tmp_path / 'R-18.pkl'}"
    run = detector(tmp_path / "tuned", overrides=[weights, "train.max_iter=1", "optimizer.lr=1e-9"])
    tuned = load_checkpoint_file(run / "model_final.pth")["model"]
    key = f"{prefix}res4.1.conv2.weight"
    torch.testing.assert_close(tuned[key], state[key], rtol=0, atol=1e-6)
    log = (run / "log.txt").read_text()
    assert "R-18.pkl holds a backbone alone" in log and "roi_heads.box_head" in log and "stem.fc.weight" in log
    with pytest.raises(UserError, match=r"does not fit the model: keys .* missing from the file"):
        detector(tmp_path / "scored", "--eval-only", overrides=[weights])


def test_a_pkl_that_would_run_code_is_refused(detector, tmp_path):
    (tmp_path / "bad.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UserError, match=r"bad.pkl.*os.system"):
        detector(tmp_path / "run", overrides=[f"train.init_checkpoint={tmp_path / 'bad.pkl'}"])


def test_results_that_are_not_as_expected_end_with_code_1(finished, detector):
    detector(finished, "--eval-only", overrides=["train.expected_results=[[segm,AP,0,100]]"])
    with pytest.raises(SystemExit, match="1"):
        detector(finished, "--eval-only", overrides=["train.expected_results=[[segm,AP,-50,1]]"])
    with pytest.raises(UserError, match=r"is not \[task, metric, value, tolerance\]"):
        detector(finished, "--eval-only", overrides=["train.expected_results=[[prompt,mIoU,1,1]]"])


class TestOutOfMemory:
    def metric(self, folder, name):
        rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
        return [(row["iteration"] + 1, row[name]) for row in rows if name in row]

    def test_in_parts(self, detector, tmp_path, limit_memory):
        limit_memory(GeneralizedRCNN, lambda samples: len(samples) > 1)
        run = detector(tmp_path / "run", overrides=["train.accumulate=2"])
        assert self.metric(run, "oom_retried") == [(1, 1), (2, 2), (3, 3), (4, 4)]
        losses = [value for _, value in self.metric(run, "total_loss")]
        assert len(losses) == 4 and all(map(math.isfinite, losses))
        # What the model records by itself, of the tries that counted.
        assert len(self.metric(run, "rpn/num_pos_anchors")) == 4

    @pytest.mark.slow  # tests/engine/test_oom.py skips steps of any model
    def test_skipped(self, detector, tmp_path, limit_memory):
        limit_memory(GeneralizedRCNN, lambda samples: True)
        run, short = (detector(tmp_path / str(steps), overrides=[f"train.max_iter={steps}"]) for steps in (4, 1))
        assert self.metric(run, "oom_skipped") == [(1, 1), (2, 2), (3, 3), (4, 4)]
        assert not self.metric(run, "total_loss")
        assert "*** 4 of 4 steps (100.0 %) were skipped" in (run / "log.txt").read_text()
        # The weights that the seed has given, whatever the number of steps.
        one, two = (load_checkpoint_file(folder / "model_final.pth")["model"] for folder in (run, short))
        assert all(torch.equal(value, two[name]) for name, value in one.items())
