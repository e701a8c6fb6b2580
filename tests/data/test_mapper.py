"""From a dataset dict to a sample: frames, flips, what is left out, and that nothing else changes."""

import copy
import pickle

import numpy as np
import pycocotools.mask as mask_utils
import pytest
import torch
from PIL import Image
from segment_anything.utils.transforms import ResizeLongestSide

import detectron2.data.transforms as T
import sam_d2  # noqa: F401
from detectron2.data import detection_utils
from detectron2.structures import BitMasks, PolygonMasks
from sam_d2.data.loader import seeded
from sam_d2.data.mapper import PromptableMapper
from sam_d2.errors import UserError


def annotation(box, segmentation="polygon", size=(64, 64), **extra):
    """Annotate the pixels of an integer XYXY box, as a polygon or as an RLE of an image of ``size``."""
    x0, y0, x1, y1 = box
    if segmentation == "polygon":
        segmentation = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    elif segmentation == "rle":
        mask = np.zeros(size, dtype=np.uint8, order="F")
        mask[y0:y1, x0:x1] = 1
        segmentation = mask_utils.encode(mask)
    record = {"bbox": [x0, y0, x1, y1], "bbox_mode": 0, "category_id": 0, "segmentation": segmentation}
    return {**record, **extra}


@pytest.fixture
def record(tmp_path):
    """``record(annotations, height, width)``: a dataset dict with its image, which is white left of the middle."""

    def make(annotations=(), height=64, width=64, **extra):
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        pixels[:, : width // 2] = 255
        Image.fromarray(pixels).save(tmp_path / "a.png")
        content = {"file_name": str(tmp_path / "a.png"), "height": height, "width": width, "image_id": 7}
        return {**content, "annotations": list(annotations), **extra}

    return make


def train_mapper(image_size=64, augmentations=(), **options):
    return PromptableMapper(is_train=True, image_size=image_size, augmentations=augmentations, **options)


def at_test(image_size=64, **options):
    return PromptableMapper(is_train=False, image_size=image_size, **options)


def bitmaps(instances):
    """The (N, H, W) masks, polygons rasterised as pycocotools does."""
    masks, size = instances.gt_masks, instances.image_size
    return masks.tensor if isinstance(masks, BitMasks) else BitMasks.from_polygon_masks(masks, *size).tensor


@pytest.mark.parametrize("make", [train_mapper, at_test])
@pytest.mark.parametrize(
    ("height", "width"),
    [(60, 40), (40, 60), (7, 5), (5, 7), (64, 64), (1, 50), (133, 200), (640, 426), (480, 640), (1080, 1920)],
)
def test_long_side_is_the_canvas_as_in_segment_anything(record, make, height, width):
    image = make(128)(record(height=height, width=width))["image"]
    assert tuple(image.shape[1:]) == ResizeLongestSide.get_preprocess_shape(height, width, 128)
    assert image.shape[0] == 3 and image.dtype == torch.uint8
    assert max(image.shape[1:]) == 128


def test_channel_order(tmp_path, record):
    entry = record()
    Image.fromarray(np.full((64, 64, 3), (10, 20, 30), dtype=np.uint8)).save(entry["file_name"])
    assert at_test()(entry)["image"][:, 0, 0].tolist() == [10, 20, 30]
    assert at_test(image_format="BGR")(entry)["image"][:, 0, 0].tolist() == [30, 20, 10]


@pytest.mark.parametrize("kind", ["polygon", "rle"])
@pytest.mark.parametrize(
    ("horizontal", "box", "flipped"),
    [
        # x of the edges 10 and 30 in an image 64 wide: 64 - 30 = 34, 64 - 10 = 54
        (True, (10, 20, 30, 28), (34, 20, 54, 28)),
        # y of the edges 20 and 28: 64 - 28 = 36, 64 - 20 = 44
        (False, (10, 20, 30, 28), (10, 36, 30, 44)),
    ],
)
def test_a_flip_moves_image_box_and_mask_together(record, kind, horizontal, box, flipped):
    flip = T.RandomFlip(prob=1.0, horizontal=horizontal, vertical=not horizontal)
    sample = train_mapper(augmentations=[flip])(record([annotation(box, kind)]))
    instances = sample["instances"]
    assert instances.gt_boxes.tensor.tolist() == [list(flipped)]
    x0, y0, x1, y1 = flipped
    expected = torch.zeros(1, 64, 64, dtype=torch.bool)
    expected[0, y0:y1, x0:x1] = True
    torch.testing.assert_close(bitmaps(instances), expected)
    assert isinstance(instances.gt_masks, PolygonMasks if kind == "polygon" else BitMasks)
    white = sample["image"][0] == 255
    assert white[:, 32:].all() == horizontal and white[:, :32].all() != horizontal


def test_training_instances_are_in_the_resized_frame(record):
    # 30 x 60 (height, width) to 64: scale 64 / 60, box (6, 3, 30, 15) x 16/15 = (6.4, 3.2, 32, 16), although the
    # annotation holds whole numbers
    instances = train_mapper()(record([annotation((6, 3, 30, 15))], 30, 60))["instances"]
    assert instances.image_size == (32, 64)
    torch.testing.assert_close(instances.gt_boxes.tensor, torch.tensor([[6.4, 3.2, 32.0, 16.0]]))
    np.testing.assert_allclose(instances.gt_masks.polygons[0][0], [6.4, 3.2, 32, 3.2, 32, 16, 6.4, 16])


def test_test_instances_stay_in_the_original_frame(record):
    sample = at_test()(record([annotation((6, 3, 30, 15)), annotation((1, 2, 3, 4), "rle", (30, 60))], 30, 60))
    assert sample["image"].shape == (3, 32, 64)
    assert sample["instances"].image_size == (30, 60)
    assert sample["instances"].gt_boxes.tensor.tolist() == [[6, 3, 30, 15], [1, 2, 3, 4]]
    assert bitmaps(sample["instances"]).sum(dim=(1, 2)).tolist() == [24 * 12, 2 * 2]
    assert "annotations" not in sample
    assert (sample["height"], sample["width"], sample["image_id"]) == (30, 60, 7)


@pytest.mark.parametrize("make", [train_mapper, at_test])
def test_crowd_and_annotations_without_a_mask_are_left_out(record, make):
    kept = [annotation((1, 1, 5, 5), category_id=2), annotation((9, 9, 20, 20), iscrowd=0, category_id=4)]
    left_out = [
        annotation((2, 2, 9, 9), "rle", iscrowd=1),
        annotation((2, 2, 9, 9), []),
        {key: value for key, value in annotation((2, 2, 9, 9)).items() if key != "segmentation"},
    ]
    instances = make()(record([left_out[0], kept[0], left_out[1], kept[1], left_out[2]]))["instances"]
    assert instances.gt_classes.tolist() == [2, 4]
    assert instances.gt_boxes.tensor.tolist() == [[1, 1, 5, 5], [9, 9, 20, 20]]
    assert isinstance(instances.gt_masks, PolygonMasks)  # the crowd's RLE does not make bitmaps of the others


@pytest.mark.parametrize("make", [train_mapper, at_test])
def test_polygons_and_rle_in_one_image(record, make):
    boxes = [(4, 6, 20, 30), (40, 8, 60, 20)]
    instances = make()(record([annotation(boxes[0]), annotation(boxes[1], "rle")]))["instances"]
    assert isinstance(instances.gt_masks, BitMasks)
    expected = torch.zeros(2, 64, 64, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(expected, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    torch.testing.assert_close(bitmaps(instances), expected)
    assert instances.gt_boxes.tensor.tolist() == [list(box) for box in boxes]


def test_the_cap_is_drawn_at_random_each_time(record):
    boxes = [(x, 4, x + 6, 10) for x in range(0, 60, 10)]
    entry = record([annotation(box, category_id=index) for index, box in enumerate(boxes)])
    mapper = train_mapper(max_instances=2)
    draws = []
    for seed in range(30):
        with seeded(seed):
            instances = mapper(entry)["instances"]
        draws.append(instances.gt_classes.tolist())
        # rows stay together, and in the file's order
        assert [tuple(box) for box in instances.gt_boxes.tensor.tolist()] == [boxes[row] for row in draws[-1]]
        assert len(instances.gt_masks) == 2 and draws[-1] == sorted(set(draws[-1]))
    # A class is missed by one draw with probability 2/3 (2 of 6 drawn), by 30 with 5e-6.
    assert {row for draw in draws for row in draw} == set(range(6))
    with seeded(0):
        assert mapper(entry)["instances"].gt_classes.tolist() == draws[0]


def test_no_cap_for_none_and_at_a_test(record):
    entry = record([annotation((1, 1, 9, 9))] * 101)
    assert len(train_mapper()(entry)["instances"]) == 100
    assert len(train_mapper(max_instances=None)(entry)["instances"]) == 101
    assert len(at_test(max_instances=5)(entry)["instances"]) == 101


class LeftHalf(T.Augmentation):
    """Cut the image's right half away."""

    def get_transform(self, image):
        height, width = image.shape[:2]
        return T.CropTransform(0, 0, width // 2, height)


def test_what_an_augmentation_moves_out_is_dropped_in_training(record):
    inside, across, outside = (2, 2, 20, 20), (20, 30, 50, 40), (40, 40, 60, 60)
    boxes = enumerate((inside, outside, across))
    entry = record([annotation(box, "rle", category_id=row) for row, box in boxes])
    instances = train_mapper(augmentations=[LeftHalf()])(entry)["instances"]
    assert instances.gt_classes.tolist() == [0, 2]
    # the crop is 64 x 32 (height, width): its long side is 64 already, and the crossing box ends at 32
    assert instances.image_size == (64, 32)
    assert instances.gt_boxes.tensor.tolist() == [[2, 2, 20, 20], [20, 30, 32, 40]]


class TestCapAndAugmentation:
    """Ten annotations, of which LeftHalf leaves those with an even number."""

    BOXES = tuple((2, y, 20, y + 5) if y % 12 == 0 else (40, y, 60, y + 5) for y in range(0, 60, 6))

    @pytest.fixture
    def transformed(self, monkeypatch):
        """Numbers of the annotations that were transformed, in that order."""
        rows = []
        transform = detection_utils.transform_instance_annotations

        def recorded(annotation, *rest):
            rows.append(annotation["category_id"])
            return transform(annotation, *rest)

        monkeypatch.setattr(detection_utils, "transform_instance_annotations", recorded)
        return rows

    @pytest.fixture(params=["polygon", "rle"])
    def entry(self, record, request):
        return record([annotation(box, request.param, category_id=row) for row, box in enumerate(self.BOXES)])

    def test_no_more_are_transformed_than_taken(self, entry, transformed):
        instances = train_mapper(max_instances=3)(entry)["instances"]
        assert transformed == instances.gt_classes.tolist() and len(transformed) == 3

    def test_what_is_moved_out_takes_no_place(self, entry, transformed):
        mapper = train_mapper(max_instances=3, augmentations=[LeftHalf()])
        times, counts = dict.fromkeys(range(10), 0), []
        for seed in range(60):
            transformed.clear()
            with seeded(seed):
                instances = mapper(entry)["instances"]
            found = instances.gt_classes.tolist()
            assert len(found) == 3 and found == sorted(set(found))
            boxes = [list(self.BOXES[row]) for row in found]
            assert instances.gt_boxes.tensor.tolist() == boxes
            # the bitmaps and polygons are of the same rows as the boxes: 18 x 5 pixels from the row's own height on
            assert [mask.nonzero()[0].tolist() for mask in bitmaps(instances)] == [[box[1], box[0]] for box in boxes]
            assert len(set(transformed)) == len(transformed)
            counts.append(len(transformed))
            for row in found:
                times[row] += 1
        # 3 of 5 are taken, 60 times: 36 each with deviation sqrt(60 x 0.6 x 0.4) = 3.8; 21 is four of those away.
        assert all(21 < times[row] < 51 for row in range(0, 10, 2))
        assert sum(times[row] for row in range(1, 10, 2)) == 0
        assert min(counts) >= 3 and np.mean(counts) < 8 and max(counts) <= 10
        with seeded(59):
            assert mapper(entry)["instances"].gt_classes.tolist() == found

    def test_fewer_are_left_than_the_cap(self, entry, transformed):
        # 10 annotations are more than 7, but only 5 stay in the image
        instances = train_mapper(max_instances=7, augmentations=[LeftHalf()])(entry)["instances"]
        assert instances.gt_classes.tolist() == [0, 2, 4, 6, 8]
        assert sorted(transformed) == list(range(10))

    def test_none_is_left(self, record, transformed):
        entry = record([annotation((40, 4, 60, 9), category_id=row) for row in range(5)])
        instances = train_mapper(max_instances=2, augmentations=[LeftHalf()])(entry)["instances"]
        assert len(instances) == len(instances.gt_masks) == 0 and len(transformed) == 5
        assert instances.gt_boxes.tensor.shape == (0, 4)

    @pytest.mark.parametrize("cap", [10, None])
    def test_nothing_is_drawn_where_there_is_nothing_to_choose(self, entry, cap):
        before = np.random.get_state()[2]
        instances = train_mapper(max_instances=cap)(entry)["instances"]
        assert np.random.get_state()[2] == before
        assert instances.gt_classes.tolist() == list(range(10))

    def test_one_kind_of_masks_whatever_is_drawn(self, record):
        entry = record([annotation(self.BOXES[0]), annotation(self.BOXES[2]), annotation(self.BOXES[4], "rle")])
        for seed in range(10):
            with seeded(seed):
                assert isinstance(train_mapper(max_instances=1)(entry)["instances"].gt_masks, BitMasks)

    @pytest.mark.parametrize("cap", [0, -1])
    def test_a_cap_of_nothing(self, cap):
        with pytest.raises(UserError, match=rf"max_instances={cap}: expected at least 1"):
            train_mapper(max_instances=cap)


class Column(T.Augmentation):
    """Cut out one column of pixels."""

    def get_transform(self, image):
        return T.CropTransform(0, 0, 1, image.shape[0])


class TestTooThin:
    @pytest.mark.parametrize("make", [train_mapper, at_test])
    @pytest.mark.parametrize(("height", "width"), [(1, 129), (129, 1), (2, 300)])
    def test_is_refused_by_name(self, record, make, height, width):
        # 1 x 64 / 129 = 0.496 and 2 x 64 / 300 = 0.43 of a pixel
        entry = record(height=height, width=width)
        with pytest.raises(UserError) as caught:
            make()(entry)
        message = str(caught.value)
        assert message.startswith(f"{entry['file_name']} (image id 7): {width} x {height} pixels (width x height)")
        assert "canvas of 64" in message and "tiles" in message and "\n" not in message

    @pytest.mark.parametrize(("height", "width"), [(1, 128), (128, 1)])
    def test_half_a_pixel_is_rounded_up(self, record, height, width):
        assert sorted(at_test()(record(height=height, width=width))["image"].shape[1:]) == [1, 64]

    def test_an_augmentation_that_makes_it_so(self, record):
        entry = record(height=130, width=130)
        with pytest.raises(UserError, match=r"a\.png \(image id 7\), augmented: 1 x 130 pixels"):
            train_mapper(augmentations=[Column()])(entry)


def test_nothing_is_dropped_for_being_small_at_a_test(record):
    tiny = annotation((5, 5, 6, 6), size=(640, 640))
    assert len(at_test()(record([tiny], 640, 640))["instances"]) == 1


@pytest.mark.parametrize("make", [train_mapper, at_test])
@pytest.mark.parametrize("annotations", [[], [annotation((1, 1, 9, 9), iscrowd=1)]])
def test_empty_image(record, make, annotations):
    instances = make()(record(annotations, 30, 60))["instances"]
    assert len(instances) == len(instances.gt_masks) == 0
    assert instances.gt_boxes.tensor.shape == (0, 4) and instances.gt_classes.shape == (0,)
    assert instances.gt_classes.dtype == torch.int64


def test_a_record_without_annotations_is_an_empty_image(record):
    entry = record()
    del entry["annotations"]
    assert len(train_mapper()(entry)["instances"]) == 0


@pytest.mark.parametrize("make", [train_mapper, at_test])
def test_the_record_is_not_changed(record, make):
    polygon = annotation((2, 3, 20, 30))
    array = {**polygon, "segmentation": [np.array(polygon["segmentation"][0], dtype=np.float64)]}
    entry = record([polygon, array, annotation((5, 5, 30, 30), "rle"), annotation((1, 1, 4, 4), iscrowd=1)])
    before = copy.deepcopy(entry)
    mapper = make(32)
    if mapper.is_train:
        mapper = train_mapper(32, [T.RandomFlip(prob=1.0)])
    mapper(entry)
    np.testing.assert_equal(entry, before)


def test_another_size_than_the_annotations_say(record):
    entry = record(height=40, width=60)
    entry.update(height=60, width=40)
    with pytest.raises(UserError) as caught:
        at_test()(entry)
    message = str(caught.value)
    assert message.startswith(f"{entry['file_name']} (image id 7): the file has 60 x 40 pixels")
    assert "the annotations say 40 x 60; put back the image that was annotated, or, if" in message
    assert "\n" not in message
    entry.update(height=81, width=120)  # half of it, rounded
    with pytest.raises(
        UserError, match=r"it is 0\.5 times as large as the image that was annotated: put that one back"
    ):
        at_test()(entry)


def test_size_is_filled_in_where_the_record_has_none(record):
    entry = record(height=40, width=60)
    del entry["height"], entry["width"]
    sample = at_test()(entry)
    assert (sample["height"], sample["width"]) == (40, 60)


# Corners half a pixel from whole ones, as contours of bitmaps have them: the evaluator draws pixels 11 to 20.
HALF = [[10.5, 10.5, 20.5, 10.5, 20.5, 20.5, 10.5, 20.5]]


class TestRecomputedBoxes:
    def test_the_box_of_the_evaluators_pixels(self, record):
        loose = annotation((0, 0, 60, 60), HALF)
        assert at_test()(record([loose]))["instances"].gt_boxes.tensor.tolist() == [[0, 0, 60, 60]]
        found = at_test(recompute_boxes=True)(record([loose]))["instances"]
        assert found.gt_boxes.tensor.tolist() == [[11, 11, 21, 21]]

    def test_it_goes_along_with_a_flip_and_a_resize(self, record):
        mapper = train_mapper(128, [T.RandomFlip(prob=1.0, horizontal=True)], recompute_boxes=True)
        found = mapper(record([annotation((0, 0, 60, 60), HALF)]))["instances"]
        # 64 - 21 = 43 and 64 - 11 = 53, and twice as large
        assert found.gt_boxes.tensor.tolist() == [[86, 22, 106, 42]]

    def test_of_an_rle_and_of_xywh(self, record):
        rle = annotation((4, 6, 20, 30), "rle")
        mask = rle["segmentation"]
        found = at_test(recompute_boxes=True)(record([{**rle, "bbox": [1, 1, 5, 5], "bbox_mode": 1}]))["instances"]
        assert found.gt_boxes.tensor.tolist() == [[4, 6, 20, 30]]
        assert rle["segmentation"] is mask and rle["bbox"] == [4, 6, 20, 30], "the record is not changed"

    def test_a_mask_without_a_pixel_keeps_the_files(self, record):
        point = annotation((3, 4, 9, 9), [[5.1, 5.1, 5.2, 5.1, 5.2, 5.2]])
        assert at_test(recompute_boxes=True)(record([point]))["instances"].gt_boxes.tensor.tolist() == [[3, 4, 9, 9]]


FLIP, OTHER = T.RandomFlip(prob=1.0), T.RandomFlip(prob=1.0, horizontal=False, vertical=True)


@pytest.mark.parametrize(
    ("augmentations", "variant"),
    [
        ([], "plain"),
        ([T.RandomFlip(prob=0.0)], "plain"),
        ([FLIP], "flipped"),
        ([FLIP, FLIP], "plain"),
        ([OTHER], None),
        ([FLIP, T.RandomBrightness(0.5, 0.5)], None),
    ],
    ids=["none", "not drawn", "mirrored", "and back", "upside down", "colour"],
)
def test_the_variant_of_an_image_for_a_cache(record, augmentations, variant):
    sample = train_mapper(augmentations=augmentations)(record())
    assert sample.get("cache_variant") == (variant and f"{variant}-64-RGB")
    if variant is not None:  # white left of the middle in the file
        assert (sample["image"][:, 0, 0] == (255 if variant == "plain" else 0)).all()


def test_at_a_test_the_variant_is_the_file_itself(record):
    assert at_test()(record())["cache_variant"] == "plain-64-RGB"


def test_the_variant_tells_all_that_the_mapper_did_to_the_image(record):
    mappers = [train_mapper(64), train_mapper(48), train_mapper(64, image_format="BGR")]
    assert [mapper(record())["cache_variant"] for mapper in mappers] == ["plain-64-RGB", "plain-48-RGB", "plain-64-BGR"]


@pytest.mark.parametrize("prob", [0.0, 1.0])
def test_a_cached_image_is_not_read_and_nothing_else_changes(record, prob, monkeypatch):
    many = [annotation((x, 5, x + 9, 20)) for x in range(0, 40, 4)] + [annotation((2, 30, 20, 50), "rle", (60, 100))]
    entry = record(many, 60, 100)
    mapper = train_mapper(48, [T.RandomFlip(prob)], max_instances=4, recompute_boxes=True)
    with seeded(3):
        expected = mapper(entry)
    asked = []
    mapper.is_cached = lambda sample: asked.append((sample["cache_variant"], "image" in sample)) or True
    with monkeypatch.context() as patched:
        patched.setattr("PIL.Image.open", lambda *_: pytest.fail("read"))
        with seeded(3):
            sample = mapper(entry)
        sample = pickle.loads(pickle.dumps(sample))
    assert asked == [("flipped-48-RGB" if prob else "plain-48-RGB", False)]
    assert sample.keys() == expected.keys() and sample["image"].shape == (3, 29, 48)  # 60 x 48 / 100 = 28.8
    found, before = sample["instances"], expected["instances"]
    assert torch.equal(found.gt_boxes.tensor, before.gt_boxes.tensor) and len(found) == 4
    assert torch.equal(bitmaps(found), bitmaps(before)) and found.image_size == before.image_size
    # Whoever needs the pixels after all has them, to the bit.
    assert torch.equal(sample["image"].to(torch.device("cpu")), expected["image"])
    mapper.is_cached = lambda sample: False
    with seeded(3):
        assert torch.equal(mapper(entry)["image"], expected["image"])


def test_where_the_annotations_have_no_size_an_image_is_read_all_the_same(record):
    entry = record()
    mapper = train_mapper(64)
    mapper.is_cached = lambda sample: pytest.fail("asked")
    del entry["height"], entry["width"]
    assert mapper(entry)["image"].dtype == torch.uint8


def test_an_image_that_is_not_cached_is_read_and_a_wrong_size_named(record):
    mapper = train_mapper(64)
    mapper.is_cached = lambda sample: False
    with pytest.raises(UserError, match=r"a\.png \(image id 7\): the file has 64 x 64 pixels .* say 65 x 64"):
        mapper({**record(), "width": 65})
    with pytest.raises(UserError, match="no such image file"):
        mapper({**record(), "file_name": "none.png"})
