import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import convert_to_coco_json, load_coco_json, register_coco_instances
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.structures import BoxMode

SQUARE = [1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0]
RLE = {"size": [8, 10], "counts": [8, 16, 56]}  # by columns: the second and third are set


def annotation(number, image_id=1, category_id=1, **more):
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [1.0, 1.0, 4.0, 4.0],
        "area": 16.0,
        "iscrowd": 0,
        "segmentation": [SQUARE],
        **more,
    }


@pytest.fixture
def write(tmp_path):
    def write(annotations, categories=None, images=(2, 1)):
        categories = categories or [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
        content = {
            "images": [{"id": i, "file_name": f"{i}.png", "height": 8, "width": 10} for i in images],
            "annotations": annotations,
            "categories": categories,
        }
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(content))
        return str(path)

    return write


@pytest.fixture
def name():
    name = "loading_test"
    yield name
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)


def test_images_by_id_and_annotations_in_file_order(write):
    path = write([annotation(5, image_id=2), annotation(3), annotation(4, category_id=2)])
    first, second = load_coco_json(path, "root")
    assert (first["image_id"], first["file_name"], first["height"], first["width"]) == (1, "root/1.png", 8, 10)
    assert [a["category_id"] for a in first["annotations"]] == [1, 2]
    assert len(second["annotations"]) == 1
    assert first["annotations"][0] == {
        "iscrowd": 0,
        "bbox": [1.0, 1.0, 4.0, 4.0],
        "category_id": 1,
        "segmentation": [SQUARE],
        "bbox_mode": BoxMode.XYWH_ABS,
    }


def test_category_ids_become_contiguous_in_the_order_of_ids(write, name):
    path = write([annotation(1, category_id=90), annotation(2, category_id=7)], [
        {"id": 90, "name": "last"}, {"id": 7, "name": "first"},
    ])  # fmt: skip
    record = load_coco_json(path, "root", name)[0]
    assert [a["category_id"] for a in record["annotations"]] == [1, 0]
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == ["first", "last"]
    assert metadata.thing_dataset_id_to_contiguous_id == {7: 0, 90: 1}


def test_rle_is_compressed_and_keeps_its_pixels(write):
    record = load_coco_json(write([annotation(1, segmentation=RLE, iscrowd=1)]), "root")[0]
    mask = mask_util.decode(record["annotations"][0]["segmentation"])
    expected = np.zeros((8, 10), np.uint8)
    expected[:, 1:3] = 1
    np.testing.assert_array_equal(mask, expected)
    assert record["annotations"][0]["iscrowd"] == 1


def test_polygons_that_are_none_are_dropped(write):
    bad = [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7]]
    path = write(
        [annotation(1, segmentation=[*bad, SQUARE]), annotation(2, segmentation=bad), annotation(3, segmentation=[])]
    )
    kept = load_coco_json(path, "root")[0]["annotations"]
    assert [a.get("segmentation") for a in kept] == [[SQUARE], None]


def test_extra_keys(write):
    path = write([annotation(1, mark="x"), annotation(2)])
    kept = load_coco_json(path, "root", extra_annotation_keys=["mark"])[0]["annotations"]
    assert [a.get("mark") for a in kept] == ["x", None]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"bbox": []}, ValueError),
        ({"category_id": 3}, KeyError),
        ({"ignore": 1}, AssertionError),
        ({"id": 1}, AssertionError),
    ],
)
def test_bad_annotations(write, name, change, error):
    path = write([annotation(1), {**annotation(2), **change}])
    with pytest.raises(error):
        load_coco_json(path, "root", name)


def test_registering_reads_nothing_until_asked(write, name, tmp_path):
    register_coco_instances(name, {"note": 1}, str(tmp_path / "instances.json"), tmp_path)
    metadata = MetadataCatalog.get(name)
    assert (metadata.evaluator_type, metadata.note, metadata.image_root) == ("coco", 1, tmp_path)
    write([annotation(1)])
    records = DatasetCatalog.get(name)
    assert records[0]["file_name"] == str(tmp_path / "1.png")
    assert metadata.thing_classes == ["a", "b"]


def test_writing_gives_back_what_was_read(write, name, tmp_path):
    source = write([annotation(10, category_id=7), annotation(11, category_id=90, segmentation=RLE, iscrowd=1)], [
        {"id": 90, "name": "last"}, {"id": 7, "name": "first"},
    ])  # fmt: skip
    register_coco_instances(name, {}, source, "root")
    target = tmp_path / "new" / "out.json"
    convert_to_coco_json(name, str(target))
    content = json.loads(target.read_text())
    assert content["categories"] == [{"id": 7, "name": "first"}, {"id": 90, "name": "last"}]
    assert [a["id"] for a in content["annotations"]] == [1, 2]
    assert [a["category_id"] for a in content["annotations"]] == [7, 90]
    assert [a["area"] for a in content["annotations"]] == [16.0, 16.0]  # 4 x 4, and two columns of 8
    assert [a["iscrowd"] for a in content["annotations"]] == [0, 1]
    again = load_coco_json(str(target), "")
    assert again[0]["annotations"][0]["segmentation"] == [SQUARE]


def test_written_file_is_kept_unless_told(write, name, tmp_path):
    register_coco_instances(name, {}, write([annotation(1)]), "root")
    target = tmp_path / "out.json"
    target.write_text("old")
    convert_to_coco_json(name, str(target))
    assert target.read_text() == "old"
    convert_to_coco_json(name, str(target), allow_cached=False)
    assert len(json.loads(target.read_text())["annotations"]) == 1


def test_area_of_an_annotation_without_segmentation_is_its_box(name):
    box = {"bbox": np.array([2.0, 3.0, 6.0, 10.0]), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    record = {"file_name": "x.png", "height": 20, "width": 20, "annotations": [box]}
    DatasetCatalog.register(name, lambda: [record])
    MetadataCatalog.get(name).thing_classes = ["a"]
    written = convert_to_coco_dict(name)["annotations"][0]
    assert (written["bbox"], written["area"]) == ([2.0, 3.0, 4.0, 7.0], 28.0)  # 4 wide, 7 high
    record["annotations"] = [{**box, "bbox": np.zeros((1, 4))}]
    with pytest.raises(ValueError):
        convert_to_coco_dict(name)
    record["annotations"] = [{**box, "segmentation": "?"}]
    with pytest.raises(TypeError):
        convert_to_coco_dict(name)


def test_real_annotations(real_data, name):
    folder = real_data / "coco_tiny80"
    path = folder / "annotations" / "instances_train2017.json"
    records = load_coco_json(str(path), folder / "images" / "train2017", name)
    content = json.loads(path.read_text())
    assert len(records) == len(content["images"]) == 80
    assert sum(len(r["annotations"]) for r in records) == len(content["annotations"]) == 705
    assert all(Path(r["file_name"]).is_file() for r in records)
    assert len(MetadataCatalog.get(name).thing_classes) == 80
