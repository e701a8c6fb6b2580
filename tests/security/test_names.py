"""Names that come with the data: shown and never obeyed, and never a way out of the image folder."""

import json
import logging
import re

import pytest

from detectron2.data import DatasetCatalog
from sam_d2.cli import run_main
from sam_d2.data.dataset_file import load_dataset_file
from sam_d2.data.register import register_dataset
from sam_d2.errors import UserError
from sam_d2.evaluation.report_compare import compare_page
from sam_d2.evaluation.report_data import read_run
from sam_d2.evaluation.report_page import run_page
from sam_d2.visible_text import clean

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x1b[31m\u202egnp.exe\x9b1m\r\x08"
MARKUP = "</td></table><script>alert(1)</script><img src=x onerror=alert(2)>'\"&"


def dataset(tmp_path, name):
    content = {
        "images": [{"id": 1, "file_name": name, "height": 4, "width": 4}],
        "annotations": [],
        "categories": [{"id": 1, "name": "nut"}],
    }
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / "a.json").write_text(json.dumps(content))
    return tmp_path / "data" / "a.json"


@pytest.mark.parametrize("name", ["/etc/passwd", "../../{secret}", "x/../../../{secret}", "./.././../{secret}"])
def test_names_that_lead_out_of_the_image_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    secret = tmp_path.parent / f"{tmp_path.name}_secret.png"
    secret.touch()
    file = dataset(tmp_path, name.format(secret=secret.name))
    with pytest.raises(UserError, match="leads out of the image folder"):
        load_dataset_file(file, tmp_path / "data")


def test_a_link_in_the_image_folder_is_its_owners(tmp_path):
    """The names come with the file; a link was placed by whoever owns the folder, and may lead to another disk."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").touch()
    file = dataset(tmp_path, "link/a.png")
    (file.parent / "link").symlink_to(tmp_path / "elsewhere")
    assert load_dataset_file(file, file.parent).dataset_dicts[0]["file_name"] == str(file.parent / "link" / "a.png")


@pytest.mark.parametrize(
    "name", [f"a{ESCAPES}.png", "a\nerror: b.png", "a\x00b.png", "\ud800.png", "a" * 5000, " ", "."]
)
def test_an_error_shows_a_name_and_does_not_obey_it(name, tmp_path, capsys):
    file = dataset(tmp_path, name)
    with pytest.raises(SystemExit) as end:
        run_main(lambda: load_dataset_file(file) and 0)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith("error: ")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", error)
    error.encode("utf-8")
    assert len([line for line in error.split("\n") if line.startswith("error:")]) == 1


def test_an_error_that_has_a_name_as_it_is(capsys):
    def main():
        raise UserError(f"first line {ESCAPES}\nsecond \ud800 line")

    with pytest.raises(SystemExit):
        run_main(main)
    error = capsys.readouterr().err
    assert error == "error: first line ␛]0;owned␇␛[2J␛[31m\\u202egnp.exe\\u009b1m␍␈\nsecond \\ud800 line\n"


ROW = {
    "split": "nuts",
    "prompt": "box",
    "prompt_source": "ground_truth",
    "task": "segm",
    "score": "s",
    "max_dets": 100,
    "pseudo_ground_truth": False,
    "seconds": 1.5,
    "method": "model",
    "metrics": {"AP": 1.0},
}


@pytest.mark.parametrize(
    "change",
    [
        *({key: MARKUP + ESCAPES} for key in ("split", "prompt", "prompt_source", "task", "score", "method")),
        {"metrics": {f"AP-{MARKUP}": 1.0, "AP": 1e308, "mIoU": -1e308, ESCAPES: None}},
        {"metrics": {}},
        {"seconds": -1e308, "max_dets": -(2**63), "images": -5, "instances": 2**63 - 1},
        {"prompts_left_out": {"limit": -3, MARKUP + ESCAPES: 3}},
        {"ground_truth": MARKUP, "prompt_boxes": MARKUP},
    ],
    ids=lambda change: ",".join(change),
)
def test_report_with_hostile_values(change, tmp_path):
    content = {"version": 1, "results": [ROW, {**ROW, **change}]}
    (tmp_path / "report.json").write_text(json.dumps(content))
    (tmp_path / "metrics.json").write_text(json.dumps({"iteration": 1, f"{MARKUP}_loss": 1.0, "total_loss": 1e308}))
    (tmp_path / "config.yaml").write_text(f"a: {json.dumps(MARKUP)}\n")
    run = read_run(tmp_path)
    for page in (run_page(run), compare_page([run, run])):
        assert not re.search(r"<script>alert|<img src=x|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", page)


def test_names_do_not_reach_a_shell_or_the_argument_parser(capsys, monkeypatch, tmp_path):
    """What registers a dataset prints a line to copy: a hostile folder's name stays one word in it."""
    from sam_d2.data.resolve import resolve_dataset

    folder = tmp_path / "a; touch canary; $(touch canary)"
    folder.mkdir()
    (folder / "one.json").write_text("[]")
    (folder / "two.json").write_text("[]")
    with pytest.raises(UserError) as caught:
        resolve_dataset(str(folder))
    line = next(
        line for line in str(caught.value).split("\n") if "register_dataset.py" in line and "--train-json" in line
    )
    import shlex

    assert any(word.startswith(str(folder)) for word in shlex.split(line))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nut 1\t", "nut 1␉"),
        ("a\x1b[2J\x7f\x9b", "a␛[2J␡\\u009b"),
        ("\u200bnut\ufeff\u00ad\u2060\u3164", "\\u200bnut\\ufeff\\u00ad\\u2060\\u3164"),
        ("x\U000e0041\ue000", "x\\U000e0041\\ue000"),
        ("क्\u200dष 👩\u200d🔬", "क्\u200dष 👩\u200d🔬"),  # joiners belong to the words
        ("Dürfen wir? 日本語 ✓", "Dürfen wir? 日本語 ✓"),
    ],
)
def test_what_cannot_be_seen_is_spelt_out(text, shown):
    assert clean(text) == shown


def test_a_class_forges_no_line_of_the_log(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sam_d2"), "propagate", True)
    caplog.set_level("INFO")
    file = dataset(tmp_path, "a.png")
    content = json.loads(file.read_text())
    content["categories"][0]["name"] = "nut\nERROR: the disk is broken"
    box = {"bbox": [0, 0, 2, 2], "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]], "area": 4, "iscrowd": 0}
    content["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, **box}]
    file.write_text(json.dumps(content))
    (file.parent / "a.png").touch()
    register_dataset("forged", file, file.parent)
    DatasetCatalog.get("forged")
    assert "(nut␊ERROR: the disk is broken 1)" in caplog.text and "\nERROR" not in caplog.text
