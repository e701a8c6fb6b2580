"""Opening a COCO file of the size of train2017 as dataset dicts, against Detectron2's load_coco_json.

The file is made: 118,000 images and 860,000 annotations in a temporary folder, as compact as COCO's own. ``checked`` is
what a training does: every record and polygon is looked at. ``deferred`` looks at the ids alone, and at the rest when
it is read, which is more than Detectron2 does. The answers compare images, annotations, boxes, classes and polygons.
Detectron2's process has imported torch before it is measured, which is in its ``peak_mib`` and not in ``step_mib``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks import Benchmark, Measured, Ratio, measure
from benchmarks.embedded_core import environment as core
from benchmarks.embedded_core import peer

FOLDER = "SAM_D2_BENCHMARK_FOLDER"
IMAGES, ANNOTATIONS, CLASSES = 118_000, 860_000, 80
CHUNK = 20_000
SAMPLE = 97  # every so many images' annotations are compared
PEER, EMBEDDED = "Detectron2", "embedded"


def annotation_chunks(image_ids: np.ndarray, sizes: np.ndarray, random: np.random.Generator) -> Iterator[list[dict]]:
    """Yield annotations: stars of 3 to 400 corners, 29 on average, some of two parts, and one crowd in a hundred."""
    for begin in range(0, ANNOTATIONS, CHUNK):
        count = min(CHUNK, ANNOTATIONS - begin)
        rows = random.integers(0, len(image_ids), count)
        corners = np.clip(random.lognormal(3.1, 0.7, count).astype(int), 3, 400)
        radii = random.uniform(4, 0.3 * sizes[rows].min(axis=1))[:, None]
        centres = radii + random.uniform(0, 1, (count, 2)) * (sizes[rows] - 2 * radii)
        owner = np.repeat(np.arange(count), corners)
        begins = np.cumsum(corners) - corners
        angles = (np.arange(len(owner)) - begins[owner]) / corners[owner] * 2 * np.pi
        reach = radii[owner] * random.uniform(0.6, 1, (len(owner), 1))
        points = (centres[owner] + reach * np.stack((np.cos(angles), np.sin(angles)), axis=1)).round(2)
        low, high = np.minimum.reduceat(points, begins), np.maximum.reduceat(points, begins)
        boxes = np.concatenate((low, high - low), axis=1).round(2).tolist()
        numbers = np.split(points.ravel(), 2 * begins[1:])
        crowd = random.random(count) < 0.01
        halves = (random.random(count) < 0.12) & (corners >= 6)
        classes = random.integers(1, CLASSES + 1, count).tolist()
        chunk = []
        for row, (image, flat) in enumerate(zip(rows.tolist(), map(np.ndarray.tolist, numbers), strict=True)):
            width, height = sizes[image].tolist()
            half = len(flat) // 4 * 2
            segmentation: Any = [flat[:half], flat[half:]] if halves[row] else [flat]
            if crowd[row]:
                segmentation = {"counts": [1000, 50, width * height - 1050], "size": [height, width]}
            chunk.append(
                {
                    "segmentation": segmentation,
                    "area": boxes[row][2] * boxes[row][3] / 2,
                    "iscrowd": int(crowd[row]),
                    "image_id": int(image_ids[image]),
                    "bbox": boxes[row],
                    "category_id": classes[row],
                    "id": begin + row + 1,
                }
            )
        yield chunk


def write_file(folder: Path) -> None:
    """Write the dataset file, and an empty file for each image."""
    random = np.random.default_rng(0)
    ids = np.sort(random.choice(6 * IMAGES, IMAGES, replace=False))
    sizes = np.where(random.random((IMAGES, 1)) < 0.7, [[640, 480]], [[480, 640]])
    images = [
        {
            "license": 3, "file_name": f"{number:012d}.jpg", "height": height, "width": width, "id": number,
            "coco_url": f"http://images.cocodataset.org/train2017/{number:012d}.jpg",
            "date_captured": "2013-11-14 11:18:45",
        }
        for number, (width, height) in zip(ids.tolist(), sizes.tolist(), strict=True)
    ]  # fmt: skip
    categories = [{"supercategory": "thing", "id": number, "name": f"class {number}"} for number in range(1, 81)]
    (folder / "images").mkdir()
    for image in images:
        (folder / "images" / str(image["file_name"])).touch()
    with (folder / "annotations.json").open("wb") as file:
        file.write(b'{"images":' + msgspec.json.encode(images) + b',"annotations":[')
        for number, chunk in enumerate(annotation_chunks(ids, sizes, random)):
            file.write((b"," if number else b"") + msgspec.json.encode(chunk)[1:-1])
        file.write(b'],"categories":' + msgspec.json.encode(categories) + b"}")


@cache
def made_folder() -> tempfile.TemporaryDirectory:
    """Return the folder of the file, which is removed when the tool ends."""
    folder = tempfile.TemporaryDirectory(prefix="open_coco_")
    write_file(Path(folder.name))
    return folder


def environment(case: str) -> dict[str, str]:
    return {**(core(case) if case == PEER else {}), FOLDER: made_folder().name}


def answer(dicts: Sequence[dict[str, Any]]) -> list[float]:
    """Return numbers on all images, and on the annotations of some of them."""
    found = [annotation for record in dicts[::SAMPLE] for annotation in record["annotations"]]
    polygons = [item["segmentation"] for item in found if isinstance(item["segmentation"], list)]
    numbers = list(chain.from_iterable(chain.from_iterable(polygons)))
    facts = [
        len(dicts), sum(len(record["annotations"]) for record in dicts), len(found), *numbers[:1000], sum(numbers),
        *np.sum([item["bbox"] for item in found], axis=0), *np.sum([item["bbox"] for item in found[::2]], axis=0),
        *np.bincount([item["category_id"] for item in found], minlength=CLASSES),
        sum(item["id"] for item in found), sum(item["area"] for item in found), sum(map(len, polygons)),
    ]  # fmt: skip
    return list(map(float, facts))


def ours(check_annotations: bool) -> Measured:
    from sam_d2.data.dataset_file import load_dataset_file

    folder = Path(os.environ[FOLDER])
    read = partial(load_dataset_file, check_annotations=check_annotations)
    dataset, figures = measure(lambda: read(folder / "annotations.json", folder / "images"))
    return Measured(figures, answer(dataset.dataset_dicts))


def load_coco_json() -> Measured:
    import sam_d2  # noqa: F401  makes detectron2 importable
    from detectron2.data.datasets import load_coco_json as load

    folder = Path(os.environ[FOLDER])
    arguments = str(folder / "annotations.json"), str(folder / "images"), "open_coco"  # named: class indices
    dicts, figures = measure(lambda: load(*arguments, extra_annotation_keys=["id", "area"]))
    return Measured(figures, answer(dicts))


CASES: dict[str, Callable[[], Measured]] = {
    "deferred": partial(ours, False),
    "checked": partial(ours, True),
    PEER: load_coco_json,
    EMBEDDED: load_coco_json,
}
BENCHMARK = Benchmark(
    cases=CASES,
    ratios=(
        Ratio("seconds", "deferred", PEER, at_least=10.0),
        Ratio("cpu_seconds", "deferred", PEER),
        Ratio("peak_mib", "deferred", PEER, at_least=3.0),
        Ratio("step_mib", "deferred", PEER, at_least=3.0),
        Ratio("seconds", "checked", PEER, at_least=3.0),
        Ratio("cpu_seconds", "checked", PEER),
        Ratio("peak_mib", "checked", PEER, at_least=3.0),
        Ratio("step_mib", "checked", PEER, at_least=3.0),
        Ratio("seconds", EMBEDDED, PEER),
    ),
    same_answers=(("deferred", "checked", PEER, EMBEDDED),),
    tolerance=1e-12,
    environment=environment,
    peer=peer,
)
