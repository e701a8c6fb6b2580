"""Cases of detectron2.data: loading, registering and writing datasets."""

import contextlib
import json
import re
import tempfile
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
from answers import real_data
from inputs import HEIGHT, POLYGON, WIDTH, blocks, logged, text

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.data.datasets.coco import convert_to_coco_dict


def coco_file(folder):
    """A JSON with every oddity: gaps in ids, crowd, both kinds of RLE, bad polygons, stray annotations."""
    mask = np.asfortranarray(blocks() == 1, dtype=np.uint8)
    compressed = mask_util.encode(mask)
    compressed["counts"] = compressed["counts"].decode()
    uncompressed = {"size": [HEIGHT, WIDTH], "counts": [100, 50, HEIGHT * WIDTH - 150]}

    def annotation(i, image, category, segmentation, **more):
        box = [3.0, 4.0, 27.5, 29.0]
        return {
            "id": i, "image_id": image, "category_id": category, "bbox": box, "area": 9.0,
            "segmentation": segmentation, **more,
        }  # fmt: skip

    content = {
        "images": [
            {"id": 7, "file_name": "b.png", "height": HEIGHT, "width": WIDTH},
            {"id": 2, "file_name": "sub/a.png", "height": HEIGHT, "width": WIDTH},
            {"id": 9, "file_name": "c.png", "height": HEIGHT, "width": WIDTH},
        ],
        "categories": [{"id": 30, "name": "nut"}, {"id": 4, "name": "a name that is much too long"}],
        "annotations": [
            annotation(1, 7, 4, [POLYGON], iscrowd=0, mark="kept"),
            annotation(2, 7, 30, uncompressed, iscrowd=1),
            annotation(3, 7, 30, compressed, iscrowd=0),
            annotation(4, 2, 30, [[1, 2, 3, 4], [1, 2, 3, 4, 5], POLYGON]),
            annotation(5, 2, 30, [[1, 2, 3, 4]]),
            annotation(6, 2, 4, []),
            annotation(7, 99, 4, [POLYGON]),
            annotation(8, 9, 4, uncompressed, iscrowd=1),
        ],
    }
    path = Path(folder) / "instances.json"
    path.write_text(json.dumps(content))
    return str(path)


@contextlib.contextmanager
def registered(name, folder):
    register_coco_instances(name, {"note": 3}, coco_file(folder), folder)
    try:
        yield
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def case_coco_loading():
    with tempfile.TemporaryDirectory() as folder, registered("oddities", folder):
        path = coco_file(folder)
        plain = load_coco_json(path, "root", extra_annotation_keys=["mark"])
        named = DatasetCatalog.get("oddities")
        metadata = MetadataCatalog.get("oddities")
        return {
            "plain": text(plain),
            "named": text([{**record, "file_name": Path(record["file_name"]).name} for record in named]),
            "classes": metadata.thing_classes,
            "ids": metadata.thing_dataset_id_to_contiguous_id,
            "evaluator": metadata.evaluator_type,
            "note": metadata.note,
            "file_names": [record["file_name"] for record in plain],
        }


def case_coco_writing():
    with tempfile.TemporaryDirectory() as folder, registered("oddities", folder):
        content = convert_to_coco_dict("oddities")
        names = [image.pop("file_name") for image in content["images"]]
        return {
            "images": content["images"],
            "names": [Path(name).name for name in names],
            "annotations": text(content["annotations"]),
            "categories": content["categories"],
            "keys": sorted(content),
        }


def case_dataset_dicts():
    """Filtering and the facts that are logged: numbers, and the table of instances."""
    with tempfile.TemporaryDirectory() as folder, registered("oddities", folder), logged() as lines:
        records = get_detection_dataset_dicts("oddities")
        twice = get_detection_dataset_dicts(["oddities", "oddities"], filter_empty=False)
    lines = [(level, re.sub(r"\x1b\[\d*m|/\S+", "", message)) for level, message in lines]
    facts = [[level, *re.findall(r"\d+", message)] for level, message in lines]
    tables = [message.split("\n")[1:] for _, message in lines if "#instances" in message]
    return {
        "kept": [record["image_id"] for record in records],
        "all": [record["image_id"] for record in twice],
        "facts": facts,
        "tables": tables,
    }


def case_coco_tiny80():
    found = {}
    for split in ("train2017", "val2017"):
        root = real_data() / "coco_tiny80"
        path = root / "annotations" / f"instances_{split}.json"
        records = load_coco_json(str(path), "images", f"parity_coco_{split}")
        MetadataCatalog.remove(f"parity_coco_{split}")
        crowd = [a for record in records for a in record["annotations"] if a.get("iscrowd")]
        found[split] = {
            "images": len(records),
            "annotations": sum(len(record["annotations"]) for record in records),
            "crowd": len(crowd),
            "records": text(records),
        }
    return found
