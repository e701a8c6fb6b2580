"""The generated quickstart scenes: exact ground truth, the same bytes everywhere, nothing half-written."""

import hashlib
import itertools
import json
import logging
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import sam_d2
from sam_d2.data import scenes
from sam_d2.data.scene_geometry import clip_to_image, polygon_area
from sam_d2.data.scene_texture import HIGH_CENTRE, LOW_CENTRE
from sam_d2.errors import UserError

# pycocotools under numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SMALL = {"seed": 3, "num_train": 4, "num_test": 2}


@pytest.fixture(scope="module")
def sample():
    return [scenes.make_scene(0, index) for index in range(40)]


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "quickstart"
    scenes.write_scenes(folder, **SMALL)
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def coco_decode(polygon, height, width):
    return coco_mask.decode(coco_mask.frPyObjects([polygon.reshape(-1).tolist()], height, width))[..., 0]


def even_odd_raster(polygon, height, width):
    """Which pixel centres a ray to the right leaves through an odd number of edges."""
    y, x = np.mgrid[:height, :width] + 0.5
    crossings = np.zeros((height, width), dtype=int)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y0 != y1:
            crossings += ((y0 <= y) != (y1 <= y)) & (x < x0 + (y - y0) / (y1 - y0) * (x1 - x0))
    return crossings % 2 == 1


def luminance(scene):
    return scene.image.astype(np.float64) @ [0.299, 0.587, 0.114]


def test_a_triangle_is_cut_at_the_image_edge():
    # The hypotenuse from (6, 0) to (0, 6) leaves a 4 x 4 image at (4, 2) and (2, 4): the square less the
    # corner triangle with legs 2, 16 - 2 = 14.
    triangle = np.array([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0]])
    part = clip_to_image(triangle, 4, 4)
    assert {tuple(vertex) for vertex in part} == {(0, 0), (4, 0), (4, 2), (2, 4), (0, 4)}
    assert polygon_area(part) == 14
    assert polygon_area(triangle) == 18
    assert len(clip_to_image(triangle + 10, 4, 4)) == 0


def test_the_same_arguments_give_the_same_scene():
    first, second = scenes.make_scene(7, 5), scenes.make_scene(7, 5)
    np.testing.assert_array_equal(first.image, second.image)
    assert [p.tolist() for p in first.polygons] == [p.tolist() for p in second.polygons]
    assert first.classes == second.classes


def test_scenes_differ_from_each_other():
    images = {scenes.make_scene(seed, index).image.tobytes() for seed, index in itertools.product(range(3), range(3))}
    assert len(images) == 9


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="negative"):
        scenes.make_scene(-1, 0)


def test_images_have_all_formats(sample):
    sizes = np.array([scene.image.shape[:2] for scene in sample])
    assert all(scene.image.dtype == np.uint8 and scene.image.shape[2] == 3 for scene in sample)
    assert sizes.min() >= 112
    assert sizes.max() <= 160
    assert (sizes[:, 0] < sizes[:, 1]).any()
    assert (sizes[:, 0] > sizes[:, 1]).any()
    assert (sizes[:, 0] == sizes[:, 1]).any()


def test_each_image_has_5_to_20_instances_of_both_classes(sample):
    counts = [len(scene.polygons) for scene in sample]
    assert min(counts) >= 5
    assert max(counts) <= 20
    assert max(counts) - min(counts) >= 8
    assert all(len(scene.classes) == len(scene.polygons) for scene in sample)
    classes = np.concatenate([scene.classes for scene in sample])
    assert 0.3 < (classes == HIGH_CENTRE).mean() < 0.7
    assert 0.3 < (classes == LOW_CENTRE).mean() < 0.7


def test_polygons_lie_in_the_image_and_apart(sample):
    for scene in sample:
        height, width = scene.image.shape[:2]
        total = np.zeros((height, width), dtype=int)
        for polygon in scene.polygons:
            assert polygon.min() >= 0
            assert polygon[:, 0].max() <= width
            assert polygon[:, 1].max() <= height
            total += coco_decode(polygon, height, width)
        assert total.max() == 1, "troughs of at least a pixel part the polygons"


def test_the_box_is_a_poor_mask(sample):
    """About 0.65 mean IoU: a model has something to learn, and the box is yet a fair prompt."""
    overlaps = []
    for scene in sample:
        for polygon in scene.polygons:
            raster = even_odd_raster(polygon, *scene.image.shape[:2])
            (left, top), (right, bottom) = polygon.min(axis=0), polygon.max(axis=0)
            overlaps.append(raster.sum() / ((right - left) * (bottom - top)))
    thresholds = np.arange(10) * 0.05 + 0.5
    right_share = np.mean([(np.array(overlaps) >= threshold).mean() for threshold in thresholds])
    assert 0.58 < np.mean(overlaps) < 0.70
    assert np.mean(np.array(overlaps) >= 0.5) > 0.85
    assert 0.2 < right_share < 0.42


@pytest.mark.parametrize("heading", [(1, 0), (-1, 0), (0, 1), (0, -1)])
def test_the_edge_in_the_picture_lies_on_the_polygon(sample, heading):
    """Across the outline, on each side, the mean brightness falls most steeply within half a pixel of it."""
    offsets = np.arange(-3, 3.25, 0.5)
    profiles = []
    for scene in sample:
        height, width = scene.image.shape[:2]
        grey = luminance(scene)
        for polygon in scene.polygons:
            tangent = np.roll(polygon, -1, axis=0) - np.roll(polygon, 1, axis=0)
            normal = np.stack([tangent[:, 1], -tangent[:, 0]], axis=1)
            normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
            used = ((polygon > 5) & (polygon < [width - 5, height - 5])).all(axis=1) & (normal @ heading > 0.8)
            if used.any():
                # OpenCV samples at pixel centres, which lie at halves.
                points = polygon[used, None] + offsets[:, None] * normal[used, None] - 0.5
                profiles.append(cv2.remap(grey, points.astype(np.float32), None, cv2.INTER_LINEAR))
    profile = np.concatenate(profiles).mean(axis=0)
    steepest = offsets[np.argmin(np.diff(profile))] + 0.25
    assert abs(steepest) <= 0.5
    assert profile[offsets == -1.5].item() > 1.5 * profile[offsets == 1.5].item()


def test_the_classes_can_be_seen(sample):
    """Low centres are darker than their rims, high centres lighter than their margins, nearly always."""
    agrees = []
    for scene in sample:
        grey = luminance(scene)
        for polygon, label in zip(scene.polygons, scene.classes, strict=True):
            depth = cv2.distanceTransform(coco_decode(polygon, *grey.shape), cv2.DIST_L2, 5)
            depth /= depth.max()
            difference = grey[depth > 0.65].mean() - grey[(depth > 0.1) & (depth < 0.35)].mean()
            agrees.append((difference > 0) == (label == HIGH_CENTRE))
    assert np.mean(agrees) > 0.95


def test_the_bytes_do_not_depend_on_the_process(small_folder, tmp_path):
    other = tmp_path / "quickstart"
    call = f"write_scenes(Path({str(other)!r}), **{SMALL})"
    program = f"from pathlib import Path; from sam_d2.data.scenes import write_scenes; {call}"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(sam_d2.__file__).parents[1])
    assert len(digests(small_folder)) == 4 + 2 + 2 + 1
    assert digests(other) == digests(small_folder)


def test_an_image_does_not_depend_on_the_number_of_images(small_folder, tmp_path):
    scenes.write_scenes(tmp_path / "fewer", seed=SMALL["seed"], num_train=2, num_test=1)
    fewer, more = digests(tmp_path / "fewer"), digests(small_folder)
    names = [name for name in fewer if name.endswith(".png")]
    assert len(names) == 3
    assert all(fewer[name] == more[name] for name in names)


def test_training_and_test_scenes_differ(small_folder):
    values = [value for name, value in digests(small_folder).items() if name.endswith(".png")]
    assert len(set(values)) == 6


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_json_is_coco(small_folder, split):
    coco = COCO(small_folder / f"annotations/instances_{split}.json")
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["low_centre", "high_centre"]
    assert coco.getCatIds() == [1, 2]
    assert len(coco.imgs) == SMALL[f"num_{split}"]
    assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
    for image in coco.imgs.values():
        pixels = cv2.imread(str(small_folder / "images" / split / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3)
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        assert annotation["area"] == mask.sum()
        assert annotation["iscrowd"] == 0
        x, y, width, height = annotation["bbox"]
        rows, columns = np.nonzero(mask)
        pixel_edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose([x, y, x + width, y + height], pixel_edges, atol=1.0)


def test_the_png_holds_the_scene_in_rgb(small_folder):
    bgr = cv2.imread(str(small_folder / "images/train/000001.png"))
    np.testing.assert_array_equal(bgr[..., ::-1], scenes.make_scene(2 * SMALL["seed"], 1).image)


def break_after(monkeypatch, calls):
    remaining = iter(range(calls))
    make_scene = scenes.make_scene

    def broken(seed, index):
        if next(remaining, None) is None:
            raise KeyboardInterrupt
        return make_scene(seed, index)

    monkeypatch.setattr(scenes, "make_scene", broken)


def test_a_run_that_dies_leaves_nothing(tmp_path, monkeypatch):
    break_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        scenes.write_scenes(tmp_path / "quickstart", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_dies_leaves_the_earlier_data_set(tmp_path, monkeypatch):
    folder = tmp_path / "quickstart"
    scenes.write_scenes(folder, seed=1, num_train=1, num_test=1)
    before = digests(folder)
    break_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        scenes.write_scenes(folder, **SMALL)
    assert digests(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


def test_another_seed_replaces_the_data_set(small_folder, tmp_path):
    folder = tmp_path / "quickstart"
    scenes.write_scenes(folder, seed=1, num_train=1, num_test=1)
    scenes.write_scenes(folder, **SMALL)
    assert digests(folder) == digests(small_folder)
    assert list(tmp_path.iterdir()) == [folder]


def test_two_writers_at_once_leave_one_data_set(small_folder, tmp_path):
    folder = tmp_path / "quickstart"
    workers = [threading.Thread(target=scenes.write_scenes, args=(folder,), kwargs=SMALL) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert digests(folder) == digests(small_folder)
    assert list(tmp_path.iterdir()) == [folder]


def test_quickstart_is_written_once_and_again_when_it_is_out_of_date(tmp_path, monkeypatch):
    folder = tmp_path / "data" / "quickstart"
    written = []

    def fake_split(root, split, *, seed, count):
        written.append(split)
        (root / "images" / split).mkdir(parents=True)
        (root / "annotations").mkdir(exist_ok=True)
        (root / f"annotations/instances_{split}.json").write_text("{}")
        for index in range(count):
            (root / "images" / split / f"{index}.png").touch()

    monkeypatch.setattr(scenes, "_write_split", fake_split)
    assert scenes.ensure_quickstart(folder) == folder
    assert scenes.ensure_quickstart(folder) == folder
    assert written == ["train", "test"]
    record = json.loads((folder / "quickstart.json").read_text())
    assert record == {"generator": scenes.GENERATOR_VERSION, "seed": 0, "num_train": 400, "num_test": 60}

    (folder / "quickstart.json").write_text(json.dumps({**record, "generator": 0}))
    scenes.ensure_quickstart(folder)
    assert len(written) == 4
    next((folder / "images/train").iterdir()).unlink()
    scenes.ensure_quickstart(folder)
    assert len(written) == 6


@pytest.mark.parametrize(("level", "shown"), [(logging.NOTSET, "WARNING"), (logging.INFO, "INFO")])
def test_the_first_write_is_said_even_before_a_log_is_set_up(level, shown, tmp_path, monkeypatch, caplog):
    log = logging.getLogger("made.scenes")  # without a level of its own it has the root's, which lets warnings pass
    monkeypatch.setattr(log, "level", level)
    log.manager._clear_cache()
    monkeypatch.setattr(scenes, "logger", log)
    monkeypatch.setattr(scenes, "write_scenes", lambda folder: None)
    scenes.ensure_quickstart(tmp_path / "quickstart")
    assert [record.levelname for record in caplog.records] == [shown]
    assert "writing 400 training and 60 test images" in caplog.text


def test_files_of_another_origin_are_never_replaced(tmp_path):
    folder = tmp_path / "quickstart"
    folder.mkdir()
    (folder / "mine.png").touch()
    with pytest.raises(UserError, match=r"quickstart: holds files that are not generated scenes.*move them"):
        scenes.ensure_quickstart(folder)
    assert [path.name for path in folder.iterdir()] == ["mine.png"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/quickstart: cannot be written.*choose another folder"):
        scenes.write_scenes(tmp_path / "file" / "quickstart", **SMALL)
