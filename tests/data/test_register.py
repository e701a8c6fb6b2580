import json

import pytest

from detectron2.data import DatasetCatalog, MetadataCatalog
from sam_d2.data import Split, cached_dataset_file, load_dataset_file, register, register_dataset
from sam_d2.data.split import split_dataset
from sam_d2.errors import UserError

pytestmark = pytest.mark.usefixtures("catalogs")


def test_a_coco_file_is_in_both_catalogs(coco, write):
    file = write(coco)
    register_dataset("made_train", file)
    assert DatasetCatalog.get("made_train") == load_dataset_file(file).dataset_dicts
    metadata = MetadataCatalog.get("made_train")
    assert metadata.json_file == str(file) and metadata.image_root == str(file.parent)
    assert metadata.evaluator_type == "coco" and metadata.thing_classes == ["cat", "dog"]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}


def test_detectron2_dicts_have_no_coco_file(dicts, write):
    register_dataset("made_train", write(dicts), classes=["low", "high"])
    assert len(DatasetCatalog.get("made_train")) == 2
    metadata = MetadataCatalog.get("made_train")
    assert metadata.thing_classes == ["low", "high"]
    assert metadata.thing_dataset_id_to_contiguous_id == {0: 0, 1: 1}
    assert not hasattr(metadata, "json_file")  # an evaluator would read it as COCO's form


def test_the_same_files_again_change_nothing_and_others_are_an_error(coco, write):
    file, other = write(coco), write(coco, "other.json")
    register_dataset("made_train", file, file.parent)
    register_dataset("made_train", str(file), str(file.parent))
    for arguments in ((other, file.parent), (file,), (file, file.parent, ["cat", "dog"])):
        with pytest.raises(UserError, match="'made_train' is already registered with other files"):
            register_dataset("made_train", *arguments)
    with pytest.raises(UserError, match="already registered with other files"):
        register_dataset("made_train", file, file.parent, split=Split("train"))


def test_the_same_files_for_boxes_alone_are_no_others(coco, write):
    file = write(coco)
    register_dataset("made_train", file, file.parent)
    with_masks = DatasetCatalog.get("made_train")
    register_dataset("made_train", file, file.parent, boxes_alone=True)
    assert list(DatasetCatalog.get("made_train")) == list(with_masks)
    for record in coco["annotations"]:
        del record["segmentation"]
    file.write_text(json.dumps(coco))
    assert DatasetCatalog.get("made_train")[0]["annotations"]
    register_dataset("made_train", file, file.parent)
    with pytest.raises(UserError, match=r"none of the .* annotations has one"):
        DatasetCatalog.get("made_train")


def test_a_name_that_other_code_registered_is_an_error(coco, write):
    DatasetCatalog.register("taken", list)
    with pytest.raises(UserError, match="code outside of sam_d2"):
        register_dataset("taken", write(coco))


def test_a_name_taken_out_of_the_catalog_is_free_again(coco, write):
    register_dataset("made_train", write(coco))
    DatasetCatalog.remove("made_train")
    MetadataCatalog.remove("made_train")
    register_dataset("made_train", write(coco, "other.json"))
    assert len(DatasetCatalog.get("made_train")) == 2


def test_bad_files_end_in_one_message(coco, write, tmp_path):
    with pytest.raises(UserError, match="no such dataset file"):
        register_dataset("made_train", tmp_path / "none.json")
    coco["images"][0]["width"] = -1
    register_dataset("made_train", write(coco))
    with pytest.raises(UserError, match="image 20, width: -1"):
        DatasetCatalog.get("made_train")


def test_a_file_is_parsed_once_until_it_changes(coco, write, monkeypatch):
    reads = []

    def load(*args, **keys):
        reads.append(args)
        return load_dataset_file(*args, **keys)

    monkeypatch.setattr(register, "load_dataset_file", load)
    file = write(coco)
    register_dataset("made_train", file, split=Split("train"))
    register_dataset("made_test", file, split=Split("test"))
    assert len(DatasetCatalog.get("made_train")) == len(DatasetCatalog.get("made_test")) == 1
    assert cached_dataset_file(file, classes=["cat", "dog"]).classes == ["cat", "dog"]
    assert len(reads) == 1
    coco["images"].append({"id": 30, "file_name": "sam_d2_test_a.png", "height": 8, "width": 6})
    write(coco)
    assert len(cached_dataset_file(file).dataset_dicts) == 3
    assert len(reads) == 2


def images(count):
    return [{"image_id": 3 * index} for index in range(count)]


@pytest.mark.parametrize(("count", "fraction", "train"), [(10, 0.8, 8), (18, 0.8, 14), (2, 0.9, 1), (3, 0.1, 1)])
def test_a_split_is_disjoint_whole_and_in_order(count, fraction, train):
    parts = [split_dataset(images(count), Split(part, fraction, 5), "file") for part in ("train", "test")]
    assert [len(part) for part in parts] == [train, count - train]
    assert sorted(parts[0] + parts[1], key=lambda record: record["image_id"]) == images(count)
    for part in parts:
        assert part == sorted(part, key=lambda record: record["image_id"])


def test_a_split_depends_on_ids_and_seed_alone():
    def chosen(dicts, seed):
        return {record["image_id"] for record in split_dataset(dicts, Split("train", 0.8, seed), "file")}

    assert chosen(images(50), 0) == chosen(images(50)[::-1], 0)
    assert chosen(images(50), 0) != chosen(images(50), 1)
    # written down once: a later version must divide a user's file in the same way
    assert {record["image_id"] for record in split_dataset(images(10), Split("test"), "file")} == RECORDED


RECORDED = {0, 6}


def test_one_image_cannot_be_split():
    with pytest.raises(UserError, match="file: 1 image cannot be split"):
        split_dataset(images(1), Split("train"), "file")


@pytest.mark.usefixtures("catalogs")
def test_what_a_dataset_holds_is_logged_in_a_line(coco, write, caplog):
    caplog.set_level("INFO", "sam_d2.data.register")
    coco["categories"] += [{"id": 100 + index, "name": f"more {index}"} for index in range(5)]
    first = coco["annotations"][0]
    coco["annotations"] = [
        {**first, "id": row, "category_id": category}
        for row, category in enumerate([100, 101, 101, 102, 103, 104, coco["categories"][0]["id"]])
    ]
    register_dataset("made_train", write(coco))
    DatasetCatalog.get("made_train")
    # 7 instances of 7 classes, of which 6 occur; the most frequent first, 5 of them
    assert "made_train: 2 images, 7 instances of 7 classes (more 1 2, " in caplog.text
    assert caplog.messages[-1].count(" 1, ") == 4 and caplog.messages[-1].endswith(", ...); 1 image without any")


@pytest.mark.usefixtures("catalogs")
def test_warnings_are_pointed_to_where_there_is_a_log(coco, write, caplog):
    """What they are is said when the file is read, which is before a run has a folder."""
    coco["annotations"][1]["bbox"] = [-9, 1, 12, 3]
    file = write(coco)
    register_dataset("made_train", file)
    cached_dataset_file(file)
    caplog.clear()
    caplog.set_level("INFO", "sam_d2.data.register")
    DatasetCatalog.get("made_train")
    assert caplog.messages[1:] == [f"made_train: 1 warning; python tools/check_dataset.py {file} says them"]
