"""The digest of a dataset: what changes it and what does not."""

import copy
import time

import numpy as np
import pytest

import sam_d2  # noqa: F401
from detectron2.data import DatasetFromList
from detectron2.structures import BoxMode
from sam_d2.data.dataset_digest import dataset_digest
from sam_d2.data.shared_records import SharedRecords


def images(folder="/data/cells"):
    polygon = {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0}
    rle = {"size": [8, 9], "counts": b"abc"}
    return [
        {
            "file_name": f"{folder}/{name}",
            "height": 8,
            "width": 9,
            "image_id": number,
            "annotations": [
                {**polygon, "segmentation": [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]},
                {**polygon, "segmentation": rle},
            ],
        }
        for number, name in enumerate(["a/1.png", "b/2.png"])
    ]


def change(edit):
    changed = copy.deepcopy(images())
    edit(changed)
    return dataset_digest(changed)


def test_it_is_of_the_content():
    found = dataset_digest(images())
    assert len(found) == 16 and int(found, 16) >= 0
    assert dataset_digest(images("/elsewhere/on/another disk")) == found
    assert dataset_digest(DatasetFromList(images(), serialize=True)) == found
    # the same in another form: keys in another order, 1 and 1.0, an enum and its value, an array and a list
    other = [dict(reversed(image.items())) for image in images()]
    other[0]["annotations"][0].update(bbox=np.array([1.0, 2.0, 3.0, 4.0]), bbox_mode=1)
    assert dataset_digest(other) == found
    assert dataset_digest([]) != found


@pytest.mark.parametrize(
    "edit",
    [
        lambda images: images.reverse(),
        lambda images: images.pop(),
        lambda images: images[1].update(file_name="/data/cells/b/3.png"),
        lambda images: images[1].update(width=10),
        lambda images: images[0]["annotations"].pop(),
        lambda images: images[0]["annotations"].reverse(),
        lambda images: images[1]["annotations"][0].update(category_id=1),
        lambda images: images[1]["annotations"][0].update(iscrowd=1),
        lambda images: images[0]["annotations"][0]["bbox"].reverse(),
        lambda images: images[0]["annotations"][0]["segmentation"][0].__setitem__(3, 4.001),
        lambda images: images[0]["annotations"][0].update(segmentation=[[1.0, 2.0], [3.0, 4.0, 5.0, 6.0]]),
        lambda images: images[0]["annotations"][1]["segmentation"].update(counts=b"abd"),
        lambda images: images[0].update(more=None),
    ],
)
def test_any_edit_changes_it(edit):
    assert change(edit) != dataset_digest(images())


def test_it_is_fast():
    polygon = np.random.default_rng(0).random(80).tolist()
    many = [{**images()[0], "annotations": [{"segmentation": [polygon]}] * 10} for _ in range(1000)]
    begin = time.process_time()
    dataset_digest(many)
    assert time.process_time() - begin < 3  # 10,000 polygons of 40 corners: 0.2 s


def test_the_value_is_that_of_runs_of_before():
    """A digest in a checkpoint must be found again: worked out by the first version of this function."""
    odd = {"a": (1, 2.5), "b": [], "c": [True, None], "d": np.float32(0.5), "e": b"x", "f": ["1", 2], "g": {}, 7: [[]]}
    assert dataset_digest(images()) == "022c6fe7195fc3e3"
    assert dataset_digest([{**images()[0], "odd": odd}]) == "1d26ec2b346f3fda"


def test_annotations_are_decoded_once(monkeypatch):
    records = SharedRecords(images())
    asked = []
    monkeypatch.setattr(SharedRecords, "__getitem__", lambda self, index: asked.append(index) or images()[index])
    assert dataset_digest(records) == dataset_digest(images())
    assert asked == [0, 1]
