"""COCO 2017 by name: where it is found, and what is said where it is not."""

import json

import pytest
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from sam_d2.data import resolve_dataset
from sam_d2.data.coco_2017 import ROOT_VARIABLE
from sam_d2.errors import UserError

pytestmark = pytest.mark.usefixtures("catalogs")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Catalogs without COCO, which an installed Detectron2 registers and gets back."""
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)
    monkeypatch.setattr("sam_d2.data.register._registered", {})
    names = ("coco_2017_train", "coco_2017_val")
    kept = {name: (DatasetCatalog.pop(name), MetadataCatalog.pop(name)) for name in names if name in DatasetCatalog}
    yield
    for name in names:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)
    for name, (function, metadata) in kept.items():
        DatasetCatalog[name], MetadataCatalog[name] = function, metadata


def write_coco(root, splits=("train", "val")):
    for number, split in enumerate(splits, 1):
        folder = root / "coco" / f"{split}2017"
        folder.mkdir(parents=True)
        Image.new("RGB", (20, 10)).save(folder / f"{number:012}.jpg")
        mask = {"segmentation": [[1, 1, 9, 1, 9, 9]], "bbox": [1, 1, 8, 8], "area": 32.0, "iscrowd": 0}
        content = {
            "images": [{"id": number, "file_name": f"{number:012}.jpg", "width": 20, "height": 10}],
            "annotations": [{"id": 1, "image_id": number, "category_id": 3, **mask}],
            "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}],
        }
        file = root / "coco" / "annotations" / f"instances_{split}2017.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))


@pytest.mark.parametrize("place", ["data", "elsewhere"])
def test_is_found_in_both_places(tmp_path, monkeypatch, place):
    write_coco(tmp_path / place)
    if place == "elsewhere":
        monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "elsewhere"))
    found = resolve_dataset("coco_2017", tmp_path / "data" / "datasets.json")
    assert (found.name, found.train, found.test) == ("coco_2017", "coco_2017_train", "coco_2017_val")
    assert found.classes == ["person", "car"] == MetadataCatalog.get("coco_2017_val").thing_classes
    (record,) = DatasetCatalog.get("coco_2017_val")
    assert record["file_name"] == str(tmp_path / place / "coco" / "val2017" / "000000000002.jpg")
    assert record["annotations"][0]["category_id"] == 1, "contiguous: the second class"
    assert resolve_dataset("coco_2017", tmp_path / "data" / "datasets.json") == found


def test_detectron2s_own_registration_gives_way(tmp_path):
    DatasetCatalog.register("coco_2017_train", list)
    MetadataCatalog.get("coco_2017_train").set(thing_classes=["builtin"])
    write_coco(tmp_path / "data")
    assert resolve_dataset("coco_2017", tmp_path / "data" / "datasets.json").classes == ["person", "car"]


def test_a_missing_one_is_an_error_with_the_tree_and_the_addresses(tmp_path):
    write_coco(tmp_path / "data", splits=["train"])
    with pytest.raises(UserError) as caught:
        resolve_dataset("coco_2017", tmp_path / "data" / "datasets.json")
    message = str(caught.value)
    assert f"missing: {tmp_path / 'data' / 'coco' / 'annotations' / 'instances_val2017.json'}, " in message
    assert "  coco/annotations/instances_train2017.json\n" in message and "  coco/val2017/*.jpg\n" in message
    assert "http://images.cocodataset.org/annotations/annotations_trainval2017.zip" in message
    assert ROOT_VARIABLE in message
