"""What all mappers have in common: the image of a dataset dict, and its annotations as Instances."""

from __future__ import annotations

from typing import Any

import numpy as np

import detectron2.data.transforms as T
from detectron2.data import detection_utils
from detectron2.structures import Instances, PolygonMasks
from sam_d2.data.augmentations import PerspectiveTransform
from sam_d2.data.image import read_image, size_remedy
from sam_d2.errors import BadImageError


def read_annotated_image(record: dict[str, Any], image_format: str) -> np.ndarray:
    """Read the image of a dataset dict.

    Args:
        record: ``file_name``, and ``width`` and ``height`` as the annotations have them.
        image_format: ``RGB`` or ``BGR``.

    Returns:
        (H0, W0, 3) uint8.

    Raises:
        BadImageError: it cannot be read, or is of another size.
    """
    image = read_image(record["file_name"], image_format)
    try:
        detection_utils.check_image_size(record, image)
    except detection_utils.SizeMismatchError as error:
        height, width = image.shape[:2]
        raise BadImageError(
            f"{image_label(record)}: the file has {width} x {height} pixels (width x height, turned as its EXIF "
            f"orientation says), the annotations say {record['width']} x {record['height']}; "
            f"{size_remedy((record['width'], record['height']), (width, height))}."
        ) from error
    return image


def image_label(record: dict[str, Any]) -> str:
    """Return what messages call the image of a dataset dict."""
    return f"{record['file_name']} (image id {record.get('image_id')})"


def pop_instances(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Take the annotations out of a dataset dict and return those that are instances: not crowd, and with a mask."""
    return [
        annotation
        for annotation in record.pop("annotations", [])
        if not annotation.get("iscrowd", 0) and annotation.get("segmentation")
    ]


def mask_format(annotations: list[dict[str, Any]]) -> str:
    """Return Detectron2's name of a format for all masks of an image: one RLE makes bitmaps of the polygons too."""
    return "polygon" if all(isinstance(annotation["segmentation"], list) for annotation in annotations) else "bitmask"


def annotated_instances(
    annotations: list[dict[str, Any]], size: tuple[int, int], transforms: T.TransformList, masks: str
) -> Instances:
    """Return the annotations as Instances of an image of ``size`` (height, width) after ``transforms``.

    After a perspective the boxes are the masks': the bounds of a box's moved corners are looser.
    """
    moved = [
        detection_utils.transform_instance_annotations(_copied(annotation), transforms, size)
        for annotation in annotations
    ]
    instances = detection_utils.annotations_to_instances(moved, size, mask_format=masks)
    if not annotations:
        instances.gt_masks = PolygonMasks([])
    elif any(isinstance(transform, PerspectiveTransform) for transform in transforms.transforms):
        instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    return instances


def untouched_instances(annotations: list[dict[str, Any]], size: tuple[int, int]) -> Instances:
    """Return the annotations as Instances of the original frame of ``size`` (height, width)."""
    return annotated_instances(annotations, size, T.TransformList([]), mask_format(annotations))


def _copied(annotation: dict[str, Any]) -> dict[str, Any]:
    """Copy an annotation for the transforms, which work in place and would cut whole numbers off after a resize."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        segmentation = [np.array(polygon, dtype=np.float64) for polygon in segmentation]
    return {**annotation, "bbox": [float(edge) for edge in annotation["bbox"]], "segmentation": segmentation}
