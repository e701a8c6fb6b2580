"""Properties: sound scenes have no finding, what is mended stays mended, outlines cross and are clipped as defined."""

import json
import random

import numpy as np
import pytest
from pycocotools import mask as mask_util

from sam_d2.data.scenes import write_scenes
from sam_d2.doctor import masks
from sam_d2.doctor.checkup import check_dataset
from sam_d2.doctor.clip import clip_polygon
from sam_d2.doctor.columns import make_columns
from sam_d2.doctor.masks import crossing_polygons
from sam_d2.doctor.mend import mend
from sam_d2.doctor.parts import Source, read_part


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "made"
    write_scenes(folder, seed=5, num_train=6, num_test=3)
    return folder


def sources(folder):
    return [
        Source(part, folder / f"annotations/instances_{part}.json", (folder / f"images/{part}",))
        for part in ("train", "test")
    ]


def test_generated_scenes_are_sound(scenes):
    checkup = check_dataset(sources(scenes), images=True)
    assert checkup.findings == [] and checkup.exit_code == 0
    assert sum(len(part.images) for part in checkup.parts) == len(checkup.facts) == 9


def damage(content: dict, chooser: random.Random) -> None:
    """Do to some annotations what the doctor mends."""
    images = {one["id"]: one for one in content["images"]}
    for raw in content["annotations"]:
        x, y, width, height = raw["bbox"]
        image = images[raw["image_id"]]
        kind = chooser.choice(["none", "none", "area", "id", "empty", "box", "form", "short", "out", "copy", "flat"])
        if kind == "area":
            raw["area"] = chooser.choice([None, -3, float("nan"), width * height, "12"])
        elif kind == "id":
            raw["id"] = chooser.choice([0, 1, "x"])
        elif kind == "empty":
            raw["segmentation"] = []
        elif kind == "box":
            raw["bbox"] = chooser.choice(
                [None, [x, y, 0, 0], [x, float("nan"), width, height], [x, y, width + 900, height]]
            )
        elif kind == "form":
            raw["bbox"] = [x, y, x + width, y + height]
        elif kind == "short":
            raw["segmentation"].append([1.0, 1.0, 2.0, 2.0])
        elif kind == "out":
            # mirrored outwards at the right border, and back again by clipping
            shift = image["width"] - x - width / 2
            raw["segmentation"] = [[one + shift * (place % 2 == 0) for place, one in enumerate(raw["segmentation"][0])]]
            raw["bbox"] = [x + shift, y, width, height]
        elif kind == "copy":
            content["annotations"].append({**raw, "id": raw["id"]})
            break
        elif kind == "flat":
            raw["segmentation"] = raw["segmentation"][0]


@pytest.mark.parametrize("seed", range(8))
def test_what_is_mended_is_no_finding_of_the_copy(seed, scenes, tmp_path):
    source = sources(scenes)[0]
    content = json.loads(source.json_file.read_text())
    damage(content, random.Random(seed))
    file = tmp_path / "damaged.json"
    file.write_text(json.dumps(content))
    source = Source("", file, source.image_roots)
    checkup = check_dataset([source])
    assert checkup.exit_code > 0
    mended = mend(source, checkup)
    left = {finding.kind for finding in mended.checkup.findings}
    assert mended.counts and not left - {"mask-absent", "box-far", "polygon-all-outside", "box-all-outside"}, left
    assert not left & set(mended.counts)

    copy = tmp_path / "copy.json"
    copy.write_bytes(mended.content())
    again = Source("", copy, source.image_roots)
    checked = check_dataset([again])
    assert [(one.kind, one.annotation_id) for one in checked.findings] == [
        (one.kind, one.annotation_id) for one in mended.checkup.findings
    ]
    assert mend(again, checked).content() == mended.content()


def crosses(polygon: np.ndarray) -> bool:
    """Every two sides, one at a time: they cross where each has its ends on both sides of the other's line."""

    def turn(a, b, c):
        return np.sign((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))

    sides = list(zip(polygon, np.roll(polygon, -1, axis=0), strict=True))
    return any(
        turn(a, b, c) * turn(a, b, d) < 0 and turn(c, d, a) * turn(c, d, b) < 0
        for place, (a, b) in enumerate(sides) for c, d in sides[place + 1 :]
    )  # fmt: skip


@pytest.mark.parametrize("long", [False, True])
def test_crossing_outlines_are_those_that_comparing_every_two_sides_finds(long, tmp_path, monkeypatch):
    if long:  # the way of outlines of more than a thousand sides, some pairs at a time
        for name, value in {"_LONG": 0, "_NEAREST": 0, "_CHUNK": 3}.items():
            monkeypatch.setattr(masks, name, value)
    generator = np.random.default_rng(0)
    polygons = [generator.integers(0, 30, (int(count), 2)).tolist() for count in generator.integers(3, 9, 300)]
    angles = np.sort(generator.random((60, 12)) * 2 * np.pi, axis=1)
    polygons += [np.stack((15 + 9 * np.cos(one), 15 + 9 * np.sin(one)), axis=1).tolist() for one in angles]
    annotations = [
        {"id": number + 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 30, 30],
         "segmentation": [np.array(one).reshape(-1).tolist()]}
        for number, one in enumerate(polygons)
    ]  # fmt: skip
    image = {"id": 1, "file_name": "a.png", "width": 30, "height": 30}
    file = tmp_path / "polygons.json"
    content = {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}
    file.write_text(json.dumps(content))
    found, unknown = crossing_polygons(make_columns(read_part(Source("", file)).table))
    expected = [number for number, one in enumerate(polygons) if crosses(np.array(one, dtype=float))]
    assert list(found) == expected and unknown == []
    for number, corner in found.items():
        assert list(corner) in np.array(polygons[number], dtype=float).tolist()
    assert 50 < len(expected) < 290 and not set(expected) & set(range(300, 360))  # convex ones cross nowhere


def test_a_polygon_that_has_crossed_is_not_looked_at_further(monkeypatch):
    """A zigzag of 2,000 sides that all overlap and cross, which each with each are 2 million pairs of sides."""
    y = np.random.default_rng(2).permutation(2000).astype(float)
    starts = np.stack((np.tile([0.0, 100.0], 1000), y), axis=1)
    compared = []
    apart = masks._apart
    monkeypatch.setattr(masks, "_apart", lambda line, side: (compared.append(len(line[0])), apart(line, side))[1])
    crossing = masks._crossing_sides(starts, np.roll(starts, -1, axis=0), np.full(2000, 3))
    assert len(crossing) and sum(compared) < 10 * 2000


@pytest.mark.parametrize("angle", [0, 0.3, np.pi / 2])
@pytest.mark.parametrize(("move", "crosses"), [((0, 0), False), ((300, 0), False), ((0, 10), True)])
def test_a_long_outline_is_checked_in_time_that_grows_with_it(move, crosses, angle, monkeypatch):
    """A comb of teeth of 1000 px, 0.1 px apart, closed far behind them: each with each would be 50 million pairs.

    A tip is moved along its tooth, where it crosses nothing, or over those of 100 others.
    """
    teeth = np.stack((np.tile([0.0, 1000.0], 5000), np.linspace(0, 1000, 10_000)), axis=1)
    teeth[5001] += move
    points = np.concatenate((teeth, [[2000, 1000], [2000, -1], [0, -1]]))
    points = points @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    compared = []
    pairs = masks._crossing_pairs
    monkeypatch.setattr(masks, "_crossing_pairs", lambda one, *rest: (compared.append(len(one)), pairs(one, *rest))[1])
    side = masks._crossing_of_long(points, np.roll(points, -1, axis=0))
    assert (side >= 0) == crosses and sum(compared) < 30 * len(points)


def test_a_long_outline_with_too_many_pairs_has_its_nearest_sides_compared():
    """Of noise every side crosses a third of the others or so, and the one that is named does."""
    points = np.random.default_rng(3).random((6000, 2)) * 1000
    after = np.roll(points, -1, axis=0)
    side = masks._crossing_of_long(points, after)
    assert side is not None and 0 <= side < 6000
    one = (points[[side]], after[[side]])
    assert (masks._apart(one, (points, after)) & masks._apart((points, after), one)).any()


def star(count: int) -> np.ndarray:
    """An outline that goes out from near the centre and back: its sides are close together from wherever one looks."""
    angles = np.arange(count) / count * 2 * np.pi
    radii = np.tile([1.0, 12.0], count // 2)
    return np.stack((20 + radii * np.cos(angles), 15 + radii * np.sin(angles)), axis=1)


def test_an_outline_that_would_take_too_long_is_said_to_be_unchecked(coco, write):
    """No two sides of a star cross. Of 1,000 sides all pairs are looked at, of more than that half as many per side."""
    found = []
    for count in (1000, 6000):
        coco["annotations"][0] |= {"segmentation": [star(count).reshape(-1).tolist()], "bbox": [8, 3, 24, 24]}
        findings = check_dataset([Source("", write(coco))]).findings
        found.append([one for one in findings if one.kind.startswith("polygon")])
    (unchecked,) = found[1]
    assert found[0] == [] and (unchecked.kind, unchecked.severity) == ("polygon-unchecked", "warning")
    assert (unchecked.image_id, unchecked.annotation_id) == (1, 1) and "6,000 points" in unchecked.found


def test_a_clipped_polygon_is_what_of_it_lies_in_the_image():
    """Drawn by pycocotools on a canvas with a margin, the part inside is the same but for pixels on the outline."""
    generator = np.random.default_rng(1)
    width, height, margin = 50, 40, 30
    for _ in range(200):
        angles = np.sort(generator.random(9) * 2 * np.pi)
        centre, radius = generator.uniform(-10, 60, 2), generator.uniform(5, 30)
        polygon = (centre + radius * np.stack((np.cos(angles), np.sin(angles)), axis=1)).clip(-29, 75)
        whole = mask_util.frPyObjects([(polygon + margin).reshape(-1).tolist()], height + 80, width + 80)
        inside = mask_util.decode(whole)[margin : margin + height, margin : margin + width, 0]
        clipped = clip_polygon(polygon.reshape(-1).tolist(), width, height)
        if not clipped:
            assert inside.sum() <= height + width
            continue
        drawn = mask_util.decode(mask_util.frPyObjects([clipped], height, width))[:, :, 0]
        assert (drawn != inside).sum() <= 2 * len(polygon)
        points = np.array(clipped).reshape(-1, 2)
        assert (points >= 0).all() and (points <= [width, height]).all()


def test_a_polygon_clipped_by_hand():
    # A diamond around the corner of the image at (0, 0): the triangle of its quarter inside stays.
    assert sorted(zip(*[iter(clip_polygon([-4, 0, 0, -4, 4, 0, 0, 4], 10, 10))] * 2, strict=True)) == [
        (0, 0), (0, 4), (4, 0)
    ]  # fmt: skip
    assert clip_polygon([20, 20, 30, 20, 30, 30], 10, 10) == []
    assert clip_polygon([1, 1, 3, 1, 3, 4], 10, 10) == [1, 1, 3, 1, 3, 4]


def test_polygons_that_overlap_are_among_those_that_may(tmp_path):
    """Each row has up to four boxes as polygons; every two of a row are compared here."""
    generator = np.random.default_rng(4)
    rows = []
    for count in generator.integers(1, 5, 200):
        corners = generator.integers(0, 20, (count, 2))
        rows.append(np.concatenate((corners, corners + generator.integers(1, 9, (count, 2))), axis=1).tolist())
    annotations = [
        {"id": number + 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 30, 30],
         "segmentation": [[x, y, right, y, right, down, x, down] for x, y, right, down in boxes]}
        for number, boxes in enumerate(rows)
    ]  # fmt: skip
    file = tmp_path / "boxes.json"
    image = {"id": 1, "file_name": "a.png", "width": 30, "height": 30}
    content = {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}
    file.write_text(json.dumps(content))
    may = masks._may_overlap(make_columns(read_part(Source("", file)).table)).tolist()
    do = [
        number for number, boxes in enumerate(rows)
        if any(max(a[0], b[0]) < min(a[2], b[2]) and max(a[1], b[1]) < min(a[3], b[3])
               for place, a in enumerate(boxes) for b in boxes[:place])
    ]  # fmt: skip
    alone = {number for number, boxes in enumerate(rows) if len(boxes) == 1}
    assert len(do) > 20 and set(do) <= set(may) and not alone & set(may) and len(may) < 180
