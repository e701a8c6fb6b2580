import contextlib
import json
import shlex
import shutil
import sys
import types

import pytest

from detectron2.data import DatasetCatalog, MetadataCatalog
from sam_d2.data import Split, resolve_dataset, scenes
from sam_d2.data.manifest import ManifestDataset, ManifestSplit, add_to_manifest
from sam_d2.data.resolve import resolve_part
from sam_d2.errors import UserError

pytestmark = pytest.mark.usefixtures("catalogs")


@pytest.fixture
def manifest(tmp_path):
    return tmp_path / "data/datasets.json"


def test_a_name_of_the_manifest(coco, write, manifest):
    write(coco, "data/made/train.json", images="images")
    coco["images"].pop()
    coco["annotations"] = coco["annotations"][1:2]
    write(coco, "data/made/val.json", images="images")
    splits = {name: ManifestSplit(f"made/{name}.json", "made/images") for name in ("train", "val")}
    add_to_manifest(manifest, "made", ManifestDataset(["cat", "dog"], splits))
    resolved = resolve_dataset("made", manifest)
    assert (resolved.name, resolved.train, resolved.test) == ("made", "made_train", "made_val")
    assert resolved.classes == ["cat", "dog"] == MetadataCatalog.get("made_val").thing_classes
    assert len(DatasetCatalog.get("made_train")) == 2 and len(DatasetCatalog.get("made_val")) == 1
    assert resolve_dataset("made", manifest) == resolved  # every process of a run may ask again


def test_one_part_of_a_dataset(coco, write, manifest):
    """Each part by its name, though the three together are no dataset that trains; a name alone is the training's."""
    file = write(coco, "data/made/train.json", images="images")
    other = write(coco, "data/other.json", images="images")
    coco["images"].pop()
    coco["annotations"] = coco["annotations"][1:2]
    write(coco, "data/made/val.json", images="images")
    splits = {name: ManifestSplit(f"made/{name}.json", "made/images") for name in ("train", "val")}
    splits["test"] = ManifestSplit("made/train.json", "made/images", Split("test", 0.5))
    add_to_manifest(manifest, "made", ManifestDataset(["cat", "dog"], splits))
    for argument, key, images in (
        ("made_val", "made_val", 1),
        ("made_test", "made_test", 1),
        ("made", "made_train", 2),
        ("made_train", "made_train", 2),
        (str(file), "made_train", 2),
        (str(other), "data_other", 2),
    ):
        assert resolve_part(argument, manifest) == key and len(DatasetCatalog.get(key)) == images
    with pytest.raises(UserError, match=r"'mode_val' is not known"):
        resolve_part("mode_val", manifest)


def test_the_manifest_names_the_classes_of_detectron2_dicts_and_the_parts_of_a_file(dicts, write, manifest):
    write(dicts, "data/made.json")
    splits = {part: ManifestSplit("made.json", None, Split(part)) for part in ("train", "test")}
    add_to_manifest(manifest, "made", ManifestDataset(["low", "high"], splits))
    assert resolve_dataset("made", manifest).classes == ["low", "high"]
    ids = [DatasetCatalog.get(f"made_{part}")[0]["image_id"] for part in ("train", "test")]
    assert sorted(ids) == [4, 5]


@pytest.mark.parametrize("splits", [{"train": ManifestSplit("x.json")}, {"test": ManifestSplit("x.json")}])
def test_a_manifest_entry_needs_both_parts(splits, manifest):
    add_to_manifest(manifest, "made", ManifestDataset(["cat"], splits))
    with pytest.raises(UserError, match=r"'made' has the splits .*; it needs 'train', and 'test' or 'val'"):
        resolve_dataset("made", manifest)


def test_manifest_classes_that_are_not_the_files(coco, write, manifest):
    write(coco, "data/made.json")
    splits = {part: ManifestSplit("made.json", None, Split(part)) for part in ("train", "test")}
    add_to_manifest(manifest, "made", ManifestDataset(["cat"], splits))
    with pytest.raises(UserError, match=r"made.json: 1 error:\n  classes: the file has \['cat', 'dog'\]"):
        resolve_dataset("made", manifest)


def test_an_unknown_name_suggests_the_nearest(manifest):
    add_to_manifest(manifest, "cartons", ManifestDataset(["c"], {}))
    with pytest.raises(UserError, match=r"'carton' is not known\. Did you mean 'cartons'\? Known: cartons, quickstart"):
        resolve_dataset("carton", manifest)
    with pytest.raises(UserError, match=r"register_dataset\.py zzz --train-json FILE"):
        resolve_dataset("zzz", manifest)
    with pytest.raises(UserError, match=r"some/where\.json: no such folder or file"):
        resolve_dataset("some/where.json", manifest)


def test_names_of_detectron2s_catalogs(manifest):
    for part in ("train", "val"):
        DatasetCatalog.register(f"outside_{part}", list)
        MetadataCatalog.get(f"outside_{part}").thing_classes = ["a", "b"]
    resolved = resolve_dataset("outside", manifest)
    assert (resolved.train, resolved.test, resolved.classes) == ("outside_train", "outside_val", ["a", "b"])
    MetadataCatalog.remove("outside_val")
    MetadataCatalog.get("outside_val").thing_classes = ["b", "a"]
    with pytest.raises(UserError, match="need the same thing_classes"):
        resolve_dataset("outside", manifest)


# JSON of train and test, folders of their images, key of the test part
LAYOUTS = {
    "system 1": ("dataset_train.json", "dataset_test.json", ".", ".", "test"),
    "COCO": ("annotations/instances_train2017.json", "annotations/instances_val2017.json",
             "../train2017", "../val2017", "val"),
    "COCO in images": ("annotations/instances_train2017.json", "annotations/instances_val2017.json",
                       "../images/train2017", "../images/val2017", "val"),
    "one image folder": ("annotations/instances_train.json", "annotations/instances_test.json",
                         "../images", "../images", "test"),
    "Roboflow": ("train/_annotations.coco.json", "valid/_annotations.coco.json", ".", ".", "val"),
    "by name": ("cells-Train.json", "cells-Test.json", "images/train", "images/test", "test"),
    "by name in annotations": ("annotations/train.coco.json", "annotations/valid.coco.json",
                               "../images/train", "../images/valid", "val"),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders(layout, coco, write, manifest, tmp_path):
    train, test, train_images, test_images, key = LAYOUTS[layout]
    write(coco, f"my cells/{train}", images=train_images)
    coco["images"].pop(0)
    coco["annotations"].pop(1)
    write(coco, f"my cells/{test}", images=test_images)
    if "instances" in train:
        write([], "my cells/annotations/captions_train2017.json")  # COCO has it, and it is not meant
    resolved = resolve_dataset(str(tmp_path / "my cells"), manifest)
    assert (resolved.name, resolved.train, resolved.test) == ("my_cells", "my_cells_train", f"my_cells_{key}")
    assert [len(DatasetCatalog.get(name)) for name in (resolved.train, resolved.test)] == [2, 1]


def test_test_is_preferred_to_val(coco, write, manifest, tmp_path):
    for part in ("train", "val", "test"):
        write(coco, f"cells/dataset_{part}.json")
    assert resolve_dataset(str(tmp_path / "cells"), manifest).test == "cells_test"


def test_an_unknown_folder_prints_the_line_to_use(coco, write, manifest, tmp_path):
    file = write(coco, "cells/derived/trainval.json", images="../images")
    line = (
        f"python tools/register_dataset.py cells --train-json {file} "
        f"--train-images {tmp_path / 'cells/images'} --split 0.8"
    )
    with pytest.raises(UserError, match="layout of this folder is not known") as error:
        resolve_dataset(str(tmp_path / "cells"), manifest)
    assert line in str(error.value)


def test_a_folder_with_two_candidates(coco, write, manifest, tmp_path):
    for name in ("a_train", "b_train", "a_test"):
        write(coco, f"cells/{name}.json")
    with pytest.raises(UserError, match=r"could be the train split: a_train\.json, b_train\.json"):
        resolve_dataset(str(tmp_path / "cells"), manifest)


def test_both_parts_must_have_the_same_classes(coco, write, manifest, tmp_path):
    write(coco, "cells/dataset_train.json")
    coco["categories"][0]["name"] = "wolf"
    write(coco, "cells/dataset_test.json")
    with pytest.raises(UserError, match=r"different classes:\n.*\['cat', 'dog'\]\n.*\['cat', 'wolf'\]"):
        resolve_dataset(str(tmp_path / "cells"), manifest)


def test_detectron2_dicts_get_as_many_classes_as_both_parts_need(dicts, write, manifest, tmp_path):
    write(dicts, "cells/dataset_train.json")  # class index 1
    dicts[0]["annotations"][0]["category_id"] = 2
    write(dicts, "cells/dataset_test.json")
    resolved = resolve_dataset(str(tmp_path / "cells"), manifest)
    assert resolved.classes == ["class_0", "class_1", "class_2"]
    assert MetadataCatalog.get("cells_train").thing_classes == resolved.classes


def test_a_file_is_split_by_image_and_says_so(coco, write, manifest, caplog):
    caplog.set_level("INFO")
    coco["images"] = [
        {"id": 10 + i, "file_name": "sam_d2_test_a.png", "height": 8, "width": 6} for i in range(11)
    ]  # fmt: skip
    file = write(coco, "cells/annotations/all.json", images="../images")
    resolved = resolve_dataset(str(file), manifest)
    assert (resolved.name, resolved.train, resolved.test) == (
        "cells_all", "cells_all_train", "cells_all_test",
    )  # fmt: skip
    parts = [[record["image_id"] for record in DatasetCatalog.get(name)] for name in (resolved.train, resolved.test)]
    assert [len(part) for part in parts] == [9, 2]  # round(0.8 * 11)
    assert sorted(parts[0] + parts[1]) == list(range(10, 21))
    assert "_train: 9 images, of the 11 in " in caplog.text


def what_is_there(manifest):
    """Of the scenes when a process comes to write them, in a process of its own."""
    found = []

    def write(folder):
        found.append(folder.is_dir())
        folder.mkdir(exist_ok=True)
        raise UserError("enough")

    scenes.ensure_quickstart = write
    with contextlib.suppress(UserError):
        resolve_dataset("quickstart", manifest)
    return found


def test_one_of_several_processes_writes_the_quickstart_scenes(in_two_processes, tmp_path):
    assert in_two_processes(what_is_there, tmp_path / "datasets.json") == [[False], [True]]


def test_quickstart_lies_beside_the_manifest(coco, write, manifest, monkeypatch):
    def ensure_quickstart(folder):
        for part in ("train", "test"):
            write(coco, f"data/quickstart/annotations/instances_{part}.json", images=f"../images/{part}")
        assert folder == manifest.parent / "quickstart"
        return folder

    scenes = types.SimpleNamespace(ensure_quickstart=ensure_quickstart)
    monkeypatch.setitem(sys.modules, "sam_d2.data.scenes", scenes)
    resolved = resolve_dataset("quickstart", manifest)
    assert (resolved.train, resolved.test) == ("quickstart_train", "quickstart_test")


@pytest.mark.parametrize(
    ("argument", "classes", "train", "test"),
    [
        ("iwp", 1, (129, 6045), (132, 5116)),
        ("coco_tiny80", 80, (80, 705), (80, 815)),
        ("mushroom_dense", 2, (78, 10335), (3, 594)),
        ("nuts18/annotations/trainval.json", 3, (14, 165), (4, None)),
        ("dsb2018_nuclei/derived/instances.json", 1, (64, 4824), (16, None)),
    ],
)
def test_real_data(real_data, manifest, argument, classes, train, test):
    resolved = resolve_dataset(str(real_data / argument), manifest)
    assert len(resolved.classes) == classes
    counts = []
    for name in (resolved.train, resolved.test):
        dicts = DatasetCatalog.get(name)
        counts.append((len(dicts), sum(len(record["annotations"]) for record in dicts)))
    if test[1] is None:  # the two parts of one file
        assert counts[0][1] + counts[1][1] == train[1]
        assert [count[0] for count in counts] == [train[0], test[0]]
    else:
        assert counts == [train, test]


@pytest.mark.parametrize("name", ["nuts18", "dsb2018_nuclei"])
def test_real_folders_that_need_registering_say_how(real_data, manifest, name):
    with pytest.raises(UserError, match=f"register_dataset.py {name} --train-json .*json --train-images .*images"):
        resolve_dataset(str(real_data / name), manifest)


def test_a_moved_project_keeps_its_manifest(coco, write, manifest, tmp_path):
    write(coco, "data/made.json")
    splits = {part: ManifestSplit("made.json", None, Split(part)) for part in ("train", "test")}
    add_to_manifest(manifest, "made", ManifestDataset(["cat", "dog"], splits))
    shutil.move(manifest.parent, tmp_path / "moved")
    resolve_dataset("made", tmp_path / "moved/datasets.json")
    assert MetadataCatalog.get("made_train").image_root == str(tmp_path / "moved")
    assert json.loads((tmp_path / "moved/datasets.json").read_text())["version"] == 1


def line_to_register(error):
    """The words of the command at the end of a message."""
    return shlex.split(str(error.value).splitlines()[-1])[2:]


def test_a_file_without_its_images_says_how_to_register_it(coco, write, manifest, tmp_path):
    file = write(coco, "cells/all.json", images="else where")
    with pytest.raises(UserError, match="none of its 2 images was found") as error:
        resolve_dataset(str(file), manifest)
    words = ["cells_all", "--train-json", str(file), "--train-images", "DIR", "--split", "0.8", "--seed", "0"]
    assert line_to_register(error) == words
    assert "--dataset cells_all" in str(error.value)
    file.with_name("else where").joinpath("sam_d2_test_a.png").rename(file.with_name("sam_d2_test_a.png"))
    with pytest.raises(UserError, match="1 of 2 images are missing") as error:  # registering would not help
        resolve_dataset(str(file), manifest)
    assert "register" not in str(error.value)


def test_a_registered_dataset_whose_images_moved_says_how_to_register_it_again(dicts, write, manifest):
    write(dicts, "data/train.json", images="none")
    write(dicts, "data/test.json", images="test images")
    splits = {"train": ManifestSplit("train.json", "gone"), "test": ManifestSplit("test.json", "test images")}
    add_to_manifest(manifest, "made", ManifestDataset(["low", "high"], splits))
    with pytest.raises(UserError, match=r"gone \(no such folder\)") as error:
        resolve_dataset("made", manifest)
    data = manifest.parent
    assert line_to_register(error) == [
        "made", "--train-json", str(data / "train.json"), "--train-images", "DIR",
        "--test-json", str(data / "test.json"), "--test-images", str(data / "test images"),
        "--classes", "low,high", "--replace",
    ]  # fmt: skip
