import json
from pathlib import Path
from threading import Thread

import msgspec
import pytest

from sam_d2.data.manifest import (
    Manifest,
    ManifestDataset,
    ManifestSplit,
    add_to_manifest,
    from_manifest,
    manifest_path,
    read_manifest,
    relative_to_manifest,
)
from sam_d2.data.split import Split
from sam_d2.errors import UserError
from sam_d2.file_lock import FileLock

ENTRY = ManifestDataset(
    classes=["iwp"],
    splits={"train": ManifestSplit("iwp/train.json", "iwp"), "test": ManifestSplit("iwp/test.json", "iwp")},
)


def test_an_entry_is_written_in_the_documented_form_and_read_again(tmp_path):
    path = tmp_path / "new/datasets.json"
    add_to_manifest(path, "iwp", ENTRY)
    assert json.loads(path.read_text()) == {
        "version": 1,
        "datasets": {
            "iwp": {
                "classes": ["iwp"],
                "splits": {
                    "train": {"json": "iwp/train.json", "images": "iwp"},
                    "test": {"json": "iwp/test.json", "images": "iwp"},
                },
            }
        },
    }
    part = ManifestSplit("all.json", "images", Split("train", 0.7, 3))
    add_to_manifest(path, "nuts", ManifestDataset(["nut"], {"train": part}))
    assert read_manifest(path).datasets == {"iwp": ENTRY, "nuts": ManifestDataset(["nut"], {"train": part})}
    assert [item.name for item in path.parent.iterdir()] == ["datasets.json"]  # no temporary file is left


def test_what_another_process_adds_meanwhile_is_kept(tmp_path):
    path = tmp_path / "datasets.json"
    add_to_manifest(path, "iwp", ENTRY)
    link = tmp_path / "link.json"
    link.symlink_to(path)
    second = Thread(target=add_to_manifest, args=(link, "second", ENTRY))
    with FileLock(tmp_path / ".datasets.json.lock") as lock:  # the other one has read the manifest, and will write it
        lock.acquire()
        second.start()
        second.join(0.2)
        assert second.is_alive()
        path.write_bytes(msgspec.json.encode(Manifest(datasets={"iwp": ENTRY, "first": ENTRY})))
    second.join(10)
    assert list(read_manifest(path).datasets) == ["iwp", "first", "second"]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["datasets.json", "link.json"] and link.is_symlink()


def test_another_entry_of_the_same_name_must_be_asked_for(tmp_path):
    path = tmp_path / "datasets.json"
    add_to_manifest(path, "iwp", ENTRY)
    add_to_manifest(path, "iwp", ENTRY)
    other = ManifestDataset(["iwp"], {"train": ManifestSplit("other.json")})
    with pytest.raises(UserError, match=r"has another dataset 'iwp'.*--replace"):
        add_to_manifest(path, "iwp", other)
    assert read_manifest(path).datasets["iwp"] == ENTRY
    add_to_manifest(path, "iwp", other, replace=True)
    assert read_manifest(path).datasets["iwp"] == other


def test_a_manifest_that_does_not_exist_is_empty(tmp_path):
    assert read_manifest(tmp_path / "none.json") == Manifest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "truncated"),
        ("{", "truncated"),
        ('{"version": 2, "datasets": {}}', "version"),
        ('{"dataset": {}}', "unknown field `dataset`"),
        ('{"datasets": {"a": {"classes": ["x"], "splits": {}, "path": "x"}}}', "unknown field `path`"),
        ('{"datasets": {"a": {"splits": {}}}}', "missing required field `classes`"),
        ('{"datasets": {"a": {"classes": "x", "splits": {}}}}', r"Expected `array`, got `str` - at `\$.datasets"),
        ('{"datasets": {"a": {"classes": [], "splits": {"dev": {"json": "x"}}}}}', "Invalid enum value 'dev'"),
        ('{"datasets": {"a": {"classes": [], "splits": {"train": {"images": "x"}}}}}', "missing required field `json`"),
        (
            '{"datasets": {"a": {"classes": [], "splits": {"train": '
            '{"json": "x", "split": {"part": "train", "fraction": 1.5}}}}}}',
            "Expected `float` < 1",
        ),
    ],
)  # fmt: skip
def test_a_wrong_manifest_is_named(content, message, tmp_path):
    path = tmp_path / "datasets.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_manifest(path)
    assert str(error.value).startswith(f"Manifest {path}: ")


@pytest.mark.parametrize("name", ["", "a b", "../up", "a/b", "-x", ".hidden", "quickstart"])
def test_names_that_cannot_be_used(name, tmp_path):
    with pytest.raises(UserError, match=r"^Dataset name "):
        add_to_manifest(tmp_path / "datasets.json", name, ENTRY)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be"):
        add_to_manifest(tmp_path / "file/datasets.json", "iwp", ENTRY)


def test_paths_are_relative_to_the_manifest(tmp_path):
    manifest = tmp_path / "project/data/datasets.json"
    manifest.parent.mkdir(parents=True)
    target = tmp_path / "elsewhere/images"
    (tmp_path / ".git").mkdir()
    assert relative_to_manifest(target, manifest) == "../../elsewhere/images"
    assert from_manifest("../../elsewhere/images", manifest) == target
    assert from_manifest(str(target), manifest) == target
    # the manifest may be reached by a link; its paths are meant from where it really is
    (tmp_path / "link").symlink_to(manifest.parent)
    assert relative_to_manifest(target, tmp_path / "link/datasets.json") == "../../elsewhere/images"


def test_paths_outside_of_the_repository_are_absolute(tmp_path):
    manifest = tmp_path / "project/data/datasets.json"
    manifest.parent.mkdir(parents=True)
    near, sibling, far = manifest.parent / "iwp", tmp_path / "project/images", tmp_path / "elsewhere/images"
    assert [relative_to_manifest(path, manifest) for path in (near, sibling, far)] == ["iwp", str(sibling), str(far)]
    (tmp_path / "project/.git").touch()  # a file in a worktree, a folder in a clone
    assert [relative_to_manifest(path, manifest) for path in (near, sibling, far)] == ["iwp", "../images", str(far)]


def test_where_the_manifest_is(tmp_path, monkeypatch):
    checkout = Path(__file__).resolve().parents[2]
    monkeypatch.delenv("SAM_D2_DATASETS", raising=False)
    assert manifest_path() == checkout / "data/datasets.json"
    monkeypatch.setenv("SAM_D2_DATASETS", str(tmp_path / "mine.json"))
    assert manifest_path() == tmp_path / "mine.json"
    assert manifest_path(tmp_path / "given.json") == tmp_path / "given.json"
