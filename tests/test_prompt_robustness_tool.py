"""tools/prompt_robustness.py and tools/detector_errors.py on generated shapes."""

import importlib.util
import json
import shutil
import sys

import pytest
import torch

from sam_d2.cli import run_main
from sam_d2.config import load_config, save_config
from sam_d2.engine.checkpoint import load_checkpoint_file
from sam_d2.errors import UserError
from sam_d2.evaluation import read_report
from sam_d2.evaluation.robustness import conditions


def load_tool(root, name):
    spec = importlib.util.spec_from_file_location(name, root / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_tool(root, monkeypatch, restore_loggers):
    """``run_tool(name, *arguments)``: in this process."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        return load_tool(root, name).main()

    return run


def test_level_0_is_the_plain_evaluation_and_images_are_encoded_once(
    run_tool, finished_run, shapes_folder, tmp_path, capsys, monkeypatch
):
    from sam_d2.modeling.sam import PromptableSAM

    encoded, encode = [], PromptableSAM.encode
    monkeypatch.setattr(PromptableSAM, "encode", lambda self, images: encoded.append(1) or encode(self, images))
    copy = shutil.copytree(finished_run, tmp_path / "copy")
    out = tmp_path / "out"
    code = run_tool("prompt_robustness", finished_run, copy / "model_final.pth", "--dataset", shapes_folder,
                    "--output", out, "--shift", "0,0.3", "--scale", "0.1,0", "--points", "3,1", "--seed", 4,
                    "dataloader.test.num_workers=0")  # fmt: skip
    assert code == 0 and len(encoded) == 2 * 4, "4 images, 2 checkpoints, 5 evaluations each"
    content = json.loads((out / "prompt_robustness.json").read_text())
    rows = {(row["checkpoint"], row["kind"], row["level"]): row for row in content["results"]}
    names = ["finished", "copy/model_final.pth"]
    levels = [("shift", 0), ("shift", 0.3), ("scale", 0), ("scale", 0.1), ("points", 1), ("points", 3)]
    assert list(rows) == [(name, *level) for name in names for level in levels]
    assert (content["images"], content["instances"], content["seed"]) == (4, 7, 4)
    plain = next(row for row in read_report(finished_run / "report.json") if (row.method, row.ranks) == ("model", True))
    for name in names:
        for kind in ("shift", "scale"):
            row = rows[name, kind, 0]
            assert row["AP"] == pytest.approx(plain.metrics["AP"], abs=1e-6)
            assert row["mIoU"] == pytest.approx(plain.metrics["mIoU"], abs=1e-6)
    for level in levels:
        first, second = (rows[(name, *level)] for name in names)
        assert {**first, "checkpoint": ""} == {**second, "checkpoint": ""}, "the same noise for the same weights"
    assert rows[names[0], "shift", 0.3]["mIoU"] != rows[names[0], "shift", 0]["mIoU"]
    assert (out / "prompt_robustness.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "copy/model_final.pth" in said and "30 %" in said and f"{rows[names[0], 'shift', 0.3]['mIoU']:.4f}" in said


def test_conditions_ask_for_true_boxes_once():
    asked = conditions([0.1, 0.0, 0.1], [0.0], [2])
    assert [one.levels for one in asked] == [[("shift", 0.0), ("scale", 0.0)], [("shift", 0.1)], [("points", 2)]]
    with pytest.raises(UserError, match="no level to measure"):
        conditions([], [], [])


class TestWrongInput:
    @pytest.mark.parametrize(
        ("option", "levels", "message"),
        [
            ("--shift", "0,1.0", "expected shares of the side"),
            ("--scale", "0,nan", "expected shares of the side"),
            ("--shift", "ten", "invalid"),
            ("--points", "0", "expected numbers of points"),
            ("--points", "1.5", "invalid"),
        ],
    )
    def test_levels(self, run_tool, finished_run, tmp_path, capsys, option, levels, message):
        with pytest.raises(SystemExit, match="2"):
            run_tool("prompt_robustness", finished_run, "--dataset", "x", "--output", tmp_path, option, levels)
        assert message in capsys.readouterr().err

    def test_runs(self, run_tool, finished_run, tmp_path, root, shapes_folder):
        def refused(message, *runs):
            with pytest.raises(UserError, match=message):
                run_tool("prompt_robustness", *runs, "--dataset", shapes_folder, "--output", tmp_path / "out")

        refused("nothing", tmp_path / "nothing")
        refused("is named twice", finished_run, finished_run)
        damaged = shutil.copytree(finished_run, tmp_path / "damaged")
        (damaged / "model_final.pth").write_bytes(b"noise")
        refused(r"model_final\.pth: not a checkpoint", damaged)
        save_config(load_config(root / "configs" / "mask_rcnn_R_18_FPN.py"), damaged / "config.yaml")
        refused("its model takes no prompts", damaged)
        other = shutil.copytree(finished_run, tmp_path / "other")
        cfg = load_config(other / "config.yaml")
        cfg.dataloader.train.mapper.recompute_boxes = True
        save_config(cfg, other / "config.yaml")
        refused("would be given different boxes", finished_run, other)
        refused("No checkpoint is named", "train.device=cpu")
        assert not (tmp_path / "out").exists()

    def test_scores_that_are_not_finite(self, run_tool, finished_run, tmp_path, shapes_folder):
        broken = shutil.copytree(finished_run, tmp_path / "broken")
        content = load_checkpoint_file(broken / "model_final.pth")
        name = next(key for key in content["model"] if "iou_prediction_head" in key and key.endswith("bias"))
        content["model"][name].fill_(float("nan"))
        torch.save(content, broken / "model_final.pth")
        with pytest.raises(UserError, match="scores that are not finite"):
            run_tool("prompt_robustness", broken, "--dataset", shapes_folder, "--output", tmp_path / "out",
                     "--shift", "0", "--scale", "0", "--points", "1", "dataloader.test.num_workers=0")  # fmt: skip

    def test_a_dataset_without_instances(self, run_tool, finished_run, tmp_path, shapes_folder):
        empty = shutil.copytree(shapes_folder, tmp_path / "nobody")
        file = empty / "dataset_test.json"
        content = json.loads(file.read_text())
        file.write_text(json.dumps({**content, "annotations": []}))
        with pytest.raises(UserError, match=r"no instance|annotation"):
            run_tool("prompt_robustness", finished_run, "--dataset", empty, "--output", tmp_path / "out")

    def test_a_training_without_its_errors_file(self, train_net, tmp_path):
        with pytest.raises(UserError, match=r"model\.prompts\.detector\.train\.errors=.*gone\.json: cannot be read"):
            errors = f"model.prompts.detector.train.errors={tmp_path / 'gone.json'}"
            train_net(tmp_path / "run", "--prompt", "detector", errors, "dataloader.detector.config=anything")
        assert not (tmp_path / "run").exists()

    def test_sam_is_no_detector(self, run_tool, finished_run, tmp_path, shapes_folder):
        arguments = [finished_run, "--dataset", shapes_folder, "--output", tmp_path / "errors.json"]
        with pytest.raises(UserError, match="name a detector"):
            run_tool("detector_errors", *arguments)
        with pytest.raises(UserError, match=r"--min-score 2\.0"):
            run_tool("detector_errors", *arguments, "--min-score", 2)

    def test_an_error_is_one_line(self, run_tool, tmp_path, capsys):
        with pytest.raises(SystemExit, match="2"):
            run_main(
                lambda: run_tool("prompt_robustness", tmp_path / "nothing", "--dataset", "x", "--output", tmp_path)
            )
        assert capsys.readouterr().err.count("\n") == 1
