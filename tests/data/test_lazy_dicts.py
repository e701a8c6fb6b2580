"""Annotations that are decoded when they are read: the same as read at once, and shared between processes."""

import copy
import json
import multiprocessing
import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest

from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from sam_d2.data import dataset_file, inspect_dataset_file, load_dataset_file, register_dataset
from sam_d2.data.coco_index import index_coco
from sam_d2.data.decode import read_content
from sam_d2.data.geometry import AnnotationTable, check_geometry
from sam_d2.data.lazy_dicts import LazyAnnotations, LazyDatasetDicts, count_annotations, count_categories
from sam_d2.data.quick_checks import suspicious_rows
from sam_d2.data.records import XYWH_ABS, CocoAnnotation, Image, Rle
from sam_d2.data.shared_records import SharedRecords
from sam_d2.errors import UserError

SQUARE = [[1, 1, 3, 1, 3, 4, 1, 4]]  # of box XYWH [1, 1, 2, 3]
# What check_geometry warns of, in an image of 6 x 8 px.
ODDITIES = {
    "flat box": {"bbox": [1, 1, 0, 3]},
    "box outside": {"bbox": [1, 1, 9, 3]},
    "box far away": {"bbox": [4, 5, 1, 1]},
    "negative area": {"area": -1},
    "empty": {"segmentation": []},
    "null": {"segmentation": None},
    "short polygon": {"segmentation": [[1, 1, 2, 2], *SQUARE]},
    "short polygons": {"segmentation": [[1, 1, 2, 2]]},
    "polygon outside": {"segmentation": [[1, 1, 9, 1, 9, 4, 1, 4]], "bbox": [1, 1, 5, 3]},
    "line": {"segmentation": [[1, 1, 2, 1, 3, 1]]},
    "provenance of another kind": {"provenance": "crowdsourced"},
    "run lengths": {"segmentation": {"size": [8, 6], "counts": [10, 4, 34]}, "bbox": [1, 2, 1, 4]},
}


@pytest.fixture
def odd(coco):
    """A file with one annotation of each oddity, sound ones between them."""
    plain = coco["annotations"][0]
    coco["annotations"] = [
        {**plain, "id": 2 * number + place, "image_id": 10 + 10 * (number % 2), **(change if place else {})}
        for number, change in enumerate(ODDITIES.values())
        for place in range(2)
    ]
    return coco


@pytest.fixture
def read_at_once(monkeypatch):
    """Return what reads a file without an index."""

    def read(file, **options):
        with monkeypatch.context() as context:
            context.setattr(dataset_file, "index_coco", lambda *args, **options: None)
            return inspect_dataset_file(file, **options)

    return read


def indexed(file, **options):
    dataset = inspect_dataset_file(file, **options)
    assert isinstance(dataset.dataset_dicts, LazyDatasetDicts)
    return dataset


@pytest.mark.parametrize("require_masks", [True, False])
def test_lazy_dicts_are_those_of_a_file_read_at_once(odd, write, read_at_once, require_masks):
    file = write(odd)
    expected = read_at_once(file, require_masks=require_masks)
    assert isinstance(expected.dataset_dicts, list)
    found = indexed(file, require_masks=require_masks)
    assert list(found.dataset_dicts) == expected.dataset_dicts
    assert found.findings == expected.findings and len(found.findings) >= 9
    assert (found.classes, found.category_ids) == (expected.classes, expected.category_ids)
    # of 24 three have no mask that can be used: [], null and the polygon of two points
    assert count_annotations(found.dataset_dicts) == 21 + 3 * (not require_masks)
    later = indexed(file, require_masks=require_masks, check_annotations=False)
    assert list(later.dataset_dicts) == expected.dataset_dicts and later.findings == []


@pytest.mark.parametrize("oddity", ODDITIES)
def test_an_oddity_is_given_to_the_full_checks(oddity):
    plain = {"id": 1, "image_id": 10, "category_id": 7, "bbox": [1, 1, 2, 3], "segmentation": SQUARE}
    change = dict(ODDITIES[oddity])
    if isinstance(change.get("segmentation"), dict):
        change["segmentation"] = Rle(**change["segmentation"])
    items = [CocoAnnotation(**plain), CocoAnnotation(**{**plain, **change}), CocoAnnotation(**plain)]
    assert suspicious_rows(items, np.array([[6, 8]] * 3)).tolist() == [1]


def test_the_full_checks_find_nothing_on_the_others(tmp_path):
    random = np.random.default_rng(0)
    image = Image(file_name="a.png", width=40, height=30)
    items = []
    for row in range(400):
        points = random.uniform(-1, 36, (random.integers(3, 9), 2)).round(1)
        low, high = points.min(axis=0), points.max(axis=0) + random.choice([0, 3, 30])
        polygons = [points.ravel().tolist()] * random.integers(1, 3) + [[0.0] * 5] * (row % 50 == 0)
        box = [*low.tolist(), *(high - low).tolist()]
        items.append(CocoAnnotation(id=row, image_id=1, category_id=1, bbox=box, segmentation=polygons))

    def findings(rows):
        count = len(rows)
        chosen = [items[row] for row in rows]
        table = AnnotationTable(tmp_path, chosen, [image] * count, [1] * count, rows, np.full(count, XYWH_ABS))
        check_geometry(table)
        return table.findings

    suspects = suspicious_rows(items, np.array([[40, 30]] * len(items))).tolist()
    others = sorted(set(range(len(items))) - set(suspects))
    assert len(others) > 50 and findings(others) == []
    assert {finding.annotation_id for finding in findings(suspects)} == set(suspects)


def test_whatever_the_full_checks_find_is_on_a_row_that_they_are_given(tmp_path):
    """Also an outline that is too long, or too far out, in an image with room for its box, which fits."""
    random = np.random.default_rng(7)
    images, items = [], []
    for row in range(300):
        width, height = (2 ** random.uniform(3, 24, 2)).astype(int).tolist()
        corners = int(2 ** random.uniform(1.7, 11))
        points = random.uniform(0, 2 ** random.uniform(-0.5, 0.05, 2), (corners, 2)) * (width, height)
        low, high = points.min(axis=0), points.max(axis=0)
        box = [*low.tolist(), *(high - low).tolist()]
        polygons = [part.ravel().tolist() for part in np.split(points, [3] if corners > 6 else [])]
        images.append(Image(file_name="a.png", width=width, height=height))
        items.append(CocoAnnotation(id=row, image_id=1, category_id=1, bbox=box, segmentation=polygons))
    count = len(items)
    table = AnnotationTable(tmp_path, items, images, [1] * count, list(range(count)), np.full(count, XYWH_ABS))
    check_geometry(table)
    found = {kind: len(rows) for kind, rows in table.kind_rows.items()}
    assert min(found["polygon-long"], found["polygon-far"], found["polygon-outside"]) > 10
    suspects = suspicious_rows(items, np.array([[image.width, image.height] for image in images]))
    assert set().union(*table.kind_rows.values()) <= set(suspects.tolist())


@pytest.mark.parametrize("form", ["indented", "compact", "uneven"])
def test_places_of_records_whatever_stands_between_them(form, coco, write):
    file = write(coco)
    expected = load_dataset_file(file).dataset_dicts
    records = [json.dumps(record) for record in coco["annotations"]]
    rest = json.dumps({**coco, "annotations": []})
    between = {"indented": ("\n ,\n ", "\n ,\n "), "compact": (",", ","), "uneven": (", ", "\n,\n")}[form]
    text = records[0] + between[0] + records[1] + between[1] + records[2]
    text = rest.replace('"annotations": []', f'"annotations": [\n{text}]')
    file.write_text(text)
    content, _ = read_content(file)
    index = index_coco(file, content)
    assert [text[begin:end] for begin, end in zip(index.begins, index.ends, strict=True)] == records
    assert load_dataset_file(file).dataset_dicts == expected


def test_commas_within_records_are_not_taken_for_those_between_them(coco, write):
    """One gap is longer, by what a record has behind its last comma: all places later would have commas before them."""
    records = [json.dumps({**coco["annotations"][0], "id": number}, separators=(",", ":")) for number in range(7)]
    tail = records[0][records[0].rindex(",") :]
    between = [","] * 6
    between[2] = ",".ljust(1 + len(tail))
    text = "".join(gap + record for gap, record in zip(["", *between], records, strict=True))
    file = write({**coco, "annotations": []})
    file.write_text(file.read_text().replace('"annotations": []', f'"annotations": [{text}]'))
    found = [item["id"] for record in load_dataset_file(file).dataset_dicts for item in record["annotations"]]
    assert found == list(range(7))


def test_opening_keeps_no_annotation_and_reading_keeps_none(coco, write):
    dataset = indexed(write(coco))
    record = dataset.dataset_dicts[0]
    annotations = record["annotations"]
    assert isinstance(annotations, LazyAnnotations) and not isinstance(annotations, list)
    first = annotations[0]
    first["category_id"] = 99
    first["segmentation"][0][0] = -5.0
    assert annotations[0]["category_id"] == 1 and annotations[0]["segmentation"] == SQUARE
    assert not hasattr(annotations, "append")
    assert [item["id"] for item in annotations] == [0, 1] and len(annotations) == 2
    assert [item["id"] for item in annotations[1:]] == [1] and annotations[-1]["id"] == 1
    assert annotations.categories == [1, 0]
    assert count_categories(dataset.dataset_dicts) == {0: 2, 1: 1}


def test_copies_and_pickles_hold_plain_lists(odd, write):
    dicts = indexed(write(odd)).dataset_dicts
    for record in dicts:
        for other in (copy.deepcopy(record), pickle.loads(pickle.dumps(record)), DatasetFromList([record])[0]):
            assert type(other["annotations"]) is list and other == record
            assert all(type(item) is dict for item in other["annotations"])


def test_checks_that_are_put_off_come_when_the_annotation_is_read(coco, write):
    coco["annotations"][0]["segmentation"] = [[1, 1, 3, 1, 3]]
    file = write(coco)
    with pytest.raises(UserError) as whole:
        load_dataset_file(file)
    dicts = load_dataset_file(file, check_annotations=False).dataset_dicts
    assert dicts[1]["annotations"][0]["iscrowd"] == 1  # the other image is sound
    with pytest.raises(UserError) as later:
        list(dicts[0]["annotations"])
    assert str(later.value) == str(whole.value)
    assert "image 10, annotation 0, segmentation: polygon 0 has 5 numbers" in str(later.value)
    coco["annotations"][0]["segmentation"] = "none"  # of a wrong type
    dicts = load_dataset_file(write(coco), check_annotations=False).dataset_dicts
    with pytest.raises(UserError, match="image 10, annotation 0, segmentation: 'none'"):
        pickle.loads(pickle.dumps(dicts[0]))
    coco["annotations"][0]["image_id"] = 11  # ids are looked at in any case
    with pytest.raises(UserError, match="11 is not among the file's images"):
        load_dataset_file(write(coco), check_annotations=False)


def test_detectron2_takes_them_as_a_list(coco, write, catalogs):
    coco["annotations"] = coco["annotations"][:2]
    coco["images"].append({"id": 30, "file_name": "sam_d2_test_a.png", "height": 8, "width": 6})
    register_dataset("lazy_train", write(coco))
    assert [record["image_id"] for record in get_detection_dataset_dicts("lazy_train", filter_empty=False)] == [
        10,
        20,
        30,
    ]
    # of 20 the only annotation is a crowd, and 30 has none
    assert [record["image_id"] for record in get_detection_dataset_dicts("lazy_train")] == [10]


def test_shared_records_take_no_copy_of_the_annotations(coco, write):
    dicts = indexed(write(coco)).dataset_dicts
    mixed = [*dicts, {"image_id": "plain", "annotations": [{"id": 3}]}, {"image_id": "bare"}]
    shared = SharedRecords(mixed)
    assert [shared[row] for row in range(len(shared))] == mixed
    assert type(shared[0]["annotations"]) is list
    assert shared[-1] == {"image_id": "bare"}
    with pytest.raises(IndexError):
        shared[4]
    (tensors,) = shared._tensors
    assert np.shares_memory(tensors["content"].numpy(), dicts.store.content)
    assert b"segmentation" not in shared._bytes.numpy().tobytes()[: int(shared._ends[1])]


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_the_memory_of_their_parent(method, odd, write):
    odd["annotations"][0]["attributes"] = "x" * 1_000_000  # a file that would be seen in what a worker is sent
    dicts = indexed(write(odd)).dataset_dicts
    shared = SharedRecords(dicts)
    if method == "spawn":
        assert len(ForkingPickler.dumps(shared)) < 10_000
    context = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=send_records, args=(shared, sender))
    worker.start()
    found = receiver.recv()
    worker.join()
    assert found == list(dicts)


def send_records(shared, sender):
    sender.send([shared[row] for row in range(len(shared))])
