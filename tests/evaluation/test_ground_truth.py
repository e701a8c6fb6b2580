import numpy as np
import pycocotools.mask as mask_utils
import pytest

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from sam_d2.errors import UserError
from sam_d2.evaluation import GroundTruth

MASK = np.zeros((4, 5), dtype=np.uint8)
MASK[1:3, 2:4] = 1
COMPRESSED = mask_utils.encode(np.asfortranarray(MASK))
# down the columns of height 4: 2 columns and 1 pixel off, 2 on, 2 off, 2 on, 1 pixel and 1 column off
UNCOMPRESSED = {"size": [4, 5], "counts": [9, 2, 2, 2, 5]}


def record(*annotations, **keys):
    full = [{"category_id": 0, "bbox": [2, 1, 2, 2], "bbox_mode": BoxMode.XYWH_ABS, **one} for one in annotations]
    return {"image_id": 1, "file_name": "1.png", "height": 4, "width": 5, **keys, "annotations": full}


@pytest.mark.parametrize(
    "segmentation",
    [
        [[2, 1, 4, 1, 4, 3, 2, 3]],
        [[2, 1, 3, 1, 3, 3, 2, 3], [3, 1, 4, 1, 4, 3, 3, 3]],
        COMPRESSED,
        {**COMPRESSED, "counts": COMPRESSED["counts"].decode()},
        UNCOMPRESSED,
    ],
    ids=["polygon", "two polygons", "RLE bytes", "RLE text", "RLE counts"],
)
def test_every_form_of_mask(segmentation):
    truth = GroundTruth.from_dataset_dicts([record({"segmentation": segmentation})], ["thing"])
    annotation = truth[1].annotations[0]
    np.testing.assert_array_equal(mask_utils.decode(annotation.rle), MASK)
    assert annotation.area == 4  # the mask's, for the record has none
    assert annotation.bbox == (2, 1, 2, 2)


@pytest.mark.parametrize("none", [{}, {"segmentation": []}, {"segmentation": None}])
def test_no_mask_is_an_empty_one(none):
    truth = GroundTruth.from_dataset_dicts([record(none)], ["thing"])
    assert mask_utils.area(truth[1].annotations[0].rle) == 0


def test_box_modes_and_missing_box():
    mask = {"segmentation": UNCOMPRESSED}
    corners = {"bbox": [2, 1, 4, 3], "bbox_mode": BoxMode.XYXY_ABS}
    without = record(mask)
    del without["annotations"][0]["bbox"]
    without["image_id"] = 2
    truth = GroundTruth.from_dataset_dicts([record({**mask, **corners}), without], ["thing"])
    assert truth[1].annotations[0].bbox == truth[2].annotations[0].bbox == (2, 1, 2, 2)


def test_crowd_is_no_instance():
    one, crowd = {"segmentation": UNCOMPRESSED, "area": 99}, {"segmentation": UNCOMPRESSED, "iscrowd": 1}
    truth = GroundTruth.from_dataset_dicts([record(crowd, one)], ["thing"])
    assert [a.crowd for a in truth[1].annotations] == [True, False]
    assert [a.area for a in truth[1].instances] == [99]
    assert truth.most_instances() == 1


def test_instances_without_a_mask_count_as_boxes():
    crowd = {"segmentation": UNCOMPRESSED, "iscrowd": 1}
    truth = GroundTruth.from_dataset_dicts([record({"segmentation": UNCOMPRESSED}, {}, {}, crowd)], ["thing"])
    assert (truth.most_instances(), truth.most_instances(boxes=True)) == (1, 3)


def test_digest_tells_what_figures_depend_on():
    def digest(annotation=None, names=("thing",), **keys):
        one = {"segmentation": [[2, 1, 4, 1, 4, 3, 2, 3]], "area": 4, **(annotation or {})}
        return GroundTruth.from_dataset_dicts([record(one, **keys)], names).digest

    same = [digest(), digest(file_name="/elsewhere/1.png"), digest({"segmentation": COMPRESSED}), digest({"id": 9})]
    assert len(set(same)) == 1 and len(same[0]) == 16
    others = [
        digest({"segmentation": [[2, 1, 4, 1, 4, 4, 2, 4]]}),
        digest({"bbox": [2, 1, 2, 2.5]}),
        digest({"area": 5}),
        digest({"iscrowd": 1}),
        digest({"segmentation": None}),
        digest(image_id=2),
        digest(names=("other",)),
        digest(names=("thing", "other")),
    ]
    assert len({same[0], *others}) == 9


def test_counts():
    crowd = {"segmentation": UNCOMPRESSED, "iscrowd": 1}
    records = [record({"segmentation": UNCOMPRESSED}, {}, crowd), record({}, image_id=2)]
    truth = GroundTruth.from_dataset_dicts(records, ["thing"])
    assert (truth.count_instances(), truth.count_instances(boxes=True)) == (1, 3)


def test_images_are_ordered_by_id_or_as_given():
    def ids(*given):
        return [
            i.image_id for i in GroundTruth.from_dataset_dicts([record(image_id=i) for i in given], ["thing"]).images
        ]

    assert ids(2**40, 7, 0) == [0, 7, 2**40]
    assert ids("b", "a") == ["b", "a"]


def test_file_name_serves_as_id():
    nameless = record()
    del nameless["image_id"]
    assert GroundTruth.from_dataset_dicts([nameless], ["thing"])["1.png"].size == (4, 5)


def test_from_coco_and_from_catalog_agree():
    coco = {
        "images": [{"id": 1, "file_name": "1.png", "height": 4, "width": 5}],
        "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}],
        "annotations": [
            {
                "id": 0,
                "image_id": 1,
                "category_id": 9,
                "bbox": [2, 1, 2, 2],
                "segmentation": UNCOMPRESSED,
                "area": 4,
            }
        ],
    }
    name = "made_for_ground_truth"
    DatasetCatalog.register(name, lambda: [record({"segmentation": UNCOMPRESSED, "category_id": 1})])
    MetadataCatalog.get(name).set(thing_classes=["cat", "dog"], thing_dataset_id_to_contiguous_id={9: 1, 4: 0})
    try:
        truths = GroundTruth.from_coco(coco, name=name), GroundTruth.from_catalog(name)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    for truth in truths:
        assert (truth.class_names, truth.category_ids) == (["cat", "dog"], [4, 9])
        assert truth[1].annotations == truths[0][1].annotations
        assert truth[1].annotations[0].category == 1
    coco["annotations"][0]["image_id"] = 5
    with pytest.raises(UserError, match="annotation 0 names image 5"):
        GroundTruth.from_coco(coco)


def test_classes_of_one_name_are_told_apart_by_their_ids():
    names = ["cell", "cell", "cell (id 4)", "dot", "cell"]
    truth = GroundTruth([], names, [2, 4, 5, 7, 9])
    assert truth.class_names == ["cell", "cell (id 4)", "cell (id 4) (id 5)", "dot", "cell (id 9)"]


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"category_id": 3}, r"tiles: image id 1 \(1.png\), annotation 0: class 3"),
        ({"segmentation": {"size": [9, 9], "counts": [81]}}, r"\(9, 9\).*\(4, 5\)"),
        ({"segmentation": ["x"]}, "cannot be read"),
    ],
)
def test_what_cannot_be_read(annotation, message):
    with pytest.raises(UserError, match=message):
        GroundTruth.from_dataset_dicts([record(annotation)], ["thing"], name="tiles")


def test_repeated_and_unknown_image_id():
    with pytest.raises(UserError, match="two images have the id 1"):
        GroundTruth.from_dataset_dicts([record(), record()], ["thing"])
    with pytest.raises(UserError, match=r"tiles: .*'1'"):
        GroundTruth.from_dataset_dicts([record()], ["thing"], name="tiles")["1"]
