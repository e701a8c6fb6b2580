"""Each kind of finding in a file that is sound but for it."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_util

from sam_d2.data import load_dataset_file
from sam_d2.data.finding_kinds import KINDS
from sam_d2.doctor.checkup import check_dataset
from sam_d2.doctor.ids import check_ids
from sam_d2.doctor.mend import mend
from sam_d2.doctor.parts import Source, read_part
from sam_d2.errors import UserError

NAN = float("nan")
WIDTH, HEIGHT = 40, 30


def all_annotations(**fields):
    return lambda content: [one.update(fields) for one in content["annotations"]]


def rle(left, top, right, bottom, size=(HEIGHT, WIDTH)) -> dict[str, Any]:
    mask = np.zeros(size, dtype=np.uint8)
    mask[top:bottom, left:right] = 1
    code = mask_util.encode(np.asfortranarray(mask))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def as_xyxy(content):
    for one in content["annotations"]:
        x, y, width, height = one["bbox"]
        one["bbox"] = [x, y, x + width, y + height]


def boxes_as_xyxy_without_masks(content):
    """As XYWH the boxes reach to x 45, 65 and y 35 and more, in images of 40 x 30; ten boxes are enough to tell."""
    content["annotations"] = [
        {
            "id": number,
            "image_id": 1,
            "category_id": 1 + number % 2,
            "bbox": [20, 15, 30, 25],
            "area": 100,
            "iscrowd": 0,
        }
        for number in range(1, 11)
    ]


FIRST = ("annotations", 0)  # annotation 1 of image 1, a square [5, 5] to [15, 15]
ANNOTATION, IMAGE, FILE = (1, 1), (1, None), (None, None)  # the image's and the annotation's id
SQUARE = [5, 5, 15, 5, 15, 15, 5, 15]
BOW = [5, 5, 15, 15, 15, 5, 5, 15]  # two triangles of 10 x 5 / 2 = 25 px^2, pixel by pixel more or less
# change, kind, ids, whether nothing of the kind is left in the mended copy
COCO: dict[str, tuple[Any, str, tuple, bool]] = {
    "images missing": (("images", ...), "wrong-form", FILE, False),
    "list is an object": (("categories", {}), "wrong-form", FILE, False),
    "key missing": (("images", 0, "height", ...), "missing-key", IMAGE, False),
    "annotation without id": ((*FIRST, "id", ...), "missing-key", (1, "annotations[0]"), True),
    "annotation without box": ((*FIRST, "bbox", ...), "missing-key", ANNOTATION, True),
    "annotation's id is a text": ((*FIRST, "id", "one"), "wrong-type", (1, "one"), True),
    "box of three numbers": ((*FIRST, "bbox", [5, 5, 10]), "wrong-type", ANNOTATION, True),
    "area is a text": ((*FIRST, "area", "100"), "wrong-type", ANNOTATION, True),
    "polygon in no list": (
        (*FIRST, "segmentation", [5, 5, 15, 5, 15, 15, 5, 15]), "wrong-type", ANNOTATION, True),
    "polygon of texts": ((*FIRST, "segmentation", [["5", 5, 15, 5, 15, 15]]), "wrong-type", ANNOTATION, False),
    "no categories": (("categories", []), "no-categories", FILE, False),
    "image id twice": (("images", 0, "id", 2), "image-id-twice", (2, None), False),
    "image twice": (lambda c: c["images"].append(dict(c["images"][0])), "image-id-twice", IMAGE, True),
    "annotation id twice": (("annotations", 1, "id", 1), "annotation-id-twice", (None, 1), True),
    "category twice": (
        lambda c: c["categories"].append(dict(c["categories"][0])), "category-id-twice", FILE, True),
    "unknown image": ((*FIRST, "image_id", 9), "unknown-image", (9, 1), False),
    "unknown category": ((*FIRST, "category_id", 9), "unknown-category", ANNOTATION, False),
    "categories shifted": (
        [("categories", 0, "id", 2), ("categories", 1, "id", 3)], "category-ids-shifted", FILE, False),
    "category name twice": (("categories", 1, "name", "square"), "category-name-twice", FILE, False),
    "category unused": (
        lambda c: c["categories"].append({"id": 3, "name": "disc"}), "category-unused", FILE, False),
    "exporter's parent": (
        lambda c: c.update(categories=[
            {"id": 0, "name": "shape", "supercategory": "none"},
            *({**one, "supercategory": "shape"} for one in c["categories"])]),
        "category-zero-unused", FILE, False),
    "annotation id 0": ((*FIRST, "id", 0), "annotation-id-zero", (1, 0), True),
    "wide annotation id": ((*FIRST, "id", 2**31), "id-above-32-bits", (1, 2**31), False),
    "one file name": (("images", 1, "file_name", "doctor_1.png"), "file-name-twice", (2, None), False),
    "annotation twice": (
        lambda c: c["annotations"].append({**c["annotations"][0], "id": 9}), "annotation-twice", (1, 9), True),
    "annotation twice with other keys": (
        lambda c: c["annotations"].append({**c["annotations"][0], "id": 9, "track_id": 4}),
        "annotation-twice", (1, 9), False),
    "boxes alone": (
        lambda c: [one.pop("segmentation") for one in c["annotations"]], "no-masks", FILE, False),
    "no mask": ((*FIRST, "segmentation", []), "mask-absent", ANNOTATION, False),
    # thinner than a pixel, between two columns of pixel centres
    "mask without a pixel": (
        [(*FIRST, "segmentation", [[5.1, 5, 5.3, 5, 5.3, 15, 5.1, 15]]), (*FIRST, "bbox", [5.1, 5, 0.2, 10]),
             (*FIRST, "area", 2)], "mask-empty", ANNOTATION, False),
    "RLE without a pixel": (
        [(*FIRST, "segmentation", {"size": [30, 40], "counts": [1200]}), (*FIRST, "area", 0)],
        "mask-empty", ANNOTATION, False),
    "odd polygon": ((*FIRST, "segmentation", [[5, 5, 15, 5, 15, 15, 5]]), "polygon-odd", ANNOTATION, False),
    "polygon with NaN": ((*FIRST, "segmentation", 0, 2, NAN), "polygon-nan", ANNOTATION, False),
    "polygon of another planet": ((*FIRST, "segmentation", 0, 2, 1e9), "polygon-far", ANNOTATION, False),
    # 10 + 599,995 + 599,995 + 10 px: more than the 1,000,000 that any image may have
    "outline of a small country": (
        (*FIRST, "segmentation", [[5, 5, 15, 5, 15, 600_000, 5, 600_000]]), "polygon-long", ANNOTATION, True),
    "long outline with an odd one": (
        (*FIRST, "segmentation", [[5, 5, 15, 5, 15, 600_000, 5, 600_000], [5, 5, 15, 5, 15, 15, 5]]),
        "polygon-long", ANNOTATION, False),
    # 40 px to and fro, 26,000 times; the box fits
    "long outline inside": (
        lambda c: c["annotations"][0].update(
            bbox=[0, 0, 40, 30],
            segmentation=[[x for place in range(26_000) for x in (40 * (place % 2), place / 1000)] + [0, 30]]),
        "polygon-long", ANNOTATION, False),
    "polygon of two points": (
        lambda c: c["annotations"][0]["segmentation"].append([1, 1, 2, 2]), "polygon-short", ANNOTATION, True),
    "polygon outside": (  # the box too: [30, 5, 20, 10] in an image that ends at 40
        [(*FIRST, "segmentation", [[30, 5, 50, 5, 50, 15, 30, 15]]), (*FIRST, "bbox", [30, 5, 10, 10])],
        "polygon-outside", ANNOTATION, True),
    "polygon all outside": (
        [(*FIRST, "segmentation", [[50, 5, 60, 5, 60, 15, 50, 15]]), (*FIRST, "bbox", [50, 5, 10, 10])],
        "polygon-all-outside", ANNOTATION, False),
    "outline that crosses itself": (
        [(*FIRST, "segmentation", [BOW]), (*FIRST, "area", 50)], "polygon-crossing", ANNOTATION, False),
    "RLE of another size": ((*FIRST, "segmentation", rle(5, 5, 15, 15, (40, 30))), "rle-size", ANNOTATION, False),
    "RLE that does not sum": (
        (*FIRST, "segmentation", {"size": [30, 40], "counts": [100, 50]}), "rle-counts", ANNOTATION, False),
    "box with NaN": ((*FIRST, "bbox", [5, NAN, 10, 10]), "box-nan", ANNOTATION, True),
    "boxes as XYXY": (as_xyxy, "box-form", ANNOTATION, True),
    "one box as XYXY": ((*FIRST, "bbox", [5, 5, 15, 15]), "box-form", ANNOTATION, True),
    "boxes that may be XYXY": (boxes_as_xyxy_without_masks, "box-form-likely", FILE, False),
    "box without area": ((*FIRST, "bbox", [5, 5, 0, 10]), "box-empty", ANNOTATION, True),
    "neither has an area": (
        [(*FIRST, "bbox", [5, 5, 0, 0]), (*FIRST, "segmentation", [[5, 5, 5, 5, 5, 5]])],
        "box-and-mask-empty", ANNOTATION, False),
    "box outside": ((*FIRST, "bbox", [0, 5, 50, 10]), "box-outside", ANNOTATION, True),
    "box all outside": ((*FIRST, "bbox", [50, 5, 10, 10]), "box-all-outside", ANNOTATION, False),
    "box far from a polygon": ((*FIRST, "bbox", [25, 18, 10, 10]), "box-far", ANNOTATION, False),
    "box far from an RLE": (
        [(*FIRST, "segmentation", rle(5, 5, 15, 15)), (*FIRST, "bbox", [25, 18, 10, 10])],
        "box-far", ANNOTATION, False),
    "no iscrowd": ((*FIRST, "iscrowd", ...), "iscrowd-absent", ANNOTATION, True),
    "no area": ((*FIRST, "area", ...), "area-absent", ANNOTATION, True),
    "negative area": ((*FIRST, "area", -1), "area-negative", ANNOTATION, True),
    "area NaN": ((*FIRST, "area", NAN), "area-nan", ANNOTATION, True),
    "area of the box": (("annotations", 1, "area", 100), "area-of-box", (1, 2), True),
    "another area": ((*FIRST, "area", 60), "area-differs", ANNOTATION, True),
    # the square and its right half, 100 + 50 px^2, of which 100 pixels are drawn
    "area of parts that overlap": (
        [(*FIRST, "segmentation", [SQUARE, [10, 5, 15, 5, 15, 15, 10, 15]]), (*FIRST, "area", 150)],
        "area-differs", ANNOTATION, True),
    # of which one goes around its 25 px^2 clockwise, and the other against it
    "area of an outline that crosses itself": (
        [(*FIRST, "segmentation", [BOW]), (*FIRST, "area", 0)], "area-differs", ANNOTATION, True),
    "image missing": (("images", 0, "file_name", "doctor_none.png"), "image-missing", IMAGE, False),
    "path that leaves": (("images", 0, "file_name", "../../../../../../x.png"), "path-leaves-root", IMAGE, False),
    "no annotations": (("annotations", []), "no-annotations", FILE, False),
    "NaN that nobody reads": ((*FIRST, "score", NAN), "not-strict-json", ANNOTATION, False),
    "NaN in the file's info": (("info", "year", NAN), "not-strict-json", FILE, False),
    "domain of another kind": (("images", 0, "domain", {"id": 4}), "foreign-value", IMAGE, False),
    "provenance of another kind": ((*FIRST, "provenance", "crowdsourced"), "foreign-value", ANNOTATION, False),
    "all crowd": (all_annotations(iscrowd=1), "all-crowd", FILE, False),
}  # fmt: skip
# Beside what a case is about, what follows from it.
FOLLOWS = {
    "image id twice": {"unknown-image"},
    "image twice": {"file-name-twice"},
    "category twice": {"category-name-twice"},
    "categories shifted": {"unknown-category", "category-unused"},
    "long outline with an odd one": {"polygon-odd"},
    "polygon all outside": {"box-all-outside"},
    "boxes that may be XYXY": {"no-masks", "box-outside"},
    "neither has an area": {"mask-empty", "area-differs"},
    "area of an outline that crosses itself": {"polygon-crossing"},
    "box outside": {"box-far"},
    "box all outside": {"box-far"},
    "path that leaves": {"image-missing"},
}


def test_reading_does_not_import_the_doctor():
    """Imports run one way: training reads and checks a file without what the doctor adds."""
    files = sorted((Path(__file__).resolve().parents[2] / "sam_d2" / "data").rglob("*.py"))
    assert len(files) > 10 and [file.name for file in files if "sam_d2.doctor" in file.read_text()] == []


def kinds_of(checkup) -> set[str]:
    return {finding.kind for finding in checkup.findings}


@pytest.mark.parametrize("case", COCO)
def test_each_kind_is_found_with_its_ids_and_mended_where_it_can_be(case, coco, write, edit):
    change, kind, ids, is_mended = COCO[case]
    edit(coco, change)
    file = write(coco)
    before = file.read_bytes()
    checkup = check_dataset([Source("", file)])
    own = [finding for finding in checkup.findings if finding.kind == kind]
    assert ids in [(finding.image_id, finding.annotation_id) for finding in own]
    assert kinds_of(checkup) - {kind} == FOLLOWS.get(case, set())
    assert all(finding.severity == KINDS[finding.kind].severity for finding in checkup.findings)
    has_error = any(KINDS[one].severity == "error" for one in kinds_of(checkup))
    assert checkup.exit_code == (2 if has_error else 1)

    mended = mend(Source("", file), checkup)
    assert (mended.counts[kind] >= len(own)) == is_mended
    assert (kind not in kinds_of(mended.checkup)) == is_mended
    assert file.read_bytes() == before
    if is_mended:
        assert KINDS[kind].mended
    copy = write(mended.content(), "copy.json")
    again = mend(Source("", copy), check_dataset([Source("", copy)]))
    assert not again.counts and again.content() == copy.read_bytes()  # to mend twice is to mend once

    # Training stops on what the doctor calls an error, and on nothing else.
    if has_error:
        with pytest.raises(UserError, match=r"python tools/check_dataset\.py .*dataset\.json"):
            load_dataset_file(file)
    else:
        load_dataset_file(file)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "file-empty"),
        (b"{", "cut-off"),
        (b'{"images": [{"id": 1, "file_name": "a.p', "cut-off"),
        (b"hello", "not-json"),
        ('{"images": []}'.encode("utf-16"), "encoding"),
        (b'{"images": "\xe9"}', "encoding"),
        (b'"text"', "wrong-form"),
        (b"{}", "wrong-form"),
        (b'[{"image_id": 1, "category_id": 1, "score": 0.5}]', "wrong-form"),
        (b"[]", "no-images"),
    ],
)
def test_a_file_that_is_no_dataset(content, kind, tmp_path):
    file = tmp_path / "bad.json"
    file.write_bytes(content)
    checkup = check_dataset([Source("", file)])
    assert {finding.kind for finding in checkup.findings} - {"no-annotations"} == {kind}
    assert checkup.exit_code == 2


def test_one_unknown_category_is_not_all_ids_one_off(coco, write):
    """With ids 1 and 5, one 4 may be a mistake for either, and so it is for all annotations with it."""
    coco["categories"][1]["id"] = 5
    for one in coco["annotations"]:
        one["category_id"] = 4
    kinds = kinds_of(check_dataset([Source("", write(coco))]))
    assert kinds == {"unknown-category", "category-unused"}
    coco["categories"] = [{"id": 5, "name": "shape"}]  # of one alone it is the only one meant
    assert "category-ids-shifted" in kinds_of(check_dataset([Source("", write(coco))]))


def as_fractions(content):
    """Of images of 40 x 30 px."""
    for one in content["annotations"]:
        one["bbox"] = [number / size for number, size in zip(one["bbox"], 2 * (WIDTH, HEIGHT), strict=True)]
        one["segmentation"] = [
            [number / (WIDTH, HEIGHT)[place % 2] for place, number in enumerate(polygon)]
            for polygon in one["segmentation"]
        ]
        one["area"] = one["bbox"][2] * one["bbox"][3]


def test_coordinates_as_fractions_are_one_finding(coco, write):
    as_fractions(coco)
    (finding,) = check_dataset([Source("", write(coco))]).findings
    assert (finding.kind, finding.severity) == ("coordinates-normalised", "warning")
    assert finding.found.startswith("all boxes and masks of 4 annotations")
    coco["annotations"][0] |= {"bbox": [0.5, 0.5, 0.6, 0.4], "segmentation": [[0.5, 0.5, 1.1, 0.5, 1.1, 0.9, 0.5, 0.9]]}
    kinds = kinds_of(check_dataset([Source("", write(coco))]))  # 1.1 is in no image
    assert "coordinates-normalised" not in kinds and "mask-empty" in kinds


def test_boxes_as_fractions_are_told_where_there_are_no_masks(coco, write):
    as_fractions(coco)
    for one in coco["annotations"]:
        one["segmentation"] = []
    assert kinds_of(check_dataset([Source("", write(coco))])) == {"no-masks", "coordinates-normalised"}
    coco["annotations"] = coco["annotations"][:1]
    assert "coordinates-normalised" not in kinds_of(check_dataset([Source("", write(coco))]))


def test_annotations_without_a_box_are_not_a_file_of_boxes_alone(coco, write):
    for one in coco["annotations"]:
        del one["bbox"], one["segmentation"]
    findings = check_dataset([Source("", write(coco))]).findings
    assert [one.kind for one in findings] == 8 * ["missing-key"]  # box and mask of four


def test_images_of_lvis_have_no_names(coco, write):
    """One finding says so, and not one of each image; a file in which one image alone has no name is another matter."""
    for image in coco["images"]:
        image["coco_url"] = "http://images.cocodataset.org/train2017/" + image.pop("file_name")
    findings = [one for one in check_dataset([Source("", write(coco))]).findings if one.severity == "error"]
    assert [(one.kind, one.image_id, one.field) for one in findings] == [("missing-key", None, "images.file_name")]
    assert "end of the coco_url" in findings[0].fix
    coco["images"][1]["file_name"] = "doctor_2.png"
    findings = [one for one in check_dataset([Source("", write(coco))]).findings if one.severity == "error"]
    assert [(one.kind, one.image_id, one.field) for one in findings] == [("missing-key", 1, "file_name")]


@pytest.mark.parametrize(
    ("content", "program"),
    [
        (b'[{"id": 1, "data": {"image": "a.png"}, "annotations": [{"result": []}]}]', "Label Studio"),
        (b'{"shapes": [{"label": "a", "points": [[1, 2]]}], "imagePath": "a.png", "imageHeight": 6}', "LabelMe"),
        (b'{"a.png12": {"filename": "a.png", "size": 12, "regions": []}}', "VGG Image Annotator"),
        (b'{"_via_img_metadata": {"a.png12": {"filename": "a.png", "regions": {}}}}', "VGG Image Annotator"),
    ],
)
def test_the_form_of_another_program_is_named_with_its_way_to_coco(content, program, tmp_path):
    file = tmp_path / "other.json"
    file.write_bytes(content)
    (finding,) = check_dataset([Source("", file)]).findings
    assert finding.kind == "wrong-form" and program in finding.found and "COCO" in finding.fix


@pytest.mark.parametrize("key", ["info", "images", "annotations", "categories"])
def test_a_key_of_the_file_that_is_there_twice(key, coco, write):
    """The doctor reads the last one, as training does."""
    rest = json.dumps(coco)[1:]
    file = write(b'{ "%s": [{"a": [1]}, {}],"note":"\\"{",\n%s' % (key.encode(), rest.encode()))
    assert [(one.kind, one.field) for one in check_dataset([Source("", file)]).findings] == [("key-twice", key)]
    sound = write(b'{ "note":"\\"{",\n%s' % rest.encode())
    assert not check_dataset([Source("", sound)]).findings


def test_a_file_that_is_not_there(tmp_path):
    assert kinds_of(check_dataset([Source("", tmp_path / "none.json")])) == {"file-unreadable"}


DICTS: dict[str, tuple[Any, str, tuple, bool]] = {
    "class 0 unused": (
        lambda d: [one.update(category_id=one["category_id"] + 1) for image in d for one in image["annotations"]],
        "class-zero-unused", FILE, False),
    "class unused": (
        (0, "annotations", 0, "category_id", 3), "category-unused", FILE, False),
    "box as XYWH": ((0, "annotations", 1, "bbox", [20, 5, 10, 10]), "box-form", (1, "annotations[1]"), True),
    "no mask": ((0, "annotations", 0, "segmentation", None), "mask-absent", (1, "annotations[0]"), False),
    "box missing": ((0, "annotations", 0, "bbox", ...), "missing-key", (1, "annotations[0]"), True),
    "polygon outside": (
        [(0, "annotations", 0, "segmentation", [[30, 5, 50, 5, 50, 15, 30, 15]]),
             (0, "annotations", 0, "bbox", [30, 5, 40, 15])], "polygon-outside", (1, "annotations[0]"), True),
    "NaN that nobody reads": ((0, "annotations", 1, "score", NAN), "not-strict-json", (1, "annotations[1]"), False),
    "image's NaN that nobody reads": ((0, "gps", [NAN]), "not-strict-json", IMAGE, False),
    "image id twice": ((1, "image_id", 1), "image-id-twice", IMAGE, False),
}  # fmt: skip


@pytest.mark.parametrize("case", DICTS)
def test_detectron2_dicts(case, dicts, write, edit):
    change, kind, ids, is_mended = DICTS[case]
    edit(dicts, change)
    file = write(dicts)
    checkup = check_dataset([Source("", file)])
    assert ids in [(one.image_id, one.annotation_id) for one in checkup.findings if one.kind == kind]
    mended = mend(Source("", file), checkup)
    assert (kind not in kinds_of(mended.checkup)) == is_mended
    copy = write(mended.content(), "copy.json")
    assert mend(Source("", copy), check_dataset([Source("", copy)])).content() == copy.read_bytes()


def test_a_sound_file_has_no_finding(coco, dicts, write):
    for content in (coco, dicts):
        checkup = check_dataset([Source("", write(content))], images=True)
        assert checkup.findings == [] and checkup.exit_code == 0


def test_what_is_written(coco, write):
    """The values that the mended copy has, worked out by hand; what is not mended stands as it stood."""
    coco["annotations"][0] |= {"bbox": [5, 5, 15, 15], "note": "kept"}  # XYXY of the square
    coco["annotations"][1] |= {"area": 100, "id": 1}  # the box's; the id of the one before
    # The polygon goes from x 30 to 50; inside of the image 30 to 40, height 10: an area of 100.
    coco["annotations"][2] |= {"segmentation": [[30, 5, 50, 5, 50, 15, 30, 15]], "bbox": [30, 5, 20, 10], "area": 200}
    file = write(coco)
    mended = mend(Source("", file), check_dataset([Source("", file)]))
    first, second, third, fourth = mended.document["annotations"]
    assert fourth == coco["annotations"][3]
    assert first["bbox"] == [5, 5, 10, 10] and first["note"] == "kept"
    assert (second["id"], second["area"]) == (5, 45)  # above the highest, 4
    assert (third["bbox"], third["area"]) == ([30, 5, 10, 10], 100)
    polygon = np.array(third["segmentation"]).reshape(-1, 2)
    assert sorted(map(tuple, polygon.tolist())) == [(30, 5), (30, 15), (40, 5), (40, 15)]
    assert mended.document["info"] == {"year": 2026} and mended.document["images"] == coco["images"]
    assert mended.checkup.findings == []
    assert json.loads(mended.content()) == mended.document


@pytest.mark.parametrize("mask", [[], None, [[5, 5, 15, 15]]])
def test_a_box_without_a_mask_is_kept_for_what_makes_its_mask(mask, coco, write):
    """Nor is a crowd region removed. A polygon of two points is, because it is no mask; its box stays."""
    coco["annotations"][0]["segmentation"] = mask
    coco["annotations"][1] |= {"segmentation": [], "iscrowd": 1}
    file = write(coco)
    result = mend(Source("", file), check_dataset([Source("", file)]))
    coco["annotations"][0]["segmentation"] = mask and []
    assert result.document == coco and result.counts == ({"polygon-short": 1} if mask else {})
    assert [(one.kind, one.annotation_id) for one in result.checkup.findings] == [
        ("mask-absent", 1),
        ("mask-absent", 2),
    ]
    assert "tools/masks_from_boxes.py --keep-existing" in result.checkup.findings[0].fix


def test_of_annotations_that_are_there_twice_copies_alone_are_left_out(coco, write):
    """Keys that the doctor does not know tell annotations apart; their order does not."""
    first = coco["annotations"][0]
    tracked = {**first, "track_id": 4}
    coco["annotations"] += [{**tracked, "id": 5}, {"track_id": 4, **first, "id": 6}, {**first, "id": 7}]
    file = write(coco)
    mended = mend(Source("", file), check_dataset([Source("", file)]))
    assert [one["id"] for one in mended.document["annotations"]] == [1, 2, 3, 4, 5]
    assert mended.counts == {"annotation-twice": 2}
    assert [(one.kind, one.annotation_id) for one in mended.checkup.findings] == [("annotation-twice", 5)]


@pytest.mark.parametrize(
    ("ids", "kept"), [((5, 5, 6, 7), [5, 6, 7]), ((5, 6, 6, 7), [5, 6, 7]), ((5, 5, 5, 7), [5, 8, 7])]
)
def test_no_id_goes_to_a_copy_that_is_left_out(ids, kept, coco, write):
    """Of four annotations the second is a copy of the first; an id that it shares with the third is the third's."""
    first, third, fourth = coco["annotations"][0], *coco["annotations"][2:]
    coco["annotations"] = [
        {**one, "id": identity} for one, identity in zip((first, first, third, fourth), ids, strict=True)
    ]
    file = write(coco)
    mended = mend(Source("", file), check_dataset([Source("", file)]))
    assert [one["id"] for one in mended.document["annotations"]] == kept
    assert mended.counts == {"annotation-twice": 1, **({"annotation-id-twice": 1} if 8 in kept else {})}


def test_findings_of_annotations_with_one_id_are_those_of_each(coco, write):
    """Two of image 1 have id 1: a box of the other form, and one that reaches outside: x from 20 to 45 of 40."""
    coco["annotations"][0]["bbox"] = [5, 5, 15, 15]
    coco["annotations"][1] |= {"id": 1, "bbox": [20, 5, 25, 10]}
    checkup = check_dataset([Source("", file := write(coco))])
    assert [one.kind for one in checkup.findings if one.image_id == 1] == ["box-outside", "box-far", "box-form"]
    mended = mend(Source("", file), checkup)
    assert [one["bbox"] for one in mended.document["annotations"]][:2] == [[5, 5, 10, 10], [20, 5, 20, 10]]


def test_annotations_with_one_box_are_compared_in_time_that_grows_with_them(coco, write):
    """400 triangles with the box that some exporters write, all zeros; pairs of them are 79,800. The last is a twin."""
    coco["annotations"] = [
        {"id": 1 + number, "image_id": 1, "category_id": 1, "bbox": [0, 0, 0, 0], "area": 45, "iscrowd": 0,
         "segmentation": [[20 + number / 1000, 5, 30, 5, 20, 15]]}
        for number in [*range(399), 100]
    ]  # fmt: skip
    coco["annotations"][-1]["id"] = 400
    part = read_part(Source("", write(coco)))
    calls = []
    sys.setprofile(lambda frame, event, arg: calls.append(event))
    try:
        check_ids(part)
    finally:
        sys.setprofile(None)
    (twin,) = (one for one in part.findings if one.kind == "annotation-twice")
    assert twin.annotation_id == 400 and "those of annotation 101" in twin.found
    assert len(calls) < 100 * 400


def test_one_broken_record_hides_no_other(coco, write):
    coco["annotations"][0]["bbox"] = "broken"  # the file is read record by record from here on
    coco["annotations"][1]["area"] = 100
    coco["annotations"][2]["segmentation"] = [[5, 5, 15, 15, 15, 5, 5, 15]]
    coco["annotations"][3]["image_id"] = 77
    checkup = check_dataset([Source("", write(coco))])
    assert {(one.kind, one.annotation_id) for one in checkup.findings} == {
        ("wrong-type", 1), ("area-of-box", 2), ("polygon-crossing", 3), ("area-of-box", 3), ("unknown-image", 4)
    }  # fmt: skip


def many_of(category: int, count: int, coco: dict) -> list[dict]:
    """Squares of one class, each a pixel fraction further to the right, so that no two are the same."""
    return [
        {
            **coco["annotations"][0],
            "id": 10 + number,
            "category_id": category,
            "bbox": [5 + (number + 1) / 1000, 5, 10, 10],
        }
        for number in range(count)
    ]


def test_a_class_with_a_hundredth_of_the_other_s_instances(coco, write):
    """The file has 2 of each class: with 197 squares more they are 199 to 2, with 198 they are 200 to 2."""
    content = {**coco, "annotations": coco["annotations"] + many_of(1, 197, coco)}
    assert kinds_of(check_dataset([Source("", write(content))])) == {"many-instances"}
    content = {**coco, "annotations": coco["annotations"] + many_of(1, 198, coco)}
    found = {one.kind: one for one in check_dataset([Source("", write(content))]).findings}
    assert set(found) == {"many-instances", "class-imbalance"}
    assert "square has 200 instances, 1 of 2 classes" in found["class-imbalance"].found
    assert "(triangle 2)" in found["class-imbalance"].found


def test_an_image_with_more_than_a_hundred_instances(coco, write):
    """Image 1 has 2: with 98 more it has 100, which every default takes; crowd regions do not count."""
    crowd = [{**one, "id": 900 + number, "iscrowd": 1} for number, one in enumerate(many_of(2, 5, coco))]
    content = {**coco, "annotations": coco["annotations"] + many_of(1, 98, coco) + crowd}
    assert check_dataset([Source("", write(content))]).findings == []
    content = {**coco, "annotations": coco["annotations"] + many_of(1, 99, coco)}
    (finding,) = check_dataset([Source("", write(content))]).findings
    assert (finding.kind, finding.image_id, finding.found) == ("many-instances", 1, "101 instances")
    assert "dataloader.train.mapper.max_instances" in finding.fix


@pytest.mark.parametrize(
    ("large", "new"), [(2**63 - 1, [4, 5]), (2**31 - 1, [4, 5]), (2**31 - 5, [2**31 - 4, 2**31 - 3])]
)
def test_new_ids_fit_into_32_bits(coco, write, large, new):
    """Of four annotations with the ids 0, 0, 3 and a large one, which may be the largest there is."""
    for annotation, identity in zip(coco["annotations"], (0, 0, 3, large), strict=True):
        annotation["id"] = identity
    file = write(coco)
    mended = mend(Source("", file), check_dataset([Source("", file)]))
    assert [annotation["id"] for annotation in mended.document["annotations"]] == [*new, 3, large]
