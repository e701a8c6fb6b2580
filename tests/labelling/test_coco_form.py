"""Detectron2's list of dicts in COCO's form."""

import json

import pytest

from sam_d2.errors import UserError
from sam_d2.labelling.coco_form import is_list_of_dicts, write_coco_form

DICTS = [
    {"file_name": "b.png", "height": 8, "width": 6, "image_id": 5, "domain": "sketch", "annotations": [
        {"bbox": [1, 1, 3, 4.5], "bbox_mode": 0, "category_id": 1, "note": "x"},
        {"bbox": [1, 1, 3, 4], "bbox_mode": 1, "category_id": 0, "iscrowd": 0, "segmentation": []},
    ]},
    {"file_name": "a.png", "height": 8, "width": 6, "image_id": 4, "annotations": []},
]  # fmt: skip


def converted(tmp_path, dicts, classes=()):
    (tmp_path / "dicts.json").write_text(json.dumps(dicts))
    write_coco_form(tmp_path / "dicts.json", tmp_path / "coco.json", classes)
    return json.loads((tmp_path / "coco.json").read_text())


def test_by_hand(tmp_path):
    assert converted(tmp_path, DICTS, ["cat"]) == {
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "class_1"}],
        "images": [
            {"id": 5, "file_name": "b.png", "height": 8, "width": 6, "domain": "sketch"},
            {"id": 4, "file_name": "a.png", "height": 8, "width": 6},
        ],
        "annotations": [
            # from edges 1, 1, 3, 4.5 to 2 wide and 3.5 high
            {"id": 1, "image_id": 5, "bbox": [1, 1, 2, 3.5], "category_id": 1, "note": "x"},
            {"id": 2, "image_id": 5, "bbox": [1, 1, 3, 4], "category_id": 0, "iscrowd": 0, "segmentation": []},
        ],
    }
    assert is_list_of_dicts(tmp_path / "dicts.json") and not is_list_of_dicts(tmp_path / "coco.json")


def test_ids_stay_where_all_have_one(tmp_path):
    dicts = json.loads(json.dumps(DICTS))
    dicts[0]["annotations"][0]["id"], dicts[0]["annotations"][1]["id"] = 30, 0
    assert [item["id"] for item in converted(tmp_path, dicts)["annotations"]] == [30, 0]
    del dicts[0]["annotations"][1]["id"]
    assert [item["id"] for item in converted(tmp_path, dicts)["annotations"]] == [1, 2]


def test_an_image_id_of_text(tmp_path):
    with pytest.raises(UserError, match="image_id 'four' is text"):
        converted(tmp_path, [{**DICTS[1], "image_id": "four"}])
