"""From a dataset dict to what Detectron2's detectors take."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import detectron2.data.transforms as T
from detectron2.data import detection_utils
from sam_d2.data.annotated_image import (
    annotated_instances,
    mask_format,
    pop_instances,
    read_annotated_image,
    untouched_instances,
)


class DetectionMapper:
    """Read and augment an image and carry its boxes and masks along.

    Does what Detectron2's DatasetMapper does, for every file that sam_d2 reads: masks may be RLE beside polygons,
    whole-number polygons keep their fractions, images may have 16 bits or an alpha channel, and one that is unreadable
    or of another size is named with the way out. As there, crowd annotations are left out of the training and what an
    augmentation has moved out of the image is dropped; an image left without any is a negative.

    At a test the annotations stay, in the original frame, for those who look at them; a detector does not.

    Args:
        is_train: carry the annotations through the augmentations.
        augmentations: Detectron2 augmentations, in order; the resize is among them.
        image_format: channel order, the model's ``input_format``: BGR for the ResNets of the zoo, RGB for MViTv2.
        recompute_boxes: in training take the tight box of each transformed mask, which a crop needs.
    """

    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Sequence[T.Augmentation] = (),
        image_format: str = "BGR",
        recompute_boxes: bool = False,
    ) -> None:
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.recompute_boxes = recompute_boxes

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dataset dict in Detectron2's standard form.

        Returns:
            The dict without ``annotations``, with ``image`` (3, H, W) uint8 in the resized frame and ``instances``
            with ``gt_boxes``, ``gt_masks`` (PolygonMasks, or BitMasks where the file has RLE) and ``gt_classes``, in
            the resized frame in training, in the original frame at a test.

        Raises:
            UserError: the image cannot be read or has not the size that the annotations say.
        """
        sample = copy.copy(dataset_dict)
        image = read_annotated_image(sample, self.image_format)
        original_size = image.shape[:2]
        annotations = pop_instances(sample)
        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        sample["image"] = torch.as_tensor(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        if not self.is_train:
            sample["instances"] = untouched_instances(annotations, original_size)
            return sample
        size = augmented.image.shape[:2]
        instances = annotated_instances(annotations, size, transforms, mask_format(annotations))
        if self.recompute_boxes:
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        sample["instances"] = detection_utils.filter_empty_instances(instances)
        return sample
