import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from detectron2.data.datasets import load_coco_json
from sam_d2.data import inspect_dataset_file, load_dataset_file
from sam_d2.data.image_root import alike_names
from sam_d2.data.records import domain_name, made_by_model
from sam_d2.doctor.checkup import check_dataset
from sam_d2.doctor.parts import Source
from sam_d2.errors import UserError

EXTRA_KEYS = ["id", "area"]


def reference(file, root, name="for_reference"):
    """What Detectron2 reads from a COCO file, with the keys that sam_d2 keeps beside."""
    from detectron2.data import MetadataCatalog

    dicts = load_coco_json(str(file), str(root), name, extra_annotation_keys=EXTRA_KEYS)
    metadata = MetadataCatalog.get(name)
    classes, contiguous = metadata.thing_classes, metadata.thing_dataset_id_to_contiguous_id
    MetadataCatalog.remove(name)
    return dicts, classes, contiguous


def test_made_coco_file_reads_as_detectron2_reads_it(coco, write):
    file = write(coco)
    dataset = load_dataset_file(file)
    dicts, classes, contiguous = reference(file, file.parent)
    assert dataset.dataset_dicts == dicts
    assert dataset.classes == classes == ["cat", "dog"]
    assert contiguous == {3: 0, 7: 1} and dataset.category_ids == [3, 7]
    assert dataset.format == "coco" and dataset.image_root == file.parent and dataset.findings == []
    # by image id, and within an image in the order of the file
    assert [record["image_id"] for record in dataset.dataset_dicts] == [10, 20]
    assert [item["id"] for item in dataset.dataset_dicts[0]["annotations"]] == [0, 1]
    assert [item["category_id"] for item in dataset.dataset_dicts[0]["annotations"]] == [1, 0]
    assert dataset.dataset_dicts[1]["annotations"][0]["iscrowd"] == 1


@pytest.mark.parametrize("part", ["train2017", "val2017"])
def test_coco_tiny80_reads_as_detectron2_reads_it(real_data, part):
    file = real_data / f"coco_tiny80/annotations/instances_{part}.json"
    root = real_data / f"coco_tiny80/images/{part}"
    dataset = load_dataset_file(file, root)
    dicts, classes, contiguous = reference(file, root)
    assert dataset.dataset_dicts == dicts
    assert dataset.classes == classes and len(classes) == 80
    assert dict(zip(dataset.category_ids, range(80), strict=True)) == contiguous
    assert dataset.findings == []


@pytest.mark.parametrize(
    ("file", "root", "images", "instances"),
    [
        ("iwp/dataset_train.json", None, 129, 6045),
        ("iwp/dataset_test.json", None, 132, 5116),
        ("nuts18/annotations/trainval.json", "nuts18/images", 18, 165),
        ("mushroom_dense/annotations/train.coco.json", "mushroom_dense/images/train", 78, 10335),
        ("dsb2018_nuclei/derived/instances.json", "dsb2018_nuclei/images", 80, 4824),
    ],
)
def test_every_real_dataset_reads_whole(real_data, file, root, images, instances):
    dataset = load_dataset_file(real_data / file, root and real_data / root)
    assert len(dataset.dataset_dicts) == images
    assert sum(len(record["annotations"]) for record in dataset.dataset_dicts) == instances


def test_detectron2_dicts_keep_their_order_and_boxes(dicts, write):
    file = write(dicts)
    dataset = load_dataset_file(file)
    assert dataset.format == "detectron2"
    assert [record["image_id"] for record in dataset.dataset_dicts] == [5, 4]
    assert dataset.dataset_dicts[0]["file_name"] == str(file.parent / "sam_d2_test_b.png")
    assert dataset.dataset_dicts[0]["annotations"] == [
        {"bbox": [1, 1, 3, 4], "bbox_mode": 0, "category_id": 1, "iscrowd": 0,
         "segmentation": [[1, 1, 3, 1, 3, 4, 1, 4]]}
    ]  # fmt: skip
    # class index 1 is the highest: two classes, which the file does not name
    assert dataset.classes == ["class_0", "class_1"] and dataset.category_ids == [0, 1]
    named = load_dataset_file(file, classes=["low", "high", "unused"])
    assert named.classes == ["low", "high", "unused"] and named.category_ids == [0, 1, 2]


def test_detectron2_dicts_take_string_ids(dicts, write):
    dicts[0]["image_id"] = "tile_b"
    assert load_dataset_file(write(dicts)).dataset_dicts[0]["image_id"] == "tile_b"


@pytest.mark.parametrize(
    ("form", "classes", "message"),
    [
        ("dicts", ["low"], r"category_id 1 is in use, which needs 2 names, but \['low'\] are given"),
        ("coco", ["dog", "cat"], r"the file has \['cat', 'dog'\], but \['dog', 'cat'\] are asked for"),
    ],
)
def test_class_names_must_fit(form, classes, message, coco, dicts, write):
    with pytest.raises(UserError, match=message):
        load_dataset_file(write(coco if form == "coco" else dicts), classes=classes)


@pytest.mark.parametrize("form", ["coco", "dicts"])
def test_domain_and_provenance_are_carried_along(form, coco, dicts, write):
    content = {"coco": coco, "dicts": dicts}[form]
    image = content["images"][0] if form == "coco" else content[0]
    annotation = content["annotations"][0] if form == "coco" else content[0]["annotations"][0]
    image["domain"] = "sketch"
    annotation["provenance"] = {"model": "sam", "score": 0.9}
    records = load_dataset_file(write(content)).dataset_dicts
    assert sorted(record.get("domain", "") for record in records) == ["", "sketch"]
    found = [item.get("provenance") for record in records for item in record["annotations"]]
    assert [one for one in found if one is not None] == [{"model": "sam", "score": 0.9}]


@pytest.mark.parametrize("form", ["coco", "dicts"])
def test_a_domain_and_a_provenance_that_mean_something_else_are_ignored(form, coco, dicts, write):
    """Other programs may have such keys too: no training stops on them."""
    content = {"coco": coco, "dicts": dicts}[form]
    images = content["images"] if form == "coco" else content
    annotations = content["annotations"] if form == "coco" else content[0]["annotations"]
    for image in images:
        image["domain"] = {"id": 4}
    annotations[0]["provenance"] = "crowdsourced"
    dataset = load_dataset_file(write(content))
    warnings = [(one.severity, one.kind, one.field, one.found) for one in dataset.findings]
    domain = ("warning", "foreign-value", "domain", "{'id': 4}")
    assert sorted(warnings) == [domain, domain, ("warning", "foreign-value", "provenance", "'crowdsourced'")]
    assert not any("domain" in record for record in dataset.dataset_dicts)
    assert not any("provenance" in item for record in dataset.dataset_dicts for item in record["annotations"])


@pytest.mark.parametrize(
    ("domain", "name"),
    [("sketch", "sketch"), (3, "3"), (2.0, "2"), (0.25, "0.25"), (0, "0"), ("", None), (None, None), (True, None),
     (["sketch"], None), (float("nan"), None), (float("inf"), None), ("half \ud83d", None)],
)  # fmt: skip
def test_a_number_is_taken_as_the_name_of_a_domain(domain, name):
    assert domain_name(domain) == name


def test_only_an_object_with_a_model_is_a_provenance():
    made = [made_by_model(one) for one in ({"model": "sam"}, {"annotator": 7}, "sam", ["model"], 1, None)]
    assert made == [True] + 5 * [False]


def test_byte_order_mark_is_accepted(coco, write):
    file = write(coco)
    expected = load_dataset_file(file).dataset_dicts
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(coco).encode())
    assert load_dataset_file(file).dataset_dicts == expected


def test_reading_record_by_record_gives_the_same(coco, dicts, write):
    for content in (coco, dicts):
        expected = load_dataset_file(write(content)).dataset_dicts
        (content if isinstance(content, dict) else content[0])["comment"] = float("nan")  # msgspec refuses it
        assert load_dataset_file(write(content)).dataset_dicts == expected


def test_empty_segmentation_is_left_out_and_counted(coco, write, caplog, tmp_path):
    coco["annotations"][0]["segmentation"] = []
    coco["annotations"][1]["segmentation"] = None
    coco["annotations"][2]["segmentation"] = [[1, 1, 2, 2], *coco["annotations"][2]["segmentation"]]
    dataset = load_dataset_file(write(coco))
    assert [[item["id"] for item in record["annotations"]] for record in dataset.dataset_dicts] == [[1], []]
    assert dataset.dataset_dicts[0]["annotations"][0]["segmentation"] == [[1, 1, 3, 1, 3, 4, 1, 4]]
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"{tmp_path}/dataset.json: 2 warnings, an annotation has no mask; first: image 10, annotation 0, segmentation: "
        "empty; the annotation is left out; tools/masks_from_boxes.py --keep-existing makes masks of boxes, "
        "not of crowd regions",
        f"{tmp_path}/dataset.json: 1 warning, a polygon has fewer than 3 points; image 10, annotation 1, segmentation: "
        "polygon 0 has 2 points; polygons of under 3 points are left out",
    ]


@pytest.mark.parametrize("box", [[1, 1, 0, 3], [3, 4, -2, -3]])
def test_box_without_area_is_replaced_by_the_bounds_of_the_mask(box, coco, write):
    coco["annotations"][0]["bbox"] = box
    coco["annotations"][1]["bbox"] = box
    first, second = (record["annotations"][0] for record in load_dataset_file(write(coco)).dataset_dicts)
    assert (first["bbox"], first["bbox_mode"]) == ([1, 1, 3, 4], 0)
    # runs go down the columns of 8 rows: pixels 10..13 are column 1, rows 2..5, edges x 1..2, y 2..6
    assert (second["bbox"], second["bbox_mode"]) == ([1, 2, 2, 6], 0)


def test_images_are_searched_for_upwards(dicts, write):
    dicts[0]["file_name"], dicts[1]["file_name"] = "project/sam_d2_test_b.png", "project/sub/../sam_d2_test_a.png"
    file = write(dicts, "project/deep/er/dataset.json", images="../..")
    (file.parents[2] / "sub").mkdir()
    dataset = load_dataset_file(file)
    assert dataset.image_root == file.parents[3]
    assert dataset.dataset_dicts[0]["file_name"] == str(file.parents[2] / "sam_d2_test_b.png")


@pytest.mark.parametrize("folder", ["images/val2017", "val2017", "images"])
def test_beside_the_folder_of_annotations_images_lie_as_in_coco(folder, coco, write, tmp_path):
    file = write(coco, "annotations/instances_val2017.json", images=f"../{folder}")
    assert load_dataset_file(file).image_root == tmp_path / folder
    elsewhere = write(coco, "labels/instances_val2017.json", images=f"../{folder}")
    with pytest.raises(UserError, match="none of its 2 images was found"):
        load_dataset_file(elsewhere)


@pytest.mark.parametrize("folder", ["images/valid", "valid"])
def test_the_word_of_a_split_may_be_followed_by_others(folder, coco, write, tmp_path):
    assert (
        load_dataset_file(write(coco, "annotations/valid.coco.json", images=f"../{folder}")).image_root
        == tmp_path / folder
    )


def test_names_that_begin_with_folders_that_were_left_behind(coco, write, tmp_path):
    file = write(coco, "mine/data.json", images="train")
    for image in coco["images"]:
        image["file_name"] = f"data/iwp/train/{image['file_name']}"
    file.write_text(json.dumps(coco))
    lies = (
        rf"'sam_d2_test_a\.png' lies in {tmp_path / 'mine' / 'train'}, but the names begin with 'data/iwp/train/': take"
    )
    with pytest.raises(UserError, match=lies) as error:
        load_dataset_file(file, tmp_path / "mine" / "train")
    assert "move that folder to a place that ends in data/iwp/train" in str(error.value)
    with pytest.raises(UserError, match="name the folder that these names are relative to"):
        load_dataset_file(file)  # which is not looked in


def test_given_image_root_comes_first_and_working_directory_is_searched(coco, write, tmp_path, monkeypatch):
    file = write(coco, "json/dataset.json", images="../pictures")
    assert load_dataset_file(file, tmp_path / "pictures").image_root == tmp_path / "pictures"
    assert load_dataset_file(file, [tmp_path / "none", "pictures", tmp_path / "pictures"]).image_root
    with pytest.raises(
        UserError, match=r"none of its 2 images was found: 'sam_d2_test_a.png', 'sam_d2_test_b.png'; name the folder"
    ):
        load_dataset_file(file)
    monkeypatch.chdir(tmp_path / "pictures")
    assert load_dataset_file(file).image_root == tmp_path / "pictures"


def test_a_few_missing_images_are_named_and_a_folder_is_not_asked_for(coco, write):
    file = write(coco)
    (file.parent / "sam_d2_test_a.png").unlink()
    with pytest.raises(
        UserError, match=r"1 of 2 images are missing under .*: 'sam_d2_test_a.png'; restore these files"
    ) as error:
        load_dataset_file(file, file.parent / "nowhere")
    assert "Looked in" not in str(error.value) and "--train-images" not in str(error.value)


def test_a_wrong_folder_is_asked_for_with_all_that_were_looked_in(coco, write):
    file = write(coco, images="elsewhere")
    with pytest.raises(UserError, match=r"none of its 2 images was found: .*--train-images.*Looked in: ") as error:
        load_dataset_file(file, file.parent / "nowhere")
    assert f"{file.parent / 'nowhere'} (no such folder), {file.parent}, {Path.cwd()}" in str(error.value)
    assert "restore" not in str(error.value)


def test_where_most_are_missing_it_may_be_either(coco, write):
    coco["images"].append({"id": 30, "file_name": "c.png", "height": 8, "width": 6})
    (file := write(coco)).with_name("sam_d2_test_a.png").unlink()  # 2 of 3 are missing
    with pytest.raises(
        UserError, match=r"2 of 3 images are missing under .* restore .*; or name the folder .*Looked in"
    ):
        load_dataset_file(file)


@pytest.mark.parametrize(
    ("name", "there", "said"),
    [
        ("Test_B.PNG", "test_b.png", "'Test_B.PNG', but there is 'test_b.png'"),
        ("Images/b.png", "images/b.png", "'Images/b.png', but there is 'images/b.png'"),
        # a u with dots, as one character and as two, which a terminal shows alike
        ("Z\u00fcrich.png", "Zu\u0308rich.png", r"'Z\xfcrich.png', but there is 'Zu\u0308rich.png'"),
    ],
)
@pytest.mark.parametrize("images", [1, 2])
def test_a_name_that_differs_in_case_or_accents_alone_is_said(name, there, said, images, coco, write, tmp_path):
    coco["images"][0]["file_name"] = name
    coco["images"] = coco["images"][:images]  # of one all are missing, of two half
    coco["annotations"] = [item for item in coco["annotations"] if images == 2 or item["image_id"] == 20]
    file = write(coco)
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).touch()
    (finding,) = [one for one in inspect_dataset_file(file).findings if one.severity == "error"]
    assert finding.found == f"1 of {images} images are missing under {tmp_path}: {said}"
    assert finding.fix.startswith("write the names as the files have them")
    if images == 2:
        (finding,) = [one for one in check_dataset([Source("", file)]).findings if one.severity == "error"]
        assert (finding.kind, finding.image_id) == ("image-missing", 20) and said.split(", but there is ")[
            1
        ] in finding.found


def test_alike_names(tmp_path):
    for name in ("a/x.png", "A/X.png", "b/y.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    names = ["folder.png", "A/x.PNG", "B/Y.png", "b/z.png", "../b/Y.png", "b/y.png/z", "", "/", f"{tmp_path}/B/y.png"]
    assert alike_names(tmp_path, names) == {"B/Y.png": "b/y.png"}  # of the first there are two


@pytest.mark.parametrize("name", ["../sam_d2_outside.png", "sub/../../sam_d2_outside.png", "{outside}"])
def test_paths_must_stay_inside_the_image_root(name, coco, write, tmp_path):
    file = write(coco, "inside/dataset.json")
    (tmp_path / "sam_d2_outside.png").touch()
    coco["images"][0]["file_name"] = name.format(outside=tmp_path / "sam_d2_outside.png")
    file.write_text(json.dumps(coco))
    with pytest.raises(UserError, match=r"image 20, file_name: .*sam_d2_outside.png' leads out of the image folder"):
        load_dataset_file(file, tmp_path / "inside")


def test_absolute_paths_and_links_inside_the_image_root_are_fine(coco, write, tmp_path):
    file = write(coco, "inside/dataset.json")
    (tmp_path / "elsewhere.png").touch()
    (tmp_path / "inside/link.png").symlink_to(tmp_path / "elsewhere.png")
    coco["images"][0]["file_name"] = "link.png"
    coco["images"][1]["file_name"] = str(tmp_path / "inside/sam_d2_test_a.png")
    file.write_text(json.dumps(coco))
    names = [record["file_name"] for record in load_dataset_file(file).dataset_dicts]
    assert names == [str(tmp_path / "inside/sam_d2_test_a.png"), str(tmp_path / "inside/link.png")]


def test_the_package_does_not_import_torch():
    checkout = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "SAM_D2_DETECTRON2": "embedded", "PYTHONPATH": checkout}
    code = "import sys, sam_d2.data; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (result.stdout, result.stderr) == ("False\n", "")
