"""The tables of a file of boxes: what becomes of each annotation, and every problem of a file at once."""

import json
import tracemalloc

import pytest

from sam_d2.errors import UserError
from sam_d2.labelling.index import DatasetIndex, build_index


@pytest.fixture
def index(tmp_path):
    opened = []

    def build(file, roots=None):
        build_index(file, roots, (), tmp_path / "index.sqlite")
        opened.append(DatasetIndex(tmp_path / "index.sqlite", file))
        return opened[-1]

    yield build
    for each in opened:
        each.close()


def test_kinds_and_clipped_boxes_by_hand(index, boxes, caplog):
    tables = index(boxes)
    assert tables.count("images") == 5 and tables.count("annotations") == 10
    assert tables.image_root == boxes.parent
    kinds = "SELECT id, kind, has_mask FROM annotations ORDER BY row"
    assert tables.connection.execute(kinds).fetchall() == [
        (9, "box", 0), (0, "box", 0), (4, "crowd", 1), (5, "no_area", 0), (6, "outside", 0), (7, "box", 1),
        (1, "box", 0), (11, "box", 0), (10, "box", 0), (12, "box", 0),
    ]  # fmt: skip
    image = tables.image(0, keep_existing=False)
    assert (image.id, image.size, image.file_name) == (30, (48, 64), boxes.parent / "30.png")
    assert image.annotations == [1, 6]
    # 50 + 28 = 78 ends at the image's 64, 30 + 30 = 60 at its 48
    assert image.boxes.tolist() == [[2, 2.25, 32, 22.25], [50, 30, 64, 48]]
    assert list(tables.images_with_boxes(keep_existing=False)) == [0, 1, 3, 4]
    assert list(tables.images_with_boxes(keep_existing=True)) == [0, 3, 4]
    assert tables.image(1, keep_existing=False).annotations == [5]
    assert tables.image(1, keep_existing=True).annotations == []
    assert "1 warning, a box reaches outside of its image; image" in caplog.text
    assert "1 warning, a box lies outside of its image; image" in caplog.text
    assert "1 warning, neither box nor mask has an area; image" in caplog.text


def test_a_box_without_area_is_that_of_its_mask(index, boxes):
    content = json.loads(boxes.read_text())
    content["annotations"][5]["bbox"] = [10, 10, 0, 0]
    boxes.write_text(json.dumps(content))
    assert index(boxes).image(1, keep_existing=False).boxes.tolist() == [[10, 10, 30, 30]]


def test_records_are_read_as_they_stand(index, boxes):
    tables = index(boxes)
    begin, end = tables.connection.execute("SELECT begin, end FROM annotations WHERE row = 0").fetchone()
    assert tables.read(begin, end) == json.dumps(json.loads(boxes.read_text())["annotations"][0]).encode()


def test_memory_does_not_grow_with_the_file(boxes, tmp_path, monkeypatch):
    monkeypatch.setattr("sam_d2.labelling.index._ROWS", 50)
    monkeypatch.setattr("sam_d2.data.json_records._BLOCK", 4096)
    content = json.loads(boxes.read_text())

    def peak(times):
        images = [{**image, "id": image["id"] + 100 * n} for n in range(times) for image in content["images"]]
        annotations = [
            {**item, "id": item["id"] + 100 * n, "image_id": item["image_id"] + 100 * n}
            for n in range(times) for item in content["annotations"]
        ]  # fmt: skip
        boxes.write_text(json.dumps({**content, "images": images, "annotations": annotations}))
        del images, annotations
        tracemalloc.start()
        build_index(boxes, None, (), tmp_path / "index.sqlite")
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(10)  # what is made once
    # only the images' names are looked for all at once: 450 more of them, of some 100 bytes
    assert peak(100) - peak(10) < 450 * 200


def put(value, *path):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(float("nan"), "annotations", 0, "bbox", 2), "image 40, annotation 9, bbox: .* NaN or infinity"),
        (put([1, 2, 3], "annotations", 0, "bbox"), "image 40, annotation 9, bbox: .*a list of 4 numbers"),
        (put(99, "annotations", 0, "image_id"), "image 99, annotation 9, image_id: 99 is not among the file's images"),
        (put(99, "annotations", 0, "category_id"), "category_id: 99 is not among the file's categories"),
        (put(0, "annotations", 0, "id"), "annotation 0, id: 2 annotations have it"),
        (put(10, "images", 0, "id"), "image 10, id: 2 images have it"),
        (put(3, "categories", 0, "id"), "2 categories have id 3"),
        (put([], "categories"), "categories: none"),
        (put([], "images"), "at least one image"),
        (put(0, "images", 0, "width"), "image 30, width: "),
        (put("none.png", "images", 3, "file_name"), "1 of 5 images are missing under .*'none.png'"),
        (put("../30.png", "images", 0, "file_name"), "file_name"),
        (put([1], "annotations"), "annotations\\[0\\], record: a JSON number"),
        (lambda content: content.pop("annotations"), "annotations: missing key"),
        (
            put({"size": [3, 3], "counts": [9]}, "annotations", 0, "segmentation"),
            "segmentation.size: \\[3, 3\\], but the image",
        ),
    ],
)
def test_problems_are_those_of_a_dataset_read_whole(index, boxes, tmp_path, change, message):
    content = json.loads(boxes.read_text())
    change(content)
    boxes.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        index(boxes)
    assert not list(tmp_path.glob("*.sqlite")) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"note": "kept', '"score": NaN, "note": "kept', "image 40, annotation 9, score: NaN is no JSON;.*write null"),
        ('"note": "kept', '"note": "\\ud83d kept', r'image 40, annotation 9, note: "\\ud83d kept .* is no JSON'),
        ('"captured":', '"gps": [-Infinity], "captured":', r"image 30, gps: \[-Infinity\] is no JSON"),
        ('"supercategory":', '"weight": NaN, "supercategory":', r"categories\[0\]\.weight: NaN is no JSON"),
        ('"year": 2026', '"year": NaN', 'info: .*NaN} is no JSON'),
        ('"revision": 12', '"revision": 12, "revision": 13', "'revision' is there twice: join both"),
    ],
)  # fmt: skip
def test_what_is_no_json_is_named_before_anything_is_made(index, boxes, old, new, message):
    """Training reads these files; here records are copied as they stand, and must be JSON."""
    text = boxes.read_text()
    assert text.count(old) == 1
    boxes.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message):
        index(boxes)


def test_a_file_that_is_cut_off(index, boxes):
    boxes.write_text(boxes.read_text()[:-30])
    with pytest.raises(UserError, match="the file is cut off: a value begun at line 1"):
        index(boxes)


def test_some_names_at_a_time_find_the_folder_of_all(index, boxes, tmp_path, monkeypatch):
    monkeypatch.setattr("sam_d2.labelling.index._FILE_NAMES", 2)
    assert index(boxes).image_root == tmp_path
    # the folder given first has the first two images alone
    first = tmp_path / "first"
    first.mkdir()
    for name in ("30.png", "10.png"):
        (first / name).write_bytes((tmp_path / name).read_bytes())
    assert index(boxes, first).image_root == tmp_path
