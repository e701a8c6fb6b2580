"""Whole numbers that a file has as floats or texts: what --fix writes, and what it leaves."""

import pytest

from sam_d2.doctor.checkup import check_dataset
from sam_d2.doctor.mend import mend
from sam_d2.doctor.parts import Source

COCO_KEYS = {
    "images": ("id", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "iscrowd"),
    "categories": ("id",),
}


def mended_copy(file):
    mended = mend(Source("", file), check_dataset([Source("", file)]))
    copy = file.with_name("copy.json")
    copy.write_bytes(mended.content())
    again = mend(Source("", copy), check_dataset([Source("", copy)]))
    assert not again.counts and again.content() == copy.read_bytes()
    return mended


def left(mended):
    return [(one.kind, one.image_id, one.annotation_id, one.field) for one in mended.checkup.findings]


@pytest.mark.parametrize("spell", [float, str])
def test_each_whole_number_is_written_as_one(spell, coco, write):
    """As pandas writes a column that had a gap once; annotation ids are kept, 7 to 10."""
    for place, annotation in enumerate(coco["annotations"]):
        annotation["id"] = 7 + place
    damaged = {key: [dict(one) for one in coco[key]] for key in COCO_KEYS}
    for key, names in COCO_KEYS.items():
        for one in damaged[key]:
            one.update({name: spell(one[name]) for name in names})
    file = write({**damaged, "info": coco["info"]})
    assert check_dataset([Source("", file)]).exit_code == 2
    mended = mended_copy(file)
    assert mended.document == coco and mended.checkup.findings == []
    numbers = [one[key] for name, keys in COCO_KEYS.items() for one in mended.document[name] for key in keys]
    assert {type(number) for number in numbers} == {int}
    assert mended.counts == {"wrong-type": 2 * 3 + 4 * 4 + 2 * 1}


def test_each_whole_number_of_detectron2_s_form(dicts, write):
    """A text is an image id of this form."""
    for image in dicts:
        image["width"] = float(image["width"])
        image["annotations"][0] |= {"category_id": 0.0, "bbox_mode": "0", "id": 3.0}
    dicts[0]["image_id"], dicts[1]["image_id"] = 1.0, "1"
    mended = mended_copy(write(dicts))
    assert [image["image_id"] for image in mended.document] == [1, "1"] and mended.checkup.findings == []
    first = mended.document[0]["annotations"][0]
    assert (first["category_id"], first["bbox_mode"], first["id"]) == (0, 0, 3)
    assert [type(value) for value in (mended.document[0]["image_id"], first["category_id"], first["id"])] == [int] * 3
    assert mended.counts == {"wrong-type": 2 * 4 + 1}


@pytest.mark.parametrize(
    "value",
    [1.5, 2.0**60, float("nan"), float("inf"), "1.0", "01", "\u0661", " 1", "", "9" * 19, "9" * 5000, True, None],
    ids=lambda value: repr(value)[:12],
)
def test_what_is_no_whole_number_is_left(value, coco, write):
    """2^60 as a float is one of 256 whole numbers; the digit of another script is no ASCII digit."""
    coco["annotations"][0]["image_id"] = value
    mended = mended_copy(write(coco))
    assert left(mended) == [("wrong-type", value if isinstance(value, str) else None, 1, "image_id")]
    assert not mended.counts


@pytest.mark.parametrize(("key", "value"), [("width", 0.0), ("width", 1e10), ("height", "-30")])
def test_a_number_that_the_field_does_not_take_is_left(key, value, coco, write):
    coco["images"][0][key] = value
    mended = mended_copy(write(coco))
    assert left(mended) == [("wrong-type", 1, None, key)] and mended.document == coco


def test_ids_that_would_become_one_are_left(coco, write):
    """Images 1 and "1": whose annotation is one of image "1"? That of categories is clear, 1 and 2.0."""
    coco["images"][1]["id"] = "1"
    coco["annotations"][2] |= {"image_id": "1", "category_id": 1.0}
    coco["annotations"][3]["image_id"] = "1"
    coco["categories"][1]["id"] = 2.0
    mended = mended_copy(write(coco))
    assert mended.document == coco and mended.counts == {"wrong-type": 2}  # 1 == 1.0
    assert isinstance(mended.document["annotations"][2]["category_id"], int)
    assert left(mended) == [
        ("wrong-type", "1", None, "id"), ("wrong-type", "1", 3, "image_id"), ("wrong-type", "1", 4, "image_id")
    ]  # fmt: skip


def test_one_image_twice_under_one_float(coco, write):
    """Which is no doubt about the number, and of records that are the same one is left."""
    coco["images"][0]["id"] = 1.0
    coco["images"].append(dict(coco["images"][0]))
    mended = mended_copy(write(coco))
    assert [image["id"] for image in mended.document["images"]] == [1, 2]
    assert mended.counts == {"wrong-type": 2, "image-id-twice": 1} and mended.checkup.findings == []
