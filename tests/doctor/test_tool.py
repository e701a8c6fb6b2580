"""tools/check_dataset.py as a user runs it: exit codes, what is printed, what is written, what is refused."""

import json
import logging
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from sam_d2.data import resolve_dataset
from sam_d2.data.finding_kinds import KINDS
from sam_d2.doctor import report

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def doctor(monkeypatch, capsys, tmp_path):
    """``doctor(*words)``: exit code, stdout and stderr."""
    monkeypatch.setenv("SAM_D2_DATASETS", str(tmp_path / "datasets.json"))

    def run(*words):
        program = str(ROOT / "tools" / "check_dataset.py")
        monkeypatch.setattr(sys, "argv", [program, *map(str, words)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(program, run_name="__main__")
        return end.value.code, *capsys.readouterr()

    return run


def test_exit_codes_and_the_last_line(doctor, coco, write):
    code, out, err = doctor(write(coco), "--images")
    assert (code, err) == (0, "") and out.splitlines()[-1] == "Nothing is wrong."
    coco["annotations"][1]["area"] = 100
    code, out, _ = doctor(write(coco))
    assert code == 1 and out.splitlines()[-1] == "1 warning of 1 kind. The images were not read: --images does."
    coco["annotations"][0]["category_id"] = 5
    code, out, _ = doctor(write(coco))
    assert code == 2 and out.splitlines()[-1].startswith("1 error of 1 kind and 1 warning of 1 kind.")


@pytest.mark.parametrize("form", ["coco", "dicts"])
def test_images_without_annotations_are_counted_and_no_finding(form, doctor, request, write, tmp_path):
    """Two of four: a forgotten image looks like one that is a negative."""
    content, folder = request.getfixturevalue(form), tmp_path / "images"
    images, key = (content["images"], "id") if form == "coco" else (content, "image_id")
    folder.mkdir()
    for number in (7, 8):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(folder / f"doctor_{number}.png")
        images.append({**images[0], key: number, "file_name": f"images/doctor_{number}.png"})
        if form == "dicts":
            images[-1]["annotations"] = []
    code, out, _ = doctor(write(content), "--images", "--json", tmp_path / "report.json")
    assert code == 0 and out.splitlines()[-2] == "Nothing is wrong."
    assert ", 4 images (2 without annotations, such as doctor_7.png), 4 annotations" in out.splitlines()[0]
    (described,) = json.loads((tmp_path / "report.json").read_text())["files"]
    assert (described["images_without_annotations"], described["without_annotations"]) == (2, [7, 8])


def test_findings_are_grouped_with_examples(doctor, coco, write):
    coco["annotations"] = [{**coco["annotations"][0], "id": 10 + number, "category_id": 5} for number in range(6)]
    for number, one in enumerate(coco["annotations"]):  # no two are the same
        one["bbox"] = [5 + number / 8, 5, 10, 10]
    _, out, _ = doctor(write(coco))
    lines = out.splitlines()
    start = lines.index("error   an annotation is of a category that is not there  6 x  unknown-category")
    assert (
        lines[start + 1] == "  image 1 (doctor_1.png), annotation 10, category_id: 5 is not among the file's categories"
    )
    assert lines[start + 4] == "  ... and 3 more"
    assert lines[start + 5] == "  -> correct the id, or add the record"


def test_a_folder_is_checked_whole_and_against_itself(doctor, coco, write, tmp_path):
    for part in ("train", "test"):
        write(coco, f"dataset_{part}.json")
    code, out, _ = doctor(tmp_path)
    assert code == 1 and "an image is in two splits, such as train and test  2 x" in out
    found = "file_name: 'doctor_1.png' is the file of image 1 in dataset_train.json"
    assert f"dataset_test.json, image 1 (doctor_1.png), {found}" in out


def test_a_file_that_is_divided_is_said_to_be_both_parts(doctor, coco, write, tmp_path, monkeypatch):
    """Registered with one image folder for the training part and another for the test part; it is checked once."""
    file = write(coco, "trainval.json")
    splits = {
        part: {"json": "trainval.json", "images": images, "split": {"part": part, "fraction": 0.5, "seed": 0}}
        for part, images in (("test", "none"), ("train", "."))
    }
    manifest = {"version": 1, "datasets": {"cells": {"classes": ["square", "triangle"], "splits": splits}}}
    (tmp_path / "datasets.json").write_text(json.dumps(manifest))
    code, out, _ = doctor("cells", "--json", tmp_path / "report.json")
    assert code == 0 and out.splitlines()[0].startswith(f"train and test: {file}  COCO, 2 images, ")
    (described,) = json.loads((tmp_path / "report.json").read_text())["files"]
    assert described["split"] == "train and test" and described["image_root"] == str(tmp_path)


@pytest.mark.parametrize(
    "parts", [(None, None), (("train", 0.5, 0), None), (("train", 0.5, 0), ("test", 0.5, 1)), (("test", 0.5, 0),) * 2]
)
def test_a_file_that_is_both_splits_and_not_divided_is_a_warning(parts, doctor, coco, write, tmp_path):
    """Both are all of it, or one is; another seed divides it otherwise."""
    file = write(coco, "all.json")
    splits = {name: {"json": "all.json", "images": "."} for name in ("train", "test")}
    for split, part in zip(splits.values(), parts, strict=True):
        if part is not None:
            split["split"] = dict(zip(("part", "fraction", "seed"), part, strict=True))
    manifest = {"version": 1, "datasets": {"cells": {"classes": ["square", "triangle"], "splits": splits}}}
    (tmp_path / "datasets.json").write_text(json.dumps(manifest))
    code, out, _ = doctor("cells", "--json", tmp_path / "report.json")
    assert code == 1 and out.splitlines()[0].startswith(f"train and test: {file}  COCO, 2 images, ")
    (finding,) = json.loads((tmp_path / "report.json").read_text())["findings"]
    assert (finding["kind"], finding["image_id"], finding["file"]) == ("image-in-both", None, str(file))
    assert finding["found"] == "train and test are this file, with images in common"


def test_a_folder_of_unknown_layout_has_its_files_named(doctor, coco, write, tmp_path):
    (tmp_path / "my cells" / "images").mkdir(parents=True)
    for name in ("a.json", "images/b.json"):
        write(coco, f"my cells/{name}")
    code, _, err = doctor(tmp_path / "my cells")
    folder = tmp_path / "my cells"
    assert code == 2 and err.splitlines()[1:] == [
        f"  python tools/check_dataset.py '{folder}/a.json' --image-root '{folder}/images'",
        f"  python tools/check_dataset.py '{folder}/images/b.json' --image-root '{folder}/images'",
    ]
    assert doctor("none")[2].endswith(" python tools/check_dataset.py FILE.json --image-root DIR\n")


def test_the_report(doctor, coco, write, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MOST", 2)
    for one in coco["annotations"]:
        one.pop("area")
    file = write(coco)
    code, _, _ = doctor(file, "--json", tmp_path / "out" / "report.json")
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert content["exit_code"] == code == 1 and content["dataset"] == str(file)
    assert content["files"] == [
        {
            "split": "",
            "file": str(file),
            "form": "coco",
            "images": 2,
            "images_without_annotations": 0,
            "without_annotations": [],
            "annotations": 4,
            "image_root": str(tmp_path),
        }
    ]
    (kind,) = content["kinds"]
    assert (kind["kind"], kind["severity"], kind["count"], kind["listed"]) == ("area-absent", "warning", 4, 2)
    assert [list(one) for one in content["findings"]] == [
        ["kind", "severity", "file", "image_id", "file_name", "annotation_id", "field", "found", "fix"]
    ] * 2
    second = content["findings"][1]
    assert (second["image_id"], second["file_name"], second["annotation_id"]) == (1, "doctor_1.png", 2)
    assert doctor(file, "--json", tmp_path / "out" / "report.json")[0] == 1, "a report is written again"


def test_a_mended_copy(doctor, coco, write, tmp_path):
    coco["annotations"][1]["area"] = 100
    file = write(coco)
    before = file.read_bytes()
    code, out, _ = doctor(file, "--fix", tmp_path / "mended.json")
    assert code == 0 and file.read_bytes() == before  # what is left decides
    assert out.splitlines()[-4:] == [
        f"Mended in {tmp_path / 'mended.json'}:",
        "        1 x  an area is that of the box: the mask's",
        "Nothing is left.",
        f"Wrote {tmp_path / 'mended.json'}",
    ]
    assert json.loads((tmp_path / "mended.json").read_text())["annotations"][1]["area"] == 45
    assert doctor(tmp_path / "mended.json")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none"], "Dataset 'none' is not known"),
        (["{file}", "--fix", "{file}"], "exists already, and nothing is overwritten"),
        (["{file}", "--json", "{file}"], "is the dataset file itself"),
        (["{file}", "--json", "{tmp}/x.json", "--fix", "{tmp}/x.json"], "--fix and --json both name"),
        (["{file}", "--json", "{tmp}/dataset_test.json"], "exists and is no report of this tool"),
        (["{file}", "--json", "{file}/x.json"], "is a file, not a folder"),
        (["{file}", "--image-root", "{tmp}/none"], "no such folder"),
        (["{tmp}", "--fix", "{tmp}/x.json"], "has several files. Mend one at a time:"),
        (["{tmp}", "--image-root", "{tmp}"], "--image-root is that of one file"),
        (["{tmp}/empty.json", "--fix", "{tmp}/x.json"], "cannot be read, so there is nothing to mend"),
    ],
)
def test_what_is_refused(words, message, doctor, coco, write, tmp_path):
    file = write(coco, "dataset_train.json")
    write(coco, "dataset_test.json")
    (tmp_path / "empty.json").touch()
    code, _, err = doctor(*(word.format(file=file, tmp=tmp_path) for word in words))
    assert code == 2 and err.startswith("error: ") and message in err
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("9" * 5000, "in a value that sam_d2 does not read"),
        ("1e400", "too large for a 64-bit float"),
        ("[NaN, 1e400]", "too large for a 64-bit float"),
        ("[" * 800 + "]" * 800, "nested too deeply"),
    ],
)
def test_a_value_that_a_copy_cannot_hold_is_refused(value, message, doctor, coco, write, tmp_path, monkeypatch):
    coco["annotations"][1]["area"] = 100  # which could be mended
    file = write(json.dumps({**coco, "extra": "VALUE"}).replace('"VALUE"', value).encode())
    if message == "nested too deeply":
        loads = json.loads

        def shallow(content, **options):  # how deep json.loads goes depends on Python's version
            if b"[" * 800 in content:
                raise RecursionError
            return loads(content, **options)

        monkeypatch.setattr(json, "loads", shallow)
    code, out, err = doctor(file, "--fix", tmp_path / "mended.json")
    assert code == 2 and err.startswith(f"error: {file}: cannot be mended (--fix): ") and message in err
    assert "Mended" not in out and not (tmp_path / "mended.json").exists()


def test_a_nan_that_the_file_spells_stays(doctor, coco, write, tmp_path):
    coco["annotations"][1] |= {"area": 100, "score": float("nan")}
    assert doctor(write(coco), "--fix", tmp_path / "mended.json")[0] == 1  # not-strict-json
    assert '"score": NaN' in (tmp_path / "mended.json").read_text()


def test_a_wrong_option_is_code_2(doctor):
    assert doctor("x", "--nothing")[0] == 2


def test_names_from_the_file_cannot_colour_the_terminal(doctor, dicts, write):
    dicts[0]["image_id"] = "\x1b[31m[bold]red\x07"
    dicts[0]["annotations"][0]["segmentation"] = []
    _, out, _ = doctor(write(dicts))
    assert "\x1b" not in out and "\x07" not in out and "image ␛[31m[bold]red␇ (" in out


def test_training_warns_of_images_in_both_parts(coco, write, tmp_path, catalogs, caplog):
    for part in ("train", "test"):
        write(coco, f"dataset_{part}.json")
    with caplog.at_level(logging.WARNING):
        resolve_dataset(str(tmp_path))
    assert "2 images of " in caplog.text and "are trained on too" in caplog.text


def test_every_kind_is_documented_as_it_is():
    """A row of docs/check-dataset.md for each: name, severity, title and what --fix writes."""
    text = (ROOT / "docs" / "check-dataset.md").read_text()
    for name, kind in KINDS.items():
        mended = f"{kind.mended} |" if kind.mended else "|"
        assert f"| `{name}` | {kind.severity} | {kind.title} | {mended}" in text, name
    assert text.count("\n| `") == len(KINDS)


@pytest.mark.parametrize("part", ["train2017", "val2017"])
def test_no_false_error_on_coco(part, real_data, doctor):
    file = real_data / f"coco_tiny80/annotations/instances_{part}.json"
    code, out, _ = doctor(file, "--images", "--image-root", real_data / f"coco_tiny80/images/{part}")
    assert code == 1 and "error" not in out.replace("errors", "")
