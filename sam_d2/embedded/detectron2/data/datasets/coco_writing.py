"""Write a registered dataset as COCO's JSON."""

import datetime
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from iopath.common.file_io import file_lock

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, PolygonMasks

logger = logging.getLogger(__name__)


def convert_to_coco_dict(dataset_name: str) -> dict[str, Any]:
    """Return a registered dataset as the dict that COCO's JSON holds.

    Args:
        dataset_name: registered, with "thing_classes" in its metadata.

    Returns:
        "info", "images", "categories", "licenses", and "annotations" where there are any. Annotation ids
        count from 1; boxes are XYWH with three decimals; the area is the segmentation's, or else the box's.
        Category ids are the original ones where the metadata has "thing_dataset_id_to_contiguous_id".

    Raises:
        ValueError: a box is no row of four numbers.
        TypeError: a segmentation is neither polygons nor RLE.
    """
    records = DatasetCatalog.get(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    contiguous = metadata.get("thing_dataset_id_to_contiguous_id")
    original = (
        dict(enumerate(range(len(metadata.thing_classes))))
        if contiguous is None
        else {index: category for category, index in contiguous.items()}
    )
    logger.info("Converting dataset dicts into COCO format")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for position, record in enumerate(records):
        image = {
            "id": record.get("image_id", position),
            "width": int(record["width"]),
            "height": int(record["height"]),
            "file_name": str(record["file_name"]),
        }
        images.append(image)
        for annotation in record.get("annotations", []):
            category = original[annotation["category_id"]]
            annotations.append(_coco_annotation(annotation, len(annotations) + 1, image["id"], category))
    logger.info(f"Conversion finished, #images: {len(images)}, #annotations: {len(annotations)}")
    coco: dict[str, Any] = {
        "info": {
            "date_created": str(datetime.datetime.now()),
            "description": f"Dataset {dataset_name} in COCO format.",
        },
        "images": images,
        "categories": [{"id": original[i], "name": name} for i, name in enumerate(metadata.thing_classes)],
        "licenses": None,
    }
    return {**coco, "annotations": annotations} if annotations else coco


def _coco_annotation(annotation: dict[str, Any], annotation_id: int, image_id: Any, category: int) -> dict[str, Any]:
    box = annotation["bbox"]
    if isinstance(box, np.ndarray):
        if box.ndim != 1:
            raise ValueError(f"bbox has to be 1-dimensional. Got shape={box.shape}.")
        box = box.tolist()
    if len(box) != 4:
        raise ValueError(f"bbox must have 4 numbers (the embedded core has no rotated boxes). Got {box}.")
    box = BoxMode.convert(box, annotation["bbox_mode"], BoxMode.XYWH_ABS)
    result = {
        "id": annotation_id,
        "image_id": image_id,
        "bbox": [round(float(x), 3) for x in box],
        "area": float(_area(annotation, box)),
        "iscrowd": int(annotation.get("iscrowd", 0)),
        "category_id": int(category),
    }
    if "segmentation" in annotation:
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, dict) and isinstance(segmentation["counts"], bytes):
            segmentation = {**segmentation, "counts": segmentation["counts"].decode("ascii")}
        result["segmentation"] = segmentation
    return result


def _area(annotation: dict[str, Any], box: list[float]) -> float:
    """Return the area of the segmentation, or of the XYWH ``box`` without one, in pixels."""
    if "segmentation" not in annotation:
        return Boxes([BoxMode.convert(box, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)]).area()[0].item()
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        return PolygonMasks([segmentation]).area()[0].item()
    if isinstance(segmentation, dict):
        return mask_util.area(segmentation).item()
    raise TypeError(f"Unknown segmentation type {type(segmentation)}!")


def convert_to_coco_json(dataset_name: str, output_file: str, allow_cached: bool = True) -> None:
    """Write a registered dataset as a COCO JSON; several processes may ask for the same file.

    Args:
        dataset_name: as in :func:`convert_to_coco_dict`.
        output_file: its folder is made where it is missing.
        allow_cached: leave a file that exists as it is.
    """
    path = Path(output_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(str(path)):
        if path.exists() and allow_cached:
            logger.warning(
                f"Using previously cached COCO format annotations at '{path}'. "
                "You need to clear the cache file if your dataset has been modified."
            )
            return
        logger.info(f"Converting annotations of dataset '{dataset_name}' to COCO format ...")
        text = json.dumps(convert_to_coco_dict(dataset_name))
        unfinished = path.with_name(path.name + ".tmp")
        unfinished.write_text(text)
        unfinished.replace(path)
