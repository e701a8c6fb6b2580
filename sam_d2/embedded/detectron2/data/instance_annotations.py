"""Annotations of instances: moved along with the image, and collected into :class:`Instances`."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from fvcore.transforms.transform import Transform, TransformList

from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks, polygons_to_bitmask

from .catalog import MetadataCatalog


def transform_instance_annotations(
    annotation: dict[str, Any],
    transforms: Transform | Sequence[Transform],
    image_size: tuple[int, int],
    *,
    keypoint_hflip_indices: Any = None,
) -> dict[str, Any]:
    """Move the box and the segmentation of one instance along with its image, in place.

    Args:
        annotation: "bbox" and "bbox_mode", perhaps "segmentation": a list of polygons, or COCO's RLE.
        transforms: what was done to the image.
        image_size: (height, width) of the transformed image.
        keypoint_hflip_indices: there for callers written for Detectron2; the embedded core has no keypoints.

    Returns:
        The same dict: the box as a float array XYXY clipped to the image, polygons as a list of arrays (2P,),
        RLE as an array (H, W).

    Raises:
        ValueError: the segmentation is of another type.
        NotImplementedError: the annotation has keypoints.
    """
    if "keypoints" in annotation:
        raise NotImplementedError("The embedded Detectron2 core has no keypoints: remove them, or install Detectron2.")
    if not isinstance(transforms, Transform):
        transforms = TransformList(list(transforms))
    height, width = image_size
    box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    box = transforms.apply_box(np.array([box]))[0].clip(min=0)
    annotation["bbox"] = np.minimum(box, [width, height, width, height])
    annotation["bbox_mode"] = BoxMode.XYXY_ABS
    if "segmentation" in annotation:
        annotation["segmentation"] = _transform_segmentation(annotation["segmentation"], transforms, image_size)
    return annotation


def _transform_segmentation(segmentation: Any, transforms: Transform, image_size: tuple[int, int]) -> Any:
    if isinstance(segmentation, list):
        rings = [np.asarray(ring).reshape(-1, 2) for ring in segmentation]
        return [ring.reshape(-1) for ring in transforms.apply_polygons(rings)]
    if isinstance(segmentation, dict):
        mask = transforms.apply_segmentation(mask_util.decode(segmentation))
        assert mask.shape[:2] == tuple(image_size), f"RLE gives a mask {mask.shape}, the image is {image_size}"
        return mask
    raise ValueError(
        f"Cannot transform segmentation of type '{type(segmentation)}'! It must be a list of polygons"
        " or COCO's RLE as a dict."
    )


def annotations_to_instances(
    annos: list[dict[str, Any]], image_size: tuple[int, int], mask_format: str = "polygon"
) -> Instances:
    """Collect the annotations of one image.

    Args:
        annos: each with "bbox", "bbox_mode", "category_id", perhaps "segmentation".
        image_size: (height, width) of the image that the annotations belong to.
        mask_format: "polygon" or "bitmask".

    Returns:
        Instances with ``gt_boxes``, ``gt_classes`` (int64), and ``gt_masks`` where the first annotation has a
        segmentation: PolygonMasks, or BitMasks.

    Raises:
        ValueError: a segmentation cannot be brought into the format.
    """
    instances = Instances(image_size)
    boxes = [BoxMode.convert(anno["bbox"], anno["bbox_mode"], BoxMode.XYXY_ABS) for anno in annos]
    instances.gt_boxes = Boxes(np.stack(boxes) if boxes else np.zeros((0, 4)))
    instances.gt_classes = torch.tensor([int(anno["category_id"]) for anno in annos], dtype=torch.int64)
    if annos and "segmentation" in annos[0]:
        segmentations = [anno["segmentation"] for anno in annos]
        if mask_format == "polygon":
            instances.gt_masks = _polygon_masks(segmentations)
        else:
            assert mask_format == "bitmask", mask_format
            masks = [np.array(_bitmap(segm, image_size), order="C") for segm in segmentations]
            instances.gt_masks = BitMasks(torch.stack([torch.from_numpy(mask) for mask in masks]))
    return instances


def _polygon_masks(segmentations: list[Any]) -> PolygonMasks:
    try:
        return PolygonMasks(segmentations)
    except ValueError as error:
        raise ValueError("Failed to use mask_format=='polygon' from the given annotations!") from error


def _bitmap(segmentation: Any, image_size: tuple[int, int]) -> np.ndarray:
    """Return the mask (H, W) of polygons, RLE, or a mask."""
    if isinstance(segmentation, list):
        return polygons_to_bitmask(segmentation, *image_size)
    if isinstance(segmentation, dict):
        return mask_util.decode(segmentation)
    if isinstance(segmentation, np.ndarray):
        assert segmentation.ndim == 2, f"Expect segmentation of 2 dimensions, got {segmentation.ndim}."
        return segmentation
    raise ValueError(
        f"Cannot convert segmentation of type '{type(segmentation)}' to BitMasks! It must be a list of"
        " polygons, COCO's RLE as a dict, or a mask as an array (H, W)."
    )


def filter_empty_instances(
    instances: Instances,
    by_box: bool = True,
    by_mask: bool = True,
    box_threshold: float = 1e-5,
    return_mask: bool = False,
) -> Any:
    """Leave out instances that have nothing left.

    Args:
        instances: with ``gt_boxes``, perhaps ``gt_masks``.
        by_box: look at the boxes.
        by_mask: look at the masks, where there are any.
        box_threshold: width and height must be larger than this, pixels.
        return_mask: return which were kept, too.

    Returns:
        The instances that are kept; with ``return_mask`` and that as a bool tensor (N,).

    Raises:
        AssertionError: neither is to be looked at.
    """
    assert by_box or by_mask, "filter_empty_instances needs by_box or by_mask"
    tests = []
    if by_box:
        tests.append(instances.gt_boxes.nonempty(threshold=box_threshold))
    if by_mask and instances.has("gt_masks"):
        tests.append(instances.gt_masks.nonempty())
    if not tests:
        return instances
    kept = torch.stack(tests).all(dim=0)
    return (instances[kept], kept) if return_mask else instances[kept]


def check_metadata_consistency(key: str, dataset_names: Sequence[str]) -> None:
    """Check that datasets used together agree in a metadata attribute.

    Raises:
        AttributeError: one of them does not have it.
        ValueError: two of them differ; both values are logged.
    """
    logger = logging.getLogger(__name__)
    values = {name: getattr(MetadataCatalog.get(name), key) for name in dataset_names}
    for name in dataset_names:
        if values[name] != values[dataset_names[0]]:
            for shown in (name, dataset_names[0]):
                logger.error(f"Metadata '{key}' for dataset '{shown}' is '{values[shown]}'")
            raise ValueError(f"Datasets have different metadata '{key}'!")
