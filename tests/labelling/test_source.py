"""Which file of a dataset is labelled."""

import json
import shutil

import pytest

from sam_d2.errors import UserError
from sam_d2.labelling.source import find_source


@pytest.fixture
def manifest(tmp_path):
    return tmp_path / "datasets.json"


def test_a_folder_has_its_training_file_or_the_split_that_is_named(boxes, manifest, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("dataset_train.json", "dataset_test.json"):
        shutil.copy(boxes, folder / name)
    source = find_source(str(folder), manifest=manifest)
    assert source.json_file == folder / "dataset_train.json" and source.other_splits == ("test",)
    assert find_source(str(folder), "test", manifest=manifest).json_file == folder / "dataset_test.json"
    with pytest.raises(UserError, match=r"--split val: the dataset .* has train, test"):
        find_source(str(folder), "val", manifest=manifest)


def test_a_file_that_both_splits_share_is_labelled_whole(boxes, manifest):
    part = {"json": "boxes.json", "images": "."}
    splits = {name: {**part, "split": {"part": name, "fraction": 0.5, "seed": 1}} for name in ("train", "test")}
    entry = {"classes": ["cat", "dog"], "splits": splits}
    manifest.write_text(json.dumps({"version": 1, "datasets": {"made": entry}}))
    source = find_source("made", manifest=manifest)
    assert source.json_file == boxes and source.image_roots == (boxes.parent,) and source.other_splits == ()


def test_a_file_and_its_images(boxes, manifest, tmp_path):
    assert find_source(str(boxes), manifest=manifest).image_roots == ()
    (tmp_path / "images").mkdir()
    assert find_source(str(boxes), manifest=manifest).image_roots == (tmp_path / "images",)
    assert find_source(str(boxes), images=tmp_path, manifest=manifest).image_roots == (tmp_path,)


def test_a_file_of_the_manifest_that_is_gone(manifest):
    entry = {"classes": ["a"], "splits": {"train": {"json": "gone.json"}}}
    manifest.write_text(json.dumps({"version": 1, "datasets": {"made": entry}}))
    with pytest.raises(UserError, match=r"gone\.json: no such dataset file"):
        find_source("made", manifest=manifest)
