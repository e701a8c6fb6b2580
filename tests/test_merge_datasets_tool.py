"""tools/merge_datasets.py, and the evaluation of what it makes, on domains generated from the test scenes."""

import importlib.util
import json
import re

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from sam_d2.errors import UserError
from sam_d2.evaluation import read_report
from sam_d2.evaluation.domains import domain_ap
from sam_d2.evaluation.table import results_table


def weather(image):
    """Haze and snow."""
    pixels = np.asarray(Image.blend(image, Image.new("RGB", image.size, "white"), 0.4)).copy()
    pixels[np.random.default_rng(0).random(pixels.shape[:2]) < 0.03] = 255
    return Image.fromarray(pixels)


DOMAINS = {
    "sketch": lambda image: ImageOps.grayscale(image).filter(ImageFilter.CONTOUR).convert("RGB"),
    "weather": weather,
    "cartoon": lambda image: ImageOps.posterize(image.filter(ImageFilter.MedianFilter(3)), 2),
    "painting": lambda image: image.filter(ImageFilter.ModeFilter(7)),
    "handmake": lambda image: ImageOps.solarize(image, 128),
    "tattoo": lambda image: Image.blend(
        ImageOps.grayscale(image).convert("RGB"), Image.new("RGB", image.size, (205, 150, 120)), 0.6
    ),
}
"""COCO-O's, as transforms of an image."""


@pytest.fixture
def tool(root, monkeypatch):
    """``tool(name, *arguments)``: run a program of tools/ in this process; its exit code."""

    def call(name, *arguments):
        spec = importlib.util.spec_from_file_location(f"{name}_tool", root / "tools" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr("sys.argv", [f"{name}.py", *map(str, arguments)])
        return module.main()

    return call


@pytest.fixture(scope="module")
def domains(tmp_path_factory, shapes_folder):
    """Folder of a copy of the shapes' test part for each domain: same ids and names of images in all."""
    folder = tmp_path_factory.mktemp("outside")
    content = json.loads((shapes_folder / "dataset_test.json").read_text())
    for name, transform in DOMAINS.items():
        (folder / name / "val").mkdir(parents=True)
        (folder / name / "annotations.json").write_text(json.dumps(content))
        for image in content["images"]:
            changed = transform(Image.open(shapes_folder / image["file_name"]))
            changed.save(folder / name / "val" / image["file_name"])
    return folder


def sources(folder):
    named = [f"{name}={folder / name / 'annotations.json'}" for name in DOMAINS]
    return [*named, "--images", *" --images ".join(f"{name}={folder / name / 'val'}" for name in DOMAINS).split()]


def test_domains_become_one_dataset_with_an_ap_each(
    domains, shapes_folder, finished_run, train_net, tool, tmp_path, capsys
):
    merged = domains / "dataset_test.json"
    assert tool("merge_datasets", *sources(domains), "--output", merged) == 0
    printed = capsys.readouterr().out
    assert "handmake: 4 images, 8 annotations" in printed and f"relative to {domains}" in printed
    assert "given to --dataset itself, the file would be split 80:20" in printed and "--test-json" in printed
    first = merged.read_bytes()
    tool("merge_datasets", *sources(domains), "--output", merged)
    assert merged.read_bytes() == first and [path.name for path in domains.glob(".*")] == []
    images = json.loads(first)["images"]
    assert [image["id"] for image in images] == list(range(1, 25))
    assert images[4]["file_name"] == "weather/val/test_0.png" and images[4]["domain"] == "weather"

    # the shapes as the training part; their images are under the same folder
    content = json.loads((shapes_folder / "dataset_train.json").read_text())
    for image in content["images"]:
        Image.open(shapes_folder / image["file_name"]).save(domains / image["file_name"])
    (domains / "dataset_train.json").write_text(json.dumps(content))
    weights = f"train.init_checkpoint={finished_run / 'model_final.pth'}"
    outside = train_net(tmp_path / "outside", "--dataset", str(domains), "--eval-only", weights)
    rows = {row.method: row for row in read_report(outside / "report.json") if row.ranks}
    assert list(domain_ap(rows["model"])) == sorted(DOMAINS)
    # the baselines know the annotations alone, which are in every domain those of the shapes themselves
    [inside] = [row for row in read_report(finished_run / "report.json") if row.method == "ellipse"]
    assert inside.metric("AP") > 0
    assert domain_ap(rows["ellipse"]) == pytest.approx(dict.fromkeys(DOMAINS, inside.metric("AP")))
    assert not rows["model"].pseudo_ground_truth

    capsys.readouterr()
    assert tool("report", outside, "--in-distribution", finished_run) == 0
    printed = capsys.readouterr().out
    expected = f"{0.55 * inside.metric('AP'):.2f}"
    [line] = [line for line in printed.splitlines() if line.strip().startswith("effective robustness")]
    assert line.split()[-1] == expected
    page = (outside / "report.html").read_text()
    assert "AP by domain" in page and expected in page
    [stored] = [row for row in read_report(outside / "report.json") if row.method == "ellipse"]
    assert stored.metric("effective_robustness") == pytest.approx(0.55 * inside.metric("AP"))
    assert stored.metric(f"AP@in_distribution={inside.split}") == inside.metric("AP")
    (outside / "report.html").unlink()
    assert tool("report", outside) == 0  # what was stored is shown again without the other run
    assert expected in (outside / "report.html").read_text() and expected in capsys.readouterr().out
    with pytest.raises(UserError, match="names 2 run folders for 1 runs"):
        tool("report", outside, "--in-distribution", finished_run, finished_run)


def test_provenance_is_said_of_the_figures(shapes_folder, finished_run, train_net, tmp_path, caplog):
    folder = tmp_path / "made"
    folder.mkdir()
    for part in ("train", "test"):
        content = json.loads((shapes_folder / f"dataset_{part}.json").read_text())
        content["annotations"][0]["provenance"] = {"model": "sam", "score": 0.9}
        (folder / f"dataset_{part}.json").write_text(json.dumps(content))
        for image in content["images"]:
            (folder / image["file_name"]).symlink_to(shapes_folder / image["file_name"])
    weights = f"train.init_checkpoint={finished_run / 'model_final.pth'}"
    output = train_net(tmp_path / "run", "--dataset", str(folder), "--eval-only", weights)
    assert all(row.pseudo_ground_truth for row in read_report(output / "report.json"))
    assert "model (pseudo ground truth)" in results_table(read_report(output / "report.json"))
    assert "pseudo ground truth" in (output / "log.txt").read_text()
    assert "model (pseudo ground truth)" in (output / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sketch.json"], "'sketch.json': expected DOMAIN=FILE"),
        (["sketch="], "expected DOMAIN=FILE"),
        (["a b=x.json"], "Domain 'a b': use letters"),
        (["a=none.json"], "none.json: 1 error"),
        (["a=x.json", "--images", "b=."], "--images names b, which is no domain"),
        (["a=x.json", "--map", "cat=dog", "--map", "cat=cow"], "'cat' is given 'dog' and 'cow'"),
        (["a=x.json", "a=y.json"], "Domain 'a' is named 2 times"),
    ],
)
def test_wrong_arguments(words, message, tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)):
        tool("merge_datasets", *words, "--output", "all.json")
    assert list(tmp_path.iterdir()) == []


def test_output_that_cannot_be_written(tool, tmp_path):
    with pytest.raises(UserError, match="is a folder; name the file"):
        tool("merge_datasets", "a=x.json", "--output", tmp_path)
