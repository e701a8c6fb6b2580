"""Predictions in COCO's result format."""

from typing import Any

import numpy as np
import torch
from pycocotools import mask as mask_util

from detectron2.structures import BoxMode, Instances


def instances_to_coco_json(instances: Instances, img_id: int) -> list[dict[str, Any]]:
    """Return the predictions of one image as COCO results.

    Args:
        instances: on the CPU, original frame; ``pred_boxes`` (XYXY pixels), ``scores``, ``pred_classes``
            (contiguous ids) and, if there are masks, ``pred_masks`` (N,H,W) bool.
        img_id: image id of the dataset.

    Returns:
        One dict per instance: ``image_id``, ``category_id``, ``bbox`` (XYWH pixels), ``score`` and, if there
        are masks, ``segmentation`` as compressed RLE with text counts.
    """
    if not len(instances):
        return []
    boxes = BoxMode.convert(instances.pred_boxes.tensor.numpy(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
    columns = zip(instances.pred_classes.tolist(), boxes, instances.scores.tolist(), strict=True)
    results: list[dict[str, Any]] = [
        {"image_id": img_id, "category_id": category, "bbox": box, "score": score} for category, box, score in columns
    ]
    if instances.has("pred_masks"):
        for result, mask in zip(results, instances.pred_masks, strict=True):
            result["segmentation"] = _encode(mask)
    return results


def _encode(mask: torch.Tensor | np.ndarray) -> dict[str, Any]:
    """Return a mask (H,W) as RLE whose counts are text, because JSON has no bytes."""
    rle = mask_util.encode(np.asfortranarray(np.asarray(mask), dtype=np.uint8))
    return {**rle, "counts": rle["counts"].decode("utf-8")}
