"""tools/calibrate_scores.py: a calibration in a run's checkpoint, and what becomes of it afterwards."""

import importlib.util
import json
import shutil
import sys

import numpy as np
import pytest
import torch

from sam_d2.config import load_config, save_config
from sam_d2.data.manifest import MANIFEST_VARIABLE, ManifestDataset, ManifestSplit, add_to_manifest
from sam_d2.engine.checkpoint import load_checkpoint_file
from sam_d2.engine.weights import FOLDER_VARIABLE
from sam_d2.errors import UserError
from sam_d2.evaluation.calibration import MeasuredScores, measure_scores, with_calibrations
from sam_d2.modeling.calibration import ScoreCalibration
from sam_d2.modeling.weights_record import WeightsRecord
from sam_d2.predictor import Predictor

ENTRY = WeightsRecord.CALIBRATIONS


@pytest.fixture
def calibrate(root, monkeypatch, capsys, restore_loggers):
    """``calibrate(*arguments)``: run the tool in this process; gives the lines that it has printed."""
    spec = importlib.util.spec_from_file_location("calibrate_scores", root / "tools" / "calibrate_scores.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["calibrate_scores.py", *map(str, arguments)])
        assert module.main() == 0
        return [line for line in capsys.readouterr().out.splitlines() if "ECE" in line or "calibration" in line]

    return run


@pytest.fixture
def run_folder(finished_run, tmp_path):
    """A copy of a run of 6 steps."""
    return shutil.copytree(finished_run, tmp_path / "run")


def same(one, other):
    """Whether two contents of checkpoints are equal, tensors bit by bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


def test_it_is_fitted_on_training_images_and_nothing_else_changes(run_folder, calibrate, train_net):
    final = run_folder / "model_final.pth"
    before, others = load_checkpoint_file(final), {path.name: path.read_bytes() for path in run_folder.iterdir()}
    lines = calibrate(run_folder, "--test")
    after = load_checkpoint_file(final)
    curve = ScoreCalibration.of_entry(after[ENTRY]["box"], "file")
    assert same({**after, ENTRY: None}, {**before, ENTRY: None}) and list(after[ENTRY]) == ["box"]
    assert {path.name: path.read_bytes() for path in run_folder.iterdir() if path != final} == {
        name: content for name, content in others.items() if name != final.name
    }, "the run's other files stay, and no temporary one is left"
    # 6 training images, the last of which is empty, with 2 or 3 shapes each: 2 + 3 + 2 + 3 + 2
    assert curve.score == "predicted_iou" and curve.dataset.endswith("_train") and curve.predictions == 12
    assert lines[0].startswith(f"{curve.dataset}, box prompts, predicted_iou, 12 masks: ECE ")
    errors = [float(word) for word in lines[0].replace(",", "").split() if word.startswith("0.")]
    assert errors[1] < errors[0] and errors[1] < 0.02, "on what it was fitted to, nearly nothing is left"
    assert "_test, box prompts, predicted_iou, 7 masks: ECE" in lines[1]

    train_net(run_folder, "--eval-only", "model.calibrate=true")
    rows = json.loads((run_folder / "report.json").read_text())["results"]
    by_score = {row["score"]: row for row in rows if row["method"] == "model"}
    assert by_score["calibrated(predicted_iou)"]["ranks"] and not by_score["predicted_iou"]["ranks"]
    for score, word in (("predicted_iou", "ECE "), ("calibrated(predicted_iou)", "calibrated ")):
        assert f"{word}{by_score[score]['metrics']['ECE']:.4f}" in lines[1]
    assert by_score["predicted_iou"]["metrics"]["AP"] == by_score["calibrated(predicted_iou)"]["metrics"]["AP"]
    assert "calibrated(predicted_iou)" in (run_folder / "report.html").read_text()


@pytest.mark.parametrize("calibrated_before", [False, True])
def test_the_plain_score_is_measured_whatever_the_config_says(run_folder, calibrate, calibrated_before):
    """Else a curve would be fitted to what the last one made of the scores, or there would be none to begin with."""
    final = run_folder / "model_final.pth"
    plain = load_checkpoint_file(final)
    calibrate(run_folder)
    expected = load_checkpoint_file(final)[ENTRY]
    if not calibrated_before:
        torch.save(plain, final)
    calibrate(run_folder, "model.calibrate=true")
    assert same(load_checkpoint_file(final)[ENTRY], expected)


def test_another_score_or_split_replaces_it(run_folder, calibrate):
    test = str(load_config(run_folder / "config.yaml").dataloader.test.dataset.names)
    calibrate(run_folder)
    lines = calibrate(run_folder, "--split", test, "--test", "model.score='predicted_iou^0.5'")
    entry = load_checkpoint_file(run_folder / "model_final.pth")[ENTRY]["box"]
    assert (entry["score"], entry["dataset"]) == ("predicted_iou^0.5", test)
    assert "no figure to report" in lines[0] and len(lines) == 2, "the test is not measured twice"


def test_a_split_of_the_manifest_or_a_file(run_folder, calibrate, shapes_folder, tmp_path, monkeypatch, catalogs):
    """Both are registered before the model is loaded; 5 instances of the first two training images."""
    file = shapes_folder / "dataset_train.json"
    content = json.loads(file.read_text())
    content["images"] = content["images"][:2]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] < 2]
    (tmp_path / "few.json").write_text(json.dumps(content))
    manifest = tmp_path / "data" / "datasets.json"
    monkeypatch.setenv(MANIFEST_VARIABLE, str(manifest))
    split = ManifestSplit(str(tmp_path / "few.json"), str(shapes_folder))
    whole = ManifestSplit(str(file), str(shapes_folder))
    classes = [one["name"] for one in content["categories"]]
    add_to_manifest(manifest, "kept", ManifestDataset(classes, {"train": whole, "test": whole, "val": split}))
    assert calibrate(run_folder, "--split", "kept_val")[0].startswith("kept_val, box prompts, predicted_iou, 5 masks")
    assert calibrate(run_folder, "--split", "kept")[0].startswith("kept_train, box prompts, predicted_iou, 12 masks")
    (line, _) = calibrate(run_folder, "--split", file)
    own = str(load_config(run_folder / "config.yaml").dataloader.train.dataset.names)
    assert line.startswith(f"{own}, box prompts, predicted_iou, 12 masks"), "it is the same file, not a second data set"


def test_each_test_prompt_has_its_own(run_folder, calibrate, monkeypatch):
    left = []

    def watched(model, *rest):
        for measured in measure_scores(model, *rest):
            left.append(model.test_prompt)
            yield measured

    monkeypatch.setattr("sam_d2.evaluation.calibration.measure_scores", watched)
    lines = calibrate(run_folder, "model.prompt=mixed")
    assert left == [None, None], "the model is left as it was"
    entry = load_checkpoint_file(run_folder / "model_final.pth")[ENTRY]
    assert list(entry) == ["box", "point"] and not same(entry["box"], entry["point"])
    assert [line.split(", ")[1] for line in lines[:2]] == ["box prompts", "point prompts"]
    calibrate(run_folder, "model.score='predicted_iou^2'")
    entry = load_checkpoint_file(run_folder / "model_final.pth")[ENTRY]
    assert (entry["box"]["score"], entry["point"]["score"]) == ("predicted_iou^2", "predicted_iou")


def test_the_predictor_uses_it_and_training_drops_it(run_folder, calibrate, train_net, tmp_path, caplog):
    calibrate(run_folder)
    cfg = load_config(run_folder / "config.yaml")
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    boxes = [[4, 16, 28, 48], [36, 16, 60, 48]]
    plain = Predictor(run_folder, device="cpu")(image, boxes=boxes)
    cfg.model.calibrate = True
    found = Predictor(cfg, run_folder / "model_final.pth", device="cpu")(image, boxes=boxes)
    curve = ScoreCalibration.of_entry(load_checkpoint_file(run_folder / "model_final.pth")[ENTRY]["box"], "file")
    torch.testing.assert_close(found.scores, curve.of_tensor(plain.scores))
    assert torch.equal(found.predicted_iou, plain.scores)

    start = f"train.init_checkpoint={run_folder / 'model_final.pth'}"
    short = ["train.max_iter=1", "train.eval_base=false", "train.checkpointer.period=1"]
    tuned = train_net(tmp_path / "tuned", start, *short)
    assert "the calibration of its scores (box) is dropped" in (tuned / "log.txt").read_text()
    assert ENTRY not in load_checkpoint_file(tuned / "model_final.pth")
    with pytest.raises(UserError, match="a training changes the weights"):
        train_net(tmp_path / "refused", start, *short, "model.calibrate=true")
    assert not (tmp_path / "refused").exists()


def test_the_predictor_takes_the_curve_of_what_it_is_asked_with(run_folder, calibrate):
    """Boxes and points have curves of their own, whatever the run was trained with; other prompts have none."""
    calibrate(run_folder, "model.prompt=mixed")
    cfg = load_config(run_folder / "config.yaml")
    entry = load_checkpoint_file(run_folder / "model_final.pth")[ENTRY]
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    asked = {"box": {"boxes": [[4, 16, 28, 48], [36, 16, 60, 48]]}, "point": {"points": [[10, 20], [40, 30]]}}
    for trained in ("box", "point", "mixed"):
        cfg.model.prompt, cfg.model.calibrate = trained, True
        predictor = Predictor(cfg, run_folder / "model_final.pth", device="cpu")
        for prompt, words in asked.items():
            found = predictor(image, **words)
            curve = ScoreCalibration.of_entry(entry[prompt], "file")
            torch.testing.assert_close(found.scores, curve.of_tensor(found.predicted_iou))
        with pytest.raises(UserError, match=r"has no calibration for 2-point prompts; it has that of box, point"):
            predictor(image, points=[[[10, 20], [12, 22]]])
        with pytest.raises(UserError, match="no calibration for box-and-point prompts"):
            predictor(image, boxes=[[4, 16, 28, 48]], points=[[10, 20]])
        with pytest.raises(UserError, match="no calibration for several-point prompts"):
            predictor(image, points=[[[1, 2], [3, 4]], [[5, 6], [7, 8]]], labels=[[1, 1], [1, 0]])
        assert len(predictor(image, boxes=[])) == 0


def test_the_curve_of_a_detectors_boxes(run_folder, calibrate, tmp_path, shapes_folder, train_net):
    """Fitted with a detector as the source of the prompts, kept under its prompt's name, and used by its rows."""
    boxes = [
        {"image_id": one["image_id"], "category_id": 3, "bbox": one["bbox"], "score": 0.5 + 0.05 * (one["id"] % 9)}
        for part in ("train", "test")
        for one in json.loads((shapes_folder / f"dataset_{part}.json").read_text())["annotations"]
        if part == "test" or one["image_id"] < 4
    ]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    file = f"dataloader.detector.file={tmp_path / 'boxes.json'}"
    lines = calibrate(run_folder, "model.prompt=detector", file, "model.prompts.detector.tested_as=[box,detector]")
    entry = load_checkpoint_file(run_folder / "model_final.pth")[ENTRY]
    assert list(entry) == ["box", "detector"] and entry["detector"]["score"] == "class_score*predicted_iou"
    assert [line.split(", ")[1] for line in lines[:2]] == ["box prompts", "detector prompts"]
    errors = [float(word) for word in lines[1].replace(",", "").split() if word.startswith("0.")]
    assert errors[1] < errors[0]
    words = ["--prompt", "detector", "--eval-only", file, "model.calibrate=true"]
    train_net(run_folder, *words, "model.prompts.detector.tested_as=[box,detector]")
    rows = json.loads((run_folder / "report.json").read_text())["results"]
    ranked = {(row["prompt"], row["score"]) for row in rows if row["method"] == "model" and row["ranks"]}
    assert {("box", "calibrated(predicted_iou)"), ("detector", "calibrated(class_score*predicted_iou)")} <= ranked


def test_export_says_that_it_stays_behind(run_folder, calibrate, root, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("export_checkpoint", root / "tools" / "export_checkpoint.py")
    export = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(export)
    said = []
    for name in ("before.pth", "after.pth"):
        monkeypatch.setattr(sys, "argv", ["x", str(run_folder), "--output", str(tmp_path / name)])
        export.main()
        said.append("Its calibration of scores is left behind" in capsys.readouterr().out)
        calibrate(run_folder)
    assert said == [False, True]
    assert same(*(torch.load(tmp_path / name, weights_only=True) for name in ("before.pth", "after.pth")))


def test_it_goes_through_a_small_checkpoint(finished_run, calibrate, tmp_path, monkeypatch, train_net):
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    monkeypatch.setenv(FOLDER_VARIABLE, str(checkpoints))
    shutil.copy(finished_run / "model_final.pth", checkpoints / "base.pth")
    short = ["train.init_checkpoint=base.pth", "train.max_iter=2", "train.eval_base=false"]
    tuned = train_net(tmp_path / "tuned", *short, "model.freeze=[image_encoder]")
    small = load_checkpoint_file(tuned / "model_final.pth")
    assert len(small["model"]) < len(load_checkpoint_file(checkpoints / "base.pth")["model"])
    calibrate(tuned)
    after = load_checkpoint_file(tuned / "model_final.pth")
    assert same(after["model"], small["model"]) and ENTRY in after
    train_net(tuned, "--eval-only", "model.calibrate=true", "model.freeze=[image_encoder]")
    save_config(load_config(tuned / "config.yaml"), checkpoints / "config.yaml")
    with pytest.raises(UserError, match=r"base\.pth: lies in a checkpoints folder.*Calibrate a copy"):
        calibrate(checkpoints / "base.pth")


class TestWrongInput:
    def test_files(self, run_folder, calibrate, tmp_path):
        with pytest.raises(UserError, match=r"nothing: no such run folder or checkpoint"):
            calibrate(tmp_path / "nothing")
        lonely = tmp_path / "lonely.pth"
        shutil.copy(run_folder / "model_final.pth", lonely)
        with pytest.raises(UserError, match=r"lonely\.pth: no config\.yaml lies beside it"):
            calibrate(lonely)
        bare = run_folder / "bare.pth"
        torch.save(load_checkpoint_file(run_folder / "model_final.pth")["model"], bare)
        with pytest.raises(UserError, match=r"bare\.pth: is a file of bare weights"):
            calibrate(bare)
        (run_folder / "model_final.pth").write_bytes(b"noise")
        with pytest.raises(UserError, match=r"model_final\.pth: not a checkpoint"):
            calibrate(run_folder)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--split", "elsewhere"], r"Dataset 'elsewhere' is not known\. .*Register it: "),
            (["model.score=class_score"], "12 predictions with 1 different values of class_score"),
            (["model.score=iou"], r"model\.score='iou'"),
            (["model.prompt=detector"], r"Prompt detector is of a detector's boxes\. Name the detector with"),
        ],
    )
    def test_settings_leave_the_checkpoint_as_it_is(self, run_folder, calibrate, arguments, message):
        before = (run_folder / "model_final.pth").read_bytes()
        with pytest.raises(UserError, match=message):
            calibrate(run_folder, *arguments)
        assert (run_folder / "model_final.pth").read_bytes() == before

    def test_a_training_without_instances_fits_nothing(self, run_folder, calibrate, tmp_path, shapes_folder):
        empty = shutil.copytree(shapes_folder, tmp_path / "empty")
        for part, kept in (("train", 0), ("test", 1)):
            file = empty / f"dataset_{part}.json"
            content = json.loads(file.read_text())
            file.write_text(json.dumps({**content, "annotations": content["annotations"][:kept]}))
        cfg = load_config(run_folder / "config.yaml")
        cfg.train.dataset = str(empty)
        for part in ("train", "test"):
            cfg.dataloader[part].dataset.names = f"empty_{part}"
        save_config(cfg, run_folder / "config.yaml")
        with pytest.raises(UserError, match=r"0 predictions with 0 different values|annotation"):
            calibrate(run_folder)

    def test_scores_that_are_not_finite(self, run_folder, calibrate):
        final = run_folder / "model_final.pth"
        content = load_checkpoint_file(final)
        name = next(key for key in content["model"] if "iou_prediction_head" in key and key.endswith("bias"))
        content["model"][name].fill_(float("nan"))
        torch.save(content, final)
        with pytest.raises(UserError, match="scores that are not finite"):
            calibrate(run_folder)

    def test_a_detector_has_no_scores_of_sam(self, run_folder, calibrate, root):
        save_config(load_config(root / "configs" / "mask_rcnn_R_18_FPN.py"), run_folder / "config.yaml")
        with pytest.raises(UserError, match="its model takes no prompts"):
            calibrate(run_folder)


def test_measured_scores():
    found = MeasuredScores("box", "d", "s", np.array([0.2, 0.9, 0.5]), np.array([0.4, 0.8, np.nan]))
    assert found.known == 2 and found.ece() == pytest.approx((0.2 + 0.1) / 2)
    assert found.ece(found.fitted()) == pytest.approx(0, abs=1e-3)
    assert np.isnan(MeasuredScores("box", "d", "s", np.zeros(0), np.zeros(0)).ece())


def test_calibrations_of_other_prompts_stay():
    curve = ScoreCalibration("s", "d", 2, np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    once = with_calibrations({"model": {}, "iteration": 3}, {"box": curve}, "f")
    twice = with_calibrations(once, {"point": curve}, "f")
    assert list(twice[ENTRY]) == ["box", "point"] and twice["iteration"] == 3 and list(once[ENTRY]) == ["box"]
