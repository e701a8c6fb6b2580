import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from sam_d2.data import resolve_dataset
from sam_d2.errors import UserError
from sam_d2.labelling.source import find_source

TOOL = Path(__file__).resolve().parents[2] / "tools/register_dataset.py"


@pytest.fixture
def register(monkeypatch, tmp_path):
    """Run the tool in this process with a manifest of its own."""
    main = runpy.run_path(str(TOOL), run_name="register_dataset")["main"]

    def run(*arguments):
        monkeypatch.setattr(
            sys, "argv", [str(TOOL), *map(str, arguments), "--manifest", str(tmp_path / "datasets.json")]
        )
        return main()

    return run


@pytest.mark.usefixtures("catalogs")
def test_two_files(coco, write, register, tmp_path, capsys):
    train = write(coco, "train.json", images="pictures")
    coco["images"].append({"id": 30, "file_name": "sam_d2_test_a.png", "height": 8, "width": 6})
    test = write(coco, "test.json", images="pictures")
    assert register("made", "--train-json", train, "--train-images", tmp_path / "pictures",
                    "--test-json", test, "--test-images", tmp_path / "pictures") == 0  # fmt: skip
    assert json.loads((tmp_path / "datasets.json").read_text())["datasets"]["made"] == {
        "classes": ["cat", "dog"],
        "splits": {
            "train": {"json": "train.json", "images": "pictures"},
            "test": {"json": "test.json", "images": "pictures"},
        },
    }
    table = [line.strip("│ ").split("│") for line in capsys.readouterr().out.splitlines()]
    rows = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in table}
    assert rows["images"] == ["2", "3"] and rows["instances"] == ["3", "3"]
    assert rows["of them crowd"] == ["1", "1"] and rows["most in an image"] == ["2", "2"]
    assert rows["images without any"] == ["0", "1"] and rows["classes"] == ["2", "2"]
    assert resolve_dataset("made", tmp_path / "datasets.json").classes == ["cat", "dog"]


def test_one_file_is_split(dicts, write, register, tmp_path, capsys):
    file = write(dicts)
    assert register("made", "--train-json", file, "--split", 0.5, "--seed", 3, "--classes", "low, high") == 0
    entry = json.loads((tmp_path / "datasets.json").read_text())["datasets"]["made"]
    assert entry["classes"] == ["low", "high"]
    for part in ("train", "test"):
        assert entry["splits"][part]["split"] == {"part": part, "fraction": 0.5, "seed": 3}
    assert "--config-file configs/sam.py --prompt box --dataset made" in capsys.readouterr().out


def test_boxes_without_masks(coco, write, register, tmp_path, capsys):
    for item in coco["annotations"]:
        del item["segmentation"]
    file = write(coco)
    with pytest.raises(UserError, match="none of the 2 annotations has one: the file holds boxes alone"):
        register("made", "--train-json", file)
    assert not (tmp_path / "datasets.json").exists()
    assert register("made", "--train-json", file, "--boxes-only") == 0
    assert "python tools/masks_from_boxes.py --dataset made " in capsys.readouterr().out
    source = find_source("made", manifest=tmp_path / "datasets.json")
    assert (source.json_file, source.image_roots, source.other_splits) == (file, (tmp_path,), ())
    assert source.classes == ("cat", "dog")


def test_all_errors_of_both_files_come_at_once_and_nothing_is_written(coco, write, register, tmp_path):
    coco["images"][0]["width"] = 0
    train = write(coco, "train.json")
    coco["images"][0]["width"] = -4
    test = write(coco, "test.json")
    with pytest.raises(UserError) as error:
        register("made", "--train-json", train, "--test-json", test)
    assert "image 20, width: 0" in str(error.value) and "image 20, width: -4" in str(error.value)
    assert not (tmp_path / "datasets.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a b"], "use letters, digits"),
        (["made", "--split", "1.5"], "between 0 and 1"),
        (["made", "--split", "0.5", "--test-json", "x.json"], "leave them out"),
        (["made", "--test-images", "x"], "--test-images needs --test-json"),
        (["made", "--train-images", "none"], "--train-images none: no such folder"),
        (["made", "--train-images", __file__], "--train-images .*py: it is a file; name the folder"),
        (["made", "--test-json", "x.json", "--test-images", "none"], "--test-images none: no such folder"),
        (["made", "--classes", "one"], r"the file has \['cat', 'dog'\], but \['one'\]"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message, coco, write, register):
    with pytest.raises(UserError, match=message):
        register(*arguments, "--train-json", write(coco))


def test_errors_go_to_stderr_with_code_2_and_no_traceback(tmp_path):
    path = os.pathsep.join((str(TOOL.parents[1]), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": path, "SAM_D2_DATASETS": str(tmp_path / "datasets.json")}
    command = [sys.executable, str(TOOL), "made", "--train-json", str(tmp_path / "none.json")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=TOOL.parents[1], env=environment)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "none.json: 1 error:" in result.stderr and "Traceback" not in result.stderr


def test_help_has_an_example(register, capsys):
    with pytest.raises(SystemExit) as end:
        register("--help")
    assert end.value.code == 0
    assert "--dataset nuts" in capsys.readouterr().out
