"""The quickstart data set: generated aerial scenes of ice-wedge polygons, as PNG and COCO JSON.

The geometry is in :mod:`sam_d2.data.scene_geometry`, the painting in :mod:`sam_d2.data.scene_texture`.
"""

import contextlib
import json
import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from sam_d2.data.scene_geometry import draw_outlines
from sam_d2.data.scene_texture import HIGH_CENTRE, LOW_CENTRE, render_scene
from sam_d2.errors import UserError

CLASS_NAMES = ("low_centre", "high_centre")
GENERATOR_VERSION = 5  # raised by every change that alters a byte of what is written
_RECORD_NAME = "quickstart.json"
_SHORT_SIDE, _LONG_SIDE = 112, 160

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scene:
    """One generated image with its ground truth.

    Attributes:
        image: (H, W, 3) uint8, RGB; H and W are between 112 and 160.
        polygons: One outline (V, 2) float64 per instance: xy in the original frame, continuous pixels.
        classes: One index into ``CLASS_NAMES`` per instance.
    """

    image: np.ndarray
    polygons: list[np.ndarray]
    classes: list[int]


def make_scene(seed: int, index: int) -> Scene:
    """Generate one scene with 5 to 20 instances.

    Args:
        seed: Names a series of scenes; not negative.
        index: Number of the scene in the series; not negative. A scene does not depend on the others.

    Returns:
        The same scene for the same arguments, bit for bit.

    Raises:
        ValueError: An argument is negative.
    """
    rng = np.random.default_rng([seed, index])
    height, width = (int(side) for side in rng.integers(_SHORT_SIDE, _LONG_SIDE + 1, 2))
    if rng.random() < 0.2:
        width = height
    polygons = draw_outlines([seed, index], height, width)
    high = rng.random(len(polygons)) < rng.uniform(0.15, 0.85)
    classes = [HIGH_CENTRE if is_high else LOW_CENTRE for is_high in high]
    return Scene(render_scene(rng, polygons, classes, height, width), polygons, classes)


def write_scenes(folder: Path, *, seed: int = 0, num_train: int = 400, num_test: int = 60) -> None:
    """Write a data set of generated scenes in COCO's layout.

    The folder gets ``images/train``, ``images/test``, ``annotations/instances_train.json``,
    ``annotations/instances_test.json`` and ``quickstart.json``, the record of how it was made. All is
    written beside it and renamed at the end, so that a run that is killed leaves no half of it. A data set of
    an earlier call is replaced; one with the same record is left as it is. Processes may call this at once.

    Args:
        folder: Where the data set goes.
        seed: Fixes every byte; not negative. Training and test scenes have no seed in common.
        num_train: Number of training images.
        num_test: Number of test images.

    Raises:
        UserError: The folder holds files of another origin, or cannot be written.
        ValueError: The seed is negative.
    """
    record = _record(seed, num_train, num_test)
    if _is_complete(folder, record):
        return
    _check_replaceable(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        workshop = Path(tempfile.mkdtemp(prefix=f"{folder.name}.tmp-", dir=folder.parent))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error}); choose another folder") from error
    try:
        built = workshop / "built"
        _write_split(built, "train", seed=2 * seed, count=num_train)
        _write_split(built, "test", seed=2 * seed + 1, count=num_test)
        (built / _RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n")
        _publish(built, folder, retired=workshop / "retired", record=record)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def ensure_quickstart(folder: Path) -> Path:
    """Write the quickstart data set unless the folder has it, made by this version of the generator.

    Args:
        folder: Where the data set is or goes.

    Returns:
        The folder.

    Raises:
        UserError: The folder holds files of another origin, or cannot be written.
    """
    record = _record()
    if _is_complete(folder, record):
        logger.info("Quickstart scenes: using %s", folder)
    else:
        # Before a run's log is set up only warnings reach the terminal, and a silence this long looks like a fault.
        logger.log(
            logging.INFO if logger.isEnabledFor(logging.INFO) else logging.WARNING,
            "Quickstart scenes: writing %d training and %d test images to %s",
            record["num_train"],
            record["num_test"],
            folder,
        )
        write_scenes(folder)
    return folder


def _record(seed: int = 0, num_train: int = 400, num_test: int = 60) -> dict[str, int]:
    return {"generator": GENERATOR_VERSION, "seed": seed, "num_train": num_train, "num_test": num_test}


def _is_complete(folder: Path, record: dict[str, int]) -> bool:
    try:
        found = json.loads((folder / _RECORD_NAME).read_text())
    except (OSError, ValueError):
        return False
    return found == record and all(
        (folder / f"annotations/instances_{split}.json").is_file()
        and len(list((folder / "images" / split).glob("*.png"))) == record[f"num_{split}"]
        for split in ("train", "test")
    )


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace what the generator did not write."""
    is_empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not is_empty and not (folder / _RECORD_NAME).is_file():
        raise UserError(
            f"{folder}: holds files that are not generated scenes (no {_RECORD_NAME}); "
            "move them away or choose another folder"
        )


def _publish(built: Path, folder: Path, *, retired: Path, record: dict[str, int]) -> None:
    """Give the finished data set its name; where another process was faster, its equal data set stays."""
    if _is_complete(folder, record):
        return
    with contextlib.suppress(FileNotFoundError):
        folder.rename(retired)
    try:
        built.rename(folder)
    except OSError:
        if not _is_complete(folder, record):
            raise


def _write_split(root: Path, split: str, *, seed: int, count: int) -> None:
    image_folder = root / "images" / split
    image_folder.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        scene = make_scene(seed, index)
        height, width = scene.image.shape[:2]
        record = {"id": index + 1, "file_name": f"{index:06d}.png", "height": height, "width": width}
        images.append(record)
        annotations += _annotations(scene, image_id=index + 1, first_id=len(annotations) + 1)
        _, encoded = cv2.imencode(".png", cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR))
        (image_folder / record["file_name"]).write_bytes(encoded.tobytes())
    coco = {
        "info": {"description": f"Generated ice-wedge polygons, {split}", "version": str(GENERATOR_VERSION)},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name, "supercategory": "ice_wedge_polygon"}
            for number, name in enumerate(CLASS_NAMES, start=1)
        ],
    }
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(coco))


def _annotations(scene: Scene, *, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """COCO annotations of a scene; the area is that of pycocotools' mask, the box that of the polygon."""
    height, width = scene.image.shape[:2]
    annotations = []
    for number, (polygon, label) in enumerate(zip(scene.polygons, scene.classes, strict=True), start=first_id):
        flat = polygon.reshape(-1).tolist()
        left, top = polygon.min(axis=0).tolist()
        box_width, box_height = np.ptp(polygon, axis=0).round(2).tolist()
        annotations.append(
            {
                "id": number,
                "image_id": image_id,
                "category_id": label + 1,
                "segmentation": [flat],
                "area": float(coco_mask.area(coco_mask.frPyObjects([flat], height, width))[0]),
                "bbox": [left, top, box_width, box_height],
                "iscrowd": 0,
            }
        )
    return annotations
