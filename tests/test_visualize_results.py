"""tools/visualize_results.py: every test image of a run, with its ground truth and with what was predicted."""

import importlib.util
import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from sam_d2.errors import UserError


@pytest.fixture
def visualize(root, monkeypatch, capsys):
    """``visualize(*arguments)``: run the tool in this process; gives its exit code and what it has printed."""
    spec = importlib.util.spec_from_file_location("visualize_results", root / "tools" / "visualize_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["visualize_results.py", *map(str, arguments)])
        code = module.main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def run(finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


def pixels(file):
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def test_every_image_is_there_twice(run, tmp_path, visualize):
    code, text, _ = visualize(run, "--output", tmp_path / "out")
    files = sorted((tmp_path / "out").iterdir())
    results = json.loads((run / "coco_instances_results.json").read_text())
    assert code == 0 and f"{len(files)} of {len(files)} images" in text
    assert len(files) >= len({row["image_id"] for row in results}) > 1
    for file in files:
        drawn = pixels(file)
        height, width = drawn.shape[0] - 28, (drawn.shape[1] - 4) // 2
        assert max(height, width) >= 512 and drawn.shape[1] == 2 * width + 4


def test_predictions_below_the_confidence_are_not_drawn(run, tmp_path, visualize):
    """With all of them the right half differs from the image; above every score it is the image, as far as JPEG is."""
    visualize(run, "--output", tmp_path / "all", "--limit", "1")
    visualize(run, "--output", tmp_path / "none", "--limit", "1", "--confidence", "1e9")
    (every,), (none,) = (list((tmp_path / folder).iterdir()) for folder in ("all", "none"))
    assert every.name == none.name
    right = pixels(every).shape[1] // 2 + 2
    changed = np.abs(pixels(every) - pixels(none)).max(axis=2) > 60
    assert changed[28:, right:].any() and not changed[28:, : right - 4].any()


def test_scores_of_a_detector_count_from_a_half(run, tmp_path, visualize):
    results = json.loads((run / "coco_instances_results.json").read_text())
    for row in results:
        row["score"] = 0.4
    (run / "coco_instances_results.json").write_text(json.dumps(results))
    visualize(run, "--output", tmp_path / "oracle", "--limit", "1")
    report = json.loads((run / "report.json").read_text())
    for row in report["results"]:
        row["prompt_source"] = "detector"
    (run / "report.json").write_text(json.dumps(report))
    visualize(run, "--output", tmp_path / "detector", "--limit", "1")
    (every,), (none,) = (list((tmp_path / folder).iterdir()) for folder in ("oracle", "detector"))
    assert (np.abs(pixels(every) - pixels(none)).max(axis=2) > 60).any()


def test_an_image_that_is_gone_is_skipped(run, tmp_path, visualize, monkeypatch):
    import sam_d2.data.image as module

    read, seen = module.read_image, []

    def read_image(file, *arguments):
        seen.append(file)
        if len(seen) == 1:
            raise UserError(f"{file}: cannot be read")
        return read(file, *arguments)

    monkeypatch.setattr(module, "read_image", read_image)
    code, text, errors = visualize(run, "--output", tmp_path / "out")
    assert code == 1 and f"skipped: {seen[0]}: cannot be read" in errors and f"{len(seen) - 1} of {len(seen)}" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file. An evaluation writes it"),
        ("[{", "no COCO results list"),
        ('[{"image_id": 99999, "category_id": 3, "score": 1, "bbox": [0, 0, 1, 1]}]', "image id 99999"),
    ],
)
def test_wrong_results(run, tmp_path, visualize, content, message):
    file = run / "coco_instances_results.json"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(UserError, match=message):
        visualize(run, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_images_asked_for(run, tmp_path, visualize):
    with pytest.raises(UserError, match="--limit 0"):
        visualize(run, "--output", tmp_path / "out", "--limit", "0")


def test_a_folder_without_a_config_wants_the_dataset(run, tmp_path, visualize):
    (run / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"config\.yaml: no such file, as where .* Add --dataset NAME"):
        visualize(run, "--output", tmp_path / "out")
