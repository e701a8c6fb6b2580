"""From a dataset dict to what the meta-architecture takes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import detectron2.data.transforms as T
from detectron2.data import detection_utils
from detectron2.structures import Instances, PolygonMasks
from sam_d2.data.image import read_image
from sam_d2.errors import UserError


class PromptableMapper:
    """Read, augment and resize an image and carry its annotations along, in training and at a test.

    A last resize brings the long side to ``image_size``, which is SAM's own geometry: after it every image fits the
    canvas, whatever the augmentations before it did. In training the instances are in the resized frame, at a test
    in the original frame, because test prompts are made where the user sees the image. Crowd annotations are never
    prompts, and annotations without a mask cannot be.

    Args:
        is_train: augment, cap the instances, drop the ones that the augmentation moved out of the image.
        image_size: S, the canvas; pixels of the resized image's long side.
        augmentations: Detectron2 augmentations applied before the resize; in training only.
        image_format: channel order, the model's ``input_format``.
        max_instances: most instances of an image in training, drawn at random each time; None for all.
    """

    def __init__(
        self,
        *,
        is_train: bool,
        image_size: int,
        augmentations: Sequence[T.Augmentation] = (),
        image_format: str = "RGB",
        max_instances: int | None = 100,
    ) -> None:
        self.is_train = is_train
        # ResizeShortestEdge with both limits equal gives ResizeLongestSide's output size for every input size.
        resize = T.ResizeShortestEdge(image_size, image_size)
        self.augmentations = T.AugmentationList([*augmentations, resize] if is_train else [resize])
        self.image_format = image_format
        self.max_instances = max_instances

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dataset dict in Detectron2's standard form.

        Returns:
            The dict without ``annotations``, with ``image`` (3, H, W) uint8 in the resized frame and ``instances``
            with ``gt_boxes``, ``gt_masks`` (PolygonMasks, or BitMasks where the file has RLE) and ``gt_classes``.

        Raises:
            UserError: the image cannot be read, or has not the size that the annotations say.
        """
        sample = copy.copy(dataset_dict)
        image = read_image(sample["file_name"], self.image_format)
        original_size = image.shape[:2]
        try:
            detection_utils.check_image_size(sample, image)
        except detection_utils.SizeMismatchError as error:
            height, width = original_size
            raise UserError(
                f"{sample['file_name']} (image id {sample.get('image_id')}): the file has {width} x {height} pixels "
                f"(width x height, turned as its EXIF orientation says), the annotations say {sample['width']} x "
                f"{sample['height']}. Correct width and height there, or put back the image that was annotated."
            ) from error
        annotations = [
            annotation
            for annotation in sample.pop("annotations", [])
            if not annotation.get("iscrowd", 0) and annotation.get("segmentation")
        ]
        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        sample["image"] = torch.as_tensor(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        if not self.is_train:
            sample["instances"] = _instances(annotations, original_size, T.TransformList([]))
            return sample
        instances = _instances(annotations, augmented.image.shape[:2], transforms)
        sample["instances"] = self._capped(detection_utils.filter_empty_instances(instances))
        return sample

    def _capped(self, instances: Instances) -> Instances:
        if self.max_instances is None or len(instances) <= self.max_instances:
            return instances
        keep = np.sort(np.random.choice(len(instances), self.max_instances, replace=False))
        return instances[torch.as_tensor(keep)]


def _instances(annotations: list[dict[str, Any]], size: tuple[int, int], transforms: T.TransformList) -> Instances:
    """Return the annotations as Instances of an image of ``size`` (height, width) after ``transforms``."""
    moved = [
        detection_utils.transform_instance_annotations(_copied(annotation), transforms, size)
        for annotation in annotations
    ]
    polygons_only = all(isinstance(annotation["segmentation"], list) for annotation in annotations)
    instances = detection_utils.annotations_to_instances(
        moved, size, mask_format="polygon" if polygons_only else "bitmask"
    )
    if not annotations:
        instances.gt_masks = PolygonMasks([])
    return instances


def _copied(annotation: dict[str, Any]) -> dict[str, Any]:
    """Copy an annotation for the transforms, which work in place and would cut whole numbers off after a resize."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        segmentation = [np.array(polygon, dtype=np.float64) for polygon in segmentation]
    return {**annotation, "bbox": [float(edge) for edge in annotation["bbox"]], "segmentation": segmentation}
