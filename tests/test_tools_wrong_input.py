"""Every tool ends wrong input with a message and code 2, never a traceback."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("register_dataset.py x --train-json {tmp}", "it is a folder; name the JSON file in it"),
        ("register_dataset.py x --train-json {tmp}/empty.json", "file: it is empty"),
        ("register_dataset.py x --train-json {tmp}/list.json", "at least one image"),
        ("report.py {tmp}", "holds no report.json"),
        ("report.py {tmp}/none", "none: no such run folder\\."),
        ("merge_datasets.py a={tmp}/empty.json --output {tmp}/out.json", "file: it is empty"),
        ("merge_datasets.py a={tmp}/list.json --output {tmp}/out.json", "Detectron2's list of dicts"),
        ("download_checkpoint.py sam_vit_x", "one of sam_vit_b, sam_vit_l, sam_vit_h"),
        ("export_checkpoint.py {tmp} --output {tmp}/out.pth", "has no model_final.pth"),
        ("export_checkpoint.py {tmp}/empty.json --output {tmp}/out.pth", "not a checkpoint .*EOFError"),
        ("export_checkpoint.py {tmp}/list.json --output {tmp}/out.pth", "not a checkpoint .*Unsupported operand"),
        ("calibrate_scores.py {tmp}", "has no model_final.pth"),
        ("calibrate_scores.py {tmp}/none", "none: no such run folder or checkpoint\\."),
        ("calibrate_scores.py {tmp}/list.json", "no config.yaml lies beside it"),
        ("calibrate_scores.py {tmp}/none.pth", "Checkpoint .*none.pth is not found"),
        ("merge_datasets.py a={tmp}/none.json --output {tmp}/out.json", "none.json: 1 error"),
        (
            "detector_errors.py {tmp}/none --dataset x --output {tmp}/out.json",
            "none: no such run folder or config file\\.",
        ),
        (
            "detector_errors.py {tmp} --dataset x --output {tmp}/out.json",
            "config.yaml is missing, so this is not the folder",
        ),
        (
            "prompt_robustness.py {tmp}/none --dataset x --output {tmp}/out",
            "none: no such run folder or config file\\.",
        ),
        ("masks_from_boxes.py --dataset x --config-file configs/sam_tiny.py --output {tmp}/o.json", "no weights"),
        ("visualize_data.py --config-file {tmp}", "config.yaml is missing, so this is not the folder"),
        ("visualize_data.py --config-file x.py --output {tmp}/empty.json/x.png", "is a file, not a folder"),
        ("benchmark.py memory-instances --output-dir {tmp}/empty.json", "is a file, not a folder"),
        ("benchmark.py none", "There are: "),
    ],
)
def test_wrong_input(line, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty.json").touch()
    (tmp_path / "list.json").write_text("[]")
    tool, *words = line.format(tmp=tmp_path).split()
    program = str(ROOT / "tools" / tool)
    monkeypatch.setattr(sys, "argv", [program, *words])
    monkeypatch.setenv("SAM_D2_DATASETS", str(tmp_path / "datasets.json"))
    monkeypatch.syspath_prepend(ROOT / "tools")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:  # another exception would have been a traceback
        runpy.run_path(program, run_name="__main__")
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith("error: ") and re.search(message, error)
    assert "weights_only" not in error
    assert sorted(file.name for file in tmp_path.iterdir()) == ["empty.json", "list.json"]


@pytest.mark.parametrize("tool", ["calibrate_scores", "prompt_robustness", "detector_errors"])
def test_tools_of_one_process_refuse_torchrun(tool, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", [tool, "x"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "tools" / f"{tool}.py"), run_name="__main__")
    assert end.value.code == 2
    assert f"error: {tool}.py runs in one process, not 2: start it without torchrun." in capsys.readouterr().err
