"""Images that cannot be read, that are not what the file says, and that are in two places."""

import json
from collections import Counter

import cv2
import numpy as np
import pytest
from PIL import Image

from sam_d2.doctor.checkup import check_dataset
from sam_d2.doctor.columns import Columns
from sam_d2.doctor.images import read_images
from sam_d2.doctor.mend import mend
from sam_d2.doctor.mend_images import mend_images
from sam_d2.doctor.parts import Source

HEIGHT, WIDTH = 30, 40
EXIF_ORIENTATION = 0x0112


def noise(*shape, seed=7):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(folder, array, name="doctor_1.png", **options):
    Image.fromarray(array).save(folder / name, **options)


def wide(folder):
    save(folder, noise(HEIGHT, WIDTH).astype(np.uint16) * 200)


def turned(folder):
    """30 x 40 px as stored; orientation 6 turns it to 40 x 30, as the dataset file says."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    save(folder, noise(WIDTH, HEIGHT, 3), exif=exif)


def cut(folder):
    save(folder, noise(HEIGHT, WIDTH, 3))
    file = folder / "doctor_1.png"
    file.write_bytes(file.read_bytes()[:1500])


def four_bands(folder):
    """A TIFF of 16 bits under the name of the PNG."""
    cv2.imwrite(str(folder / "doctor_1.tif"), noise(HEIGHT, WIDTH, 4).astype(np.uint16) * 200)
    (folder / "doctor_1.tif").replace(folder / "doctor_1.png")


def deep_colours(folder):
    cv2.imwrite(str(folder / "doctor_1.png"), noise(HEIGHT, WIDTH, 3).astype(np.uint16) * 200)


CASES = {
    "truncated": (cut, {"image-truncated"}),
    "no image": (lambda folder: (folder / "doctor_1.png").write_bytes(b"<html>"), {"image-unreadable"}),
    "empty": (lambda folder: (folder / "doctor_1.png").write_bytes(b""), {"image-unreadable"}),
    "another size": (lambda folder: save(folder, noise(60, 80, 3)), {"image-size"}),
    "swapped": (lambda folder: save(folder, noise(WIDTH, HEIGHT, 3)), {"image-size"}),
    "alpha": (lambda folder: save(folder, noise(HEIGHT, WIDTH, 4)), {"image-alpha"}),
    "grey": (lambda folder: save(folder, noise(HEIGHT, WIDTH)), {"image-grey"}),
    "grey with alpha": (lambda folder: save(folder, noise(HEIGHT, WIDTH, 2)), {"image-grey", "image-alpha"}),
    "four bands": (four_bands, {"image-16-bit", "image-alpha"}),
    "16 bits": (wide, {"image-16-bit"}),
    "colours of 16 bits": (deep_colours, {"image-16-bit"}),
    "turned": (turned, {"image-exif"}),
}


@pytest.mark.parametrize("case", CASES)
def test_each_kind_of_image(case, coco, write, tmp_path):
    change, kinds = CASES[case]
    file = write(coco)
    change(tmp_path)
    assert check_dataset([Source("", file)]).findings == []  # without --images none is opened
    findings = check_dataset([Source("", file)], images=True).findings
    assert {(one.kind, one.image_id) for one in findings} == {(kind, 1) for kind in kinds}


def test_an_image_beyond_the_pixel_limit(coco, write, monkeypatch):
    file = write(coco)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH - 1)
    assert [one.kind for one in check_dataset([Source("", file)], images=True).findings] == ["image-too-large"] * 2
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH // 2 - 1)  # refused at twice that
    checkup = check_dataset([Source("", file)], images=True)
    assert [one.kind for one in checkup.findings] == ["image-refused"] * 2 and checkup.exit_code == 2


def test_a_swapped_size_is_mended_and_one_of_a_resized_image_is_not(coco, write, tmp_path):
    polygon = [25, 5, 35, 5, 35, 15, 25, 15]  # reaches beyond the 30 px that are recorded as the width
    coco["annotations"][0] |= {"segmentation": [polygon], "bbox": [25, 5, 10, 10]}
    coco["images"][0] |= {"width": HEIGHT, "height": WIDTH}
    file = write(coco)
    save(tmp_path, noise(60, 80, 3), "doctor_2.png")
    mended = mend(Source("", file), check_dataset([Source("", file)], images=True))
    first, second = mended.document["images"]
    assert (first["width"], first["height"]) == (WIDTH, HEIGHT)
    assert (second["width"], second["height"]) == (WIDTH, HEIGHT)
    assert [(one.kind, one.image_id) for one in mended.checkup.findings] == [("image-size", 2)]


@pytest.mark.parametrize("count", [0, 2])
def test_a_swapped_size_is_left_where_the_annotations_fit_either(count, coco, write):
    """The squares and triangles end at 30, 15; the file may have been turned after they were drawn."""
    coco["annotations"] = coco["annotations"][:count] + coco["annotations"][2:]
    coco["images"][0] |= {"width": HEIGHT, "height": WIDTH}
    file = write(coco)
    mended = mend(Source("", file), check_dataset([Source("", file)], images=True))
    assert mended.document["images"][0] == coco["images"][0] and not mended.counts
    assert [(one.kind, one.image_id) for one in mended.checkup.findings] == [("image-size", 1)]


@pytest.mark.parametrize(
    ("boxes", "with_masks", "mended"),
    [
        # in 30 x 40 px as recorded, which should be 40 x 30; XYWH, and read as XYXY where that is a box
        ([[5, 5, 30, 10]], False, False),  # to 35, 15; as XYXY 5 to 30: fits, so it may be that
        ([[5, 5, 30, 10], [8, 5, 28, 12], [6, 6, 30, 20]], False, False),  # each of them may be
        ([[25, 5, 10, 10]], False, False),  # to 35, 15; no XYXY, but one box alone
        ([[25, 5, 10, 10], [5, 5, 30, 10]], False, False),  # one of these and one of those
        ([[25, 5, 10, 10], [28, 8, 9, 9]], False, True),  # two
        ([[25, 5, 10, 10], [28, 8, 9, 9]], True, False),  # beside masks that fit: the boxes are wrong
    ],
)
def test_a_swapped_size_needs_more_than_a_box_that_may_be_wrong_itself(boxes, with_masks, mended, coco, write):
    coco["images"][0] |= {"width": HEIGHT, "height": WIDTH}
    segmentation = coco["annotations"][0]["segmentation"] if with_masks else None
    own = [{**coco["annotations"][0], "id": 10 + place, "bbox": box, "segmentation": segmentation}
           for place, box in enumerate(boxes)]  # fmt: skip
    coco["annotations"] = own + coco["annotations"][2:]
    file = write(coco)
    document = mend(Source("", file), check_dataset([Source("", file)], images=True)).document
    assert (document["images"][0]["width"] == WIDTH) == mended


def test_images_of_doubtful_size_are_mended_in_time_that_grows_with_the_file(coco, write, monkeypatch):
    """The owners of the annotations are gone through a fixed number of times, however many images are looked at."""
    for image in coco["images"]:
        del image["width"]
    file = write(coco)
    checkup = check_dataset([Source("", file)], images=True)
    passes = []

    class Owners(list):
        def __iter__(self):
            passes.append(1)
            return super().__iter__()

    part = checkup.parts[0]
    part.table.owners = Owners(part.table.owners)
    counts = Counter()
    assert mend_images(part, json.loads(file.read_bytes()), checkup.facts, counts) == {0, 1, 2, 3}
    assert counts == {"missing-key": 2} and len(passes) == 1


def test_which_masks_there_are_is_not_asked_anew_for_each_annotation(coco, write, monkeypatch):
    """Of two images with swapped sizes, each with two boxes: it is a look at all annotations of the file."""
    for image in coco["images"]:
        image |= {"width": HEIGHT, "height": WIDTH}
    file = write(coco)
    checkup = check_dataset([Source("", file)], images=True)
    asked = []
    has_mask = Columns.has_mask
    monkeypatch.setattr(Columns, "has_mask", lambda columns: (asked.append(1), has_mask(columns))[1])
    assert mend_images(checkup.parts[0], json.loads(file.read_bytes()), checkup.facts, Counter()) == {0, 1, 2, 3}
    assert len(asked) <= 1


def test_a_size_that_the_exif_orientation_swaps_is_left(coco, write, tmp_path):
    """The annotations may have been drawn on the image as stored: then its size is right and the turning is not."""
    coco["images"][0] |= {"width": HEIGHT, "height": WIDTH}
    file = write(coco)
    turned(tmp_path)
    mended = mend(Source("", file), check_dataset([Source("", file)], images=True))
    assert mended.document["images"][0]["width"] == HEIGHT
    assert "image-size" in {one.kind for one in mended.checkup.findings}


def test_nothing_is_clipped_to_a_size_that_is_in_doubt(coco, write, tmp_path):
    polygon = [[30, 5, 50, 5, 50, 15, 30, 15]]
    coco["annotations"][0] |= {"segmentation": polygon, "bbox": [30, 5, 20, 10], "area": 200}
    file = write(coco)
    save(tmp_path, noise(60, 80, 3))
    mended = mend(Source("", file), check_dataset([Source("", file)], images=True))
    assert mended.document["annotations"][0]["segmentation"] == polygon and not mended.counts


def test_a_missing_size_is_that_of_the_file(coco, write):
    del coco["images"][0]["width"]
    coco["images"][1]["height"] = "high"
    file = write(coco)
    assert not mend(Source("", file), check_dataset([Source("", file)])).counts  # the images were not read
    mended = mend(Source("", file), check_dataset([Source("", file)], images=True))
    assert mended.counts == {"missing-key": 1, "wrong-type": 1} and mended.checkup.findings == []


def test_the_same_image_in_two_files(coco, write, tmp_path):
    """By its path without reading it, by its pixels where another file holds them, however it is compressed."""
    train = write(coco, "train.json")
    pixels = np.asarray(Image.open(tmp_path / "doctor_2.png"))
    save(tmp_path, pixels, "copy_2.tif")
    save(tmp_path, noise(HEIGHT, WIDTH, 3, seed=9), "other.png")
    coco["images"][0]["file_name"] = "./doctor_1.png"
    coco["images"][1]["file_name"] = "copy_2.tif"
    test = write(coco, "test.json")
    sources = [Source("train", train), Source("test", test)]
    by_path = check_dataset(sources).findings
    assert [(one.kind, one.image_id, one.file) for one in by_path] == [("image-in-both", 1, test)]
    by_pixels = check_dataset(sources, images=True).findings
    assert [(one.kind, one.image_id) for one in by_pixels] == [("image-in-both", 1), ("image-in-both", 2)]
    assert "is the file of image 1 in train.json" in by_pixels[0].found
    assert "has the pixels of image 2 in train.json" in by_pixels[1].found


def test_the_same_image_twice_in_a_file(coco, write, tmp_path):
    file = write(coco)
    save(tmp_path, np.asarray(Image.open(tmp_path / "doctor_1.png")), "doctor_2.png", compress_level=0)
    (finding,) = check_dataset([Source("", file)], images=True).findings
    assert (finding.kind, finding.image_id) == ("image-twice", 2)


def test_classes_of_two_files(coco, write):
    train = write(coco, "train.json")
    coco["images"] = [{**one, "file_name": f"{one['id']}.png"} for one in coco["images"]]
    coco["categories"][1]["name"] = "disc"
    test = write(coco, "test.json")
    for name in ("1.png", "2.png"):
        save(test.parent, noise(HEIGHT, WIDTH, 3), name)
    kinds = [one.kind for one in check_dataset([Source("train", train), Source("test", test)]).findings]
    assert kinds == ["classes-differ"]


def test_a_class_that_is_tested_alone(coco, write, tmp_path):
    full = write(coco, "test.json")
    for one in coco["images"]:
        save(tmp_path, noise(HEIGHT, WIDTH, 3), name := f"train_{one['id']}.png")
        one["file_name"] = name
    coco["annotations"] = [one for one in coco["annotations"] if one["category_id"] == 1]
    findings = check_dataset([Source("train", write(coco, "train.json")), Source("test", full)]).findings
    assert [(one.kind, one.file.name) for one in findings] == [
        ("category-unused", "train.json"), ("class-not-trained", "test.json")
    ]  # fmt: skip


def test_an_image_is_read_once(tmp_path):
    save(tmp_path, noise(HEIGHT, WIDTH, 3))
    path = tmp_path / "doctor_1.png"
    facts = read_images([path, path])
    assert list(facts) == [path] and facts[path].size == (WIDTH, HEIGHT)
