import json
import random

import numpy as np
import pytest
from pycocotools import mask as mask_util

from sam_d2.data import inspect_dataset_file, load_dataset_file
from sam_d2.data.rle import compressed_totals, decoded_runs
from sam_d2.errors import UserError

NAN = float("nan")
INFINITY = float("inf")


def again(key, **fields):
    """A change that adds a copy of the last record of a list, with these fields."""
    return lambda content: content[key].append(content[key][-1] | fields)


def compressed(mask):
    rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


ANNOTATION = ("annotations", 0)  # annotation 0 of image 10, a polygon
CROWD = ("annotations", 1)  # annotation 2 of image 20, an RLE
IMAGE = ("images", 0)  # image 20
CATEGORY = ("categories", 0)
# change, image id, annotation id, field, a part of what is found
COCO_ERRORS = {
    "key missing in image": ((*IMAGE, "height", ...), 20, None, "height", "missing key"),
    "id missing in image": ((*IMAGE, "id", ...), "images[0]", None, "id", "missing key"),
    "key missing in annotation": ((*ANNOTATION, "bbox", ...), 10, 0, "bbox", "missing key"),
    "segmentation missing": ((*ANNOTATION, "segmentation", ...), 10, 0, "segmentation", "missing key"),
    "id missing in annotation": ((*ANNOTATION, "id", ...), 10, "annotations[0]", "id", "missing key"),
    "key missing in category": ((*CATEGORY, "name", ...), None, None, "categories[0].name", "missing key"),
    "list missing": (("annotations", ...), None, None, "annotations", "missing key"),
    "list of wrong type": (("images", {}), None, None, "images", "a JSON object"),
    "record of wrong type": ((*ANNOTATION, 5), None, "annotations[0]", "record", "a JSON number"),
    "id of wrong type": ((*IMAGE, "id", "20"), "20", None, "id", "Expected `int`, got `str`"),
    "id above 64 bits": (
        (*ANNOTATION, "id", 2**70), 10, 2**70, "id", "Expected `int` <= 9223372036854775807"),
    "file name of wrong type": ((*IMAGE, "file_name", 7), 20, None, "file_name", "7 (Expected `str`"),
    "file name empty": ((*IMAGE, "file_name", ""), 20, None, "file_name", "length >= 1"),
    "size not positive": ((*IMAGE, "width", 0), 20, None, "width", "0 (Expected `int` >= 1)"),
    "size of wrong type": ((*IMAGE, "width", 6.5), 20, None, "width", "6.5 (Expected `int`, got `float`)"),
    "size as text": ((*IMAGE, "width", "6"), 20, None, "width", "'6' (Expected `int`, got `str`)"),
    "crowd flag": ((*ANNOTATION, "iscrowd", 2), 10, 0, "iscrowd", "2 (Invalid"),
    "category name of wrong type": ((*CATEGORY, "name", None), None, None, "categories[0].name", "None"),
    "image id twice": (again("images", id=10), 10, None, "id", "2 images have it"),
    "annotation id twice": (again("annotations", id=1), None, 1, "id", "2 annotations have it"),
    "category id twice": (again("categories", id=3), None, None, "categories.id", "2 categories have id 3"),
    "no images": (("images", []), None, None, "images", "none"),
    "no categories": (("categories", []), None, None, "categories", "none"),
    "unknown image": (
        (*ANNOTATION, "image_id", 99), 99, 0, "image_id", "99 is not among the file's images"),
    "reference of wrong type": ((*ANNOTATION, "image_id", "10"), "10", 0, "image_id", "got `str`"),
    "category of wrong type": ((*ANNOTATION, "category_id", None), 10, 0, "category_id", "got `null`"),
    "unknown category": ((*ANNOTATION, "category_id", 4), 10, 0, "category_id", "4 is not among"),
    "box of three numbers": ((*ANNOTATION, "bbox", [1, 1, 2]), 10, 0, "bbox", "length >= 4"),
    "box of five numbers": ((*ANNOTATION, "bbox", [1, 1, 2, 3, 4]), 10, 0, "bbox", "length <= 4"),
    "box with text": ((*ANNOTATION, "bbox", [1, 1, "2", 3]), 10, 0, "bbox", "got `str` - at `$[2]`"),
    "box with NaN": ((*ANNOTATION, "bbox", [1, NAN, 2, 3]), 10, 0, "bbox", "NaN or infinity"),
    "box with infinity": ((*ANNOTATION, "bbox", [1, 1, INFINITY, 3]), 10, 0, "bbox", "NaN or infinity"),
    "polygon not nested": (
        (*ANNOTATION, "segmentation", [1, 1, 3, 1, 3, 4]), 10, 0, "segmentation",
        "Expected `array`, got `int`"),
    "polygon with odd count": (
        (*ANNOTATION, "segmentation", 0, [1, 1, 3, 1, 3, 4, 1]), 10, 0, "segmentation",
        "polygon 0 has 7 numbers"),
    "polygon with NaN": (
        (*ANNOTATION, "segmentation", 0, 3, NAN), 10, 0, "segmentation", "a polygon has NaN or infinity"),
    "polygon of another planet": (
        (*ANNOTATION, "segmentation", 0, 3, 1e30), 10, 0, "segmentation", "polygons reach over"),
    "outline of a small country": (
        (*ANNOTATION, "segmentation", [[0, 0, 500001, 0, 500001, 1]]), 10, 0, "segmentation",
        "its outlines are 1,000,003 px long, in an image of "),
    "polygon with null": ((*ANNOTATION, "segmentation", 0, 3, None), 10, 0, "segmentation", "got `null`"),
    "RLE without size": (
        (*CROWD, "segmentation", "size", ...), 20, 2, "segmentation", "missing required field `size`"),
    "RLE of another size": (
        (*CROWD, "segmentation", "size", [6, 8]), 20, 2, "segmentation.size", "image is [8, 6]"),
    "RLE with three sizes": (
        (*CROWD, "segmentation", "size", [8, 6, 1]), 20, 2, "segmentation", "length <= 2"),
    "RLE that does not sum": (
        (*CROWD, "segmentation", "counts", [10, 4, 33]), 20, 2, "segmentation.counts",
        "sum to 47, size [8, 6] needs 48"),
    "RLE with negative run": (
        (*CROWD, "segmentation", "counts", [10, -4, 42]), 20, 2, "segmentation", ">= 0"),
    "RLE with fraction": (
        (*CROWD, "segmentation", "counts", [10.5, 37.5]), 20, 2, "segmentation", "got `float`"),
    "RLE string that is none": (
        (*CROWD, "segmentation", "counts", "no such thing"), 20, 2, "segmentation.counts",
        "is not a compressed"),
    "RLE string cut off": (  # two runs of 5 bits each, the second with no end
        (*CROWD, "segmentation", "counts", "1P"), 20, 2, "segmentation.counts", "is not a compressed"),
    "RLE string of another size": (
        (*CROWD, "segmentation", compressed(np.ones((5, 5))) | {"size": [8, 6]}), 20, 2,
        "segmentation.counts", "sum to 25"),
    "area NaN": ((*ANNOTATION, "area", NAN), 10, 0, "area", "nan"),
    "area as text": ((*ANNOTATION, "area", "6"), 10, 0, "area", "'6'"),
}  # fmt: skip


@pytest.mark.parametrize("case", COCO_ERRORS)
def test_each_error_of_a_coco_file_is_found_alone(case, coco, write, edit):
    change, image_id, annotation_id, field, found = COCO_ERRORS[case]
    edit(coco, change)
    dataset = inspect_dataset_file(write(coco))
    errors = [finding for finding in dataset.findings if finding.severity == "error"]
    assert [(error.image_id, error.annotation_id, error.field) for error in errors] == [
        (image_id, annotation_id, field)
    ]
    assert found in errors[0].found
    assert errors[0].fix
    assert dataset.dataset_dicts == []


ENTRY = (0, "annotations", 0)
DICTS_ERRORS = {
    "key missing in image": ((0, "file_name", ...), 5, None, "file_name", "missing key"),
    "id missing": ((0, "image_id", ...), "[0]", None, "image_id", "missing key"),
    "annotations missing": ((0, "annotations", ...), 5, None, "annotations", "missing key"),
    "annotations of wrong type": ((0, "annotations", "none"), 5, None, "annotations", "Expected `array`"),
    "annotation of wrong type": ((0, "annotations", 0, []), 5, "annotations[0]", "record", "a JSON array"),
    "mode missing": ((*ENTRY, "bbox_mode", ...), 5, "annotations[0]", "bbox_mode", "missing key"),
    "mode unknown": ((*ENTRY, "bbox_mode", 4), 5, "annotations[0]", "bbox_mode", "4 (Invalid"),
    "negative class": ((*ENTRY, "category_id", -1), 5, "annotations[0]", "category_id", "-1 (Expected `int` >= 0"),
    "huge class": ((*ENTRY, "category_id", 2**40), 5, "annotations[0]", "category_id", "<= 65535"),
    "named annotation": (
        lambda content: content[0]["annotations"][0].update(id=33, bbox=None), 5, 33, "bbox", "None"),
    "image id twice": ((1, "image_id", 5), 5, None, "id", "2 images have it"),
    "record of wrong type": ((1, None), "[1]", None, "record", "a JSON null"),
    "box with NaN": ((*ENTRY, "bbox", [NAN, 1, 3, 4]), 5, "annotations[0]", "bbox", "NaN"),
}  # fmt: skip


@pytest.mark.parametrize("case", DICTS_ERRORS)
def test_each_error_of_detectron2_dicts_is_found_alone(case, dicts, write, edit):
    change, image_id, annotation_id, field, found = DICTS_ERRORS[case]
    edit(dicts, change)
    errors = [item for item in inspect_dataset_file(write(dicts)).findings if item.severity == "error"]
    assert [(error.image_id, error.annotation_id, error.field) for error in errors] == [
        (image_id, annotation_id, field)
    ]
    assert found in errors[0].found


WARNINGS = {
    "box without width": ((*ANNOTATION, "bbox", [1, 1, 0, 3]), "bbox", "the bounds of the mask are used"),
    "box of negative size": (
        (*ANNOTATION, "bbox", [3, 4, -2, -3]), "bbox", "the bounds of the mask are used"),
    "box outside": (
        (*ANNOTATION, "bbox", [-1.5, 1, 4.5, 3]), "bbox", "what lies outside the image is clipped"),
    "polygon outside": (
        (*ANNOTATION, "segmentation", [[1, 1, 3, 1, 3, 4, 1, 4], [-3, 1, 1, 1, 1, 3]]), "segmentation",
        "what lies outside the image is clipped"),
    "box far from its mask": (
        (*ANNOTATION, "bbox", [4, 5, 2, 3]), "bbox", "the box is used as it is"),
    # the box of 2 x 3 px has the point as its corner: each grown by 1 px, the IoU is 4 / 20
    "mask without area": (
        (*ANNOTATION, "segmentation", [[1, 1, 1, 1, 1, 1]]), "segmentation", "the box is used as it is"),
    "polygon of two points": (
        (*ANNOTATION, "segmentation", [[1, 1, 3, 1, 3, 4, 1, 4], [1, 1, 2, 2]]), "segmentation",
        "polygons of under 3 points are left out"),
    "empty segmentation": (
        (*ANNOTATION, "segmentation", []), "segmentation", "the annotation is left out"),
    "negative area": ((*ANNOTATION, "area", -6), "area", "the mask's area is used"),
    "name of a category twice": (
        (*CATEGORY, "name", "cat"), "categories.name", "they stay separate classes"),
}  # fmt: skip


@pytest.mark.parametrize("case", WARNINGS)
def test_what_can_be_used_is_a_warning(case, coco, write, edit):
    change, field, fix = WARNINGS[case]
    edit(coco, change)
    dataset = load_dataset_file(write(coco))
    assert [(item.severity, item.field) for item in dataset.findings] == [("warning", field)]
    assert dataset.findings[0].fix.startswith(fix)
    assert len(dataset.dataset_dicts) == 2


@pytest.mark.parametrize(
    ("box", "ending"),
    [
        # of the polygon's corners 20, 20 and 30, 35; as XYWH it ends at 50, 55
        ([20, 20, 30, 35], "as it is; as XYXY it fits: --fix of tools/check_dataset.py writes XYWH"),
        ([25, 30, 30, 35], "as it is"),  # as XYXY 5 x 5 of the 10 x 15 px
    ],
)
def test_a_box_that_fits_its_mask_as_xyxy_is_said_to(box, ending, coco, write):
    coco["images"][1] |= {"width": 60, "height": 80}  # the one that is named first in the annotations
    coco["annotations"] = coco["annotations"][:1]
    coco["annotations"][0] |= {"bbox": box, "segmentation": [[20, 20, 30, 20, 30, 35, 20, 35]]}
    assert [item.fix for item in load_dataset_file(write(coco)).findings] == [f"the box is used {ending}"]


def test_neither_box_nor_mask_with_area_stays_with_a_warning(coco, write):
    coco["annotations"][0] |= {"bbox": [2, 2, 0, 0], "segmentation": [[2, 2, 2, 2, 2, 2]]}
    dataset = load_dataset_file(write(coco))
    assert [item.fix for item in dataset.findings] == ["nothing can be learned from it"]
    assert dataset.dataset_dicts[0]["annotations"][0]["bbox"] == [2, 2, 0, 0]


def test_a_rounding_of_one_pixel_is_no_warning(coco, write):
    coco["annotations"][0] |= {"bbox": [0, 1, 6.9, 3], "segmentation": [[-0.9, 1, 6.9, 1, 6.9, 4, -0.9, 4]]}
    assert load_dataset_file(write(coco)).findings == []


def test_all_problems_are_reported_at_once(coco, write, edit):
    edit(coco, (*IMAGE, "width", 0))  # found while reading
    edit(coco, (*ANNOTATION, "bbox", "none"))
    edit(coco, (*ANNOTATION, "category_id", 99))  # found by the checks, in the same record
    edit(coco, ("annotations", 2, "segmentation", [[1, 1, 2, 2, 3]]))
    edit(coco, (*CATEGORY, "name", 5))
    (file := write(coco)).with_name("sam_d2_test_a.png").unlink()
    with pytest.raises(UserError) as error:
        load_dataset_file(file)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{file}: 6 errors:"
    for place in ("image 20, width: 0 ", "image 10, annotation 0, bbox: 'none' ", "categories[0].name: 5 ",
                  "image 10, annotation 0, category_id: 99 ", "image 10, annotation 1, segmentation: polygon 0 has 5 ",
                  "file_name: 1 of 2 images are missing"):  # fmt: skip
        assert sum(line.startswith(f"  {place}") for line in lines) == 1, place


def test_a_record_without_usable_ids_is_still_checked_and_named(coco, dicts, write):
    coco["annotations"][0] |= {"id": "x", "image_id": "y", "bbox": [NAN, 1, 2, 3]}
    dicts[0] |= {"image_id": None}
    dicts[0]["annotations"][0] |= {"id": 1.5, "bbox": [NAN, 1, 2, 3]}
    for content in (coco, dicts):
        findings = inspect_dataset_file(write(content)).findings
        assert len(findings) == 3
        assert "NaN or infinity" in findings[2].found
        assert "UNSET" not in "".join(finding.describe() for finding in findings)


def test_the_first_twenty_errors_are_listed_with_the_count(coco, write):
    coco["annotations"] = [coco["annotations"][0] | {"id": i, "category_id": 100 + i} for i in range(34)]
    with pytest.raises(UserError, match="34 errors, the first:") as error:
        load_dataset_file(write(coco))
    assert str(error.value).count("is not among the file's categories") == 20
    assert "... and 14 more errors (34 in all)" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "file: it is empty"),
        (b" \n ", "file: it is empty"),
        (b"hello", r"JSON: Expecting value at line 1, column 1 \(byte 0 of 5\); correct the JSON there"),
        (b'{"images": [\n{"id": 1 "x": 2}]}', r"JSON: .* at line 2, column 10 \(byte 22 of 31\)"),
        (b'{"images": [\n{"id": 1}', r"JSON: the file is cut off: .* line 2, column 10 \(byte 22 of 22\)"),
        (b'{"images": [\n{"file_name": "a.p', r"the file is cut off: a value begun at line 2, column 15"),
        (b'{"images": "\xe9t\xe9"}', r"encoding: byte 12 \(line 1\) is not UTF-8; save the file as UTF-8"),
        ('{"images": []}'.encode("utf-16"), r"encoding: byte 0 \(line 1\) is not UTF-8"),
        (b'"text"', "top level: a JSON string; expected a COCO file"),
        (b"12", "top level: a JSON number"),
        (b"null", "top level: a JSON null"),
        (b"[" * 100_000, "JSON: lists or objects nested too deeply"),
        (b"[" + b"1" * 5000 + b"]", "Exceeds the limit"),
        (b'[{"image_id": 1, "category_id": 1, "score": 0.5}]', "a list of COCO results"),
        (b"{}", "3 errors:\n  images: missing key"),
        (b"[]", "images: none; the file must hold at least one image"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_says_why(content, message, tmp_path):
    file = tmp_path / "bad.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load_dataset_file(file)
    assert str(error.value).startswith(str(file))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: 1 error:\n  file: No such file or directory"):
        load_dataset_file(tmp_path / "none.json")
    with pytest.raises(UserError, match="it is a folder; name the JSON file in it"):
        load_dataset_file(tmp_path)


@pytest.mark.parametrize("name", ["zero\0byte.png", "\ud800.png", "no/such/folder.png", "x" * 5000])
def test_names_that_no_file_system_has_are_missing_images(name, coco, tmp_path):
    coco["images"][0]["file_name"] = name
    (tmp_path / "dataset.json").write_text(json.dumps(coco))
    with pytest.raises(UserError, match="none of its 2 images was found"):
        load_dataset_file(tmp_path / "dataset.json")


def read_runs(text):
    """One string at a time, written from the format's description: the reference for `compressed_totals`."""
    runs, place = [], 0
    while place < len(text):
        value, shift, more = 0, 0, True
        while more:
            if place >= len(text) or shift >= 35:
                return None
            group = ord(text[place]) - 48
            if not 0 <= group < 64:
                return None
            value |= (group & 31) << shift
            shift += 5
            more = bool(group & 32)
            place += 1
        if group & 16:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if not 0 <= value < 2**32:
            runs.append(value)
            return None
        runs.append(value)
    return runs


def test_compressed_totals_of_real_masks_and_of_noise():
    generator = np.random.default_rng(0)
    masks = [generator.random((h, w)) < p for h, w in ((1, 1), (7, 5), (40, 30)) for p in (0, 0.05, 0.5, 1)]
    masks += [np.pad(np.ones((300, 200)), 400)]  # runs above 2**9 need several groups
    strings = [compressed(mask)["counts"] for mask in masks]
    assert compressed_totals(strings).tolist() == [mask.size for mask in masks]
    chooser = random.Random(0)
    noise = ["".join(chr(chooser.randrange(40, 115)) for _ in range(chooser.randrange(12))) for _ in range(3000)]
    noise += ["".join(chooser.choice("0123456789:;<=>?PQ") for _ in range(chooser.randrange(12))) for _ in range(3000)]
    noise += ["PPPPPPP0", "PPPPPP0"]  # a zero of 8 groups, more than 32 bits need, and one of 7
    noise += ["", "é", "\u0130", *strings]
    expected = [-1 if runs is None else sum(runs) for runs in map(read_runs, noise)]
    assert compressed_totals(noise).tolist() == expected
    assert 500 < sum(total >= 0 for total in expected) < 5500  # both kinds occur


def test_decoded_runs_of_masks():
    generator = np.random.default_rng(1)
    masks = [generator.random((h, w)) < p for h, w in ((1, 1), (7, 5), (40, 30)) for p in (0, 0.05, 0.5, 1)]
    masks += [np.pad(np.ones((300, 200)), 400)]
    strings = [compressed(mask)["counts"] for mask in masks]
    runs, places = decoded_runs([text.encode() for text in strings])
    assert runs.tolist() == [run for text in strings for run in read_runs(text)]
    assert places.tolist() == [place for text in strings for place in range(len(read_runs(text)))]
    assert [len(found) for found in decoded_runs([])] == [0, 0]


@pytest.mark.parametrize(("points", "kinds"), [(4000, set()), (4002, {"polygon-long"})])
def test_an_outline_may_come_by_each_pixel_of_its_image_four_times(points, kinds, coco, write):
    """Sides of 1,000 px to and fro in 1000 x 1000 px, the last one back to the first point."""
    coco["images"][0].update(width=1000, height=1000)
    zigzag = [number for point in range(points) for number in (1000 * (point % 2), point / 5)]
    box = [0, 0, 1000, points / 5 - 0.2]  # fits, so that nothing but the outline is odd
    coco["annotations"] = [{**coco["annotations"][0], "image_id": 20, "bbox": box, "segmentation": [zigzag]}]
    found = inspect_dataset_file(write(coco)).findings
    assert {one.kind for one in found if one.severity == "error"} == kinds


@pytest.mark.parametrize(("right", "kinds"), [(1e6, set()), (1e6 + 1, {"polygon-far"})])
def test_a_polygon_inside_its_image_may_be_a_million_pixels_away(right, kinds, coco, write):
    coco["images"][0].update(width=2**31 - 1, height=60)
    x = right - 20
    polygon = {"bbox": [x, 5, 20, 20], "segmentation": [[x, 5, right, 5, right, 25, x, 25]]}
    coco["annotations"] = [{**coco["annotations"][0], "image_id": 20, **polygon}]
    assert {one.kind for one in inspect_dataset_file(write(coco)).findings} == kinds


FAR = [0, 0, 5, 0, 5, 99_000]  # 5 px, and twice 99,000


@pytest.mark.parametrize(
    ("polygons", "annotations", "kinds"),
    [
        ([FAR] * 5, 1, {"polygon-outside"}),  # 990,025 px
        ([FAR] * 6, 1, {"polygon-long"}),  # 1,188,030 px
        ([[x / 2, 0, x / 2 + 1, 0, x / 2, 1] for x in range(5_000)], 1, {"polygon-outside"}),  # 3 px each
        ([[0, 0, 50, 0, 50, 300_000, 0, 50]], 16, {"polygon-outside"}),  # each 600,050 px, of which 4 x 100 have room
        ([[0, 0, 50, 0, 50, 300_000, 0, 50]], 17, {"polygon-long"}),  # 10,194,050 px more than have room
        ([[0, 0, 50, 0, 50, 50_000, 0, 50]], 200, {"polygon-outside"}),  # each 99,650 px more
    ],
)
def test_outlines_are_limited_by_annotation_and_far_ones_by_file(polygons, annotations, kinds, coco, write):
    coco["images"][0].update(width=100, height=100)
    one = {**coco["annotations"][0], "image_id": 20, "segmentation": polygons}
    coco["annotations"] = [{**one, "id": 10 + place} for place in range(annotations)]
    findings = [found for found in inspect_dataset_file(write(coco)).findings if found.field == "segmentation"]
    assert {found.kind for found in findings} == kinds and len(findings) == annotations
