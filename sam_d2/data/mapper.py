"""From a dataset dict to what the meta-architecture takes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch

import detectron2.data.transforms as T
from detectron2.data import detection_utils
from detectron2.structures import BoxMode, Instances
from sam_d2.data.annotated_image import (
    annotated_instances,
    image_label,
    mask_format,
    pop_instances,
    read_annotated_image,
    untouched_instances,
)
from sam_d2.data.canvas_resize import canvas_resize, require_resizable
from sam_d2.data.unread_image import UnreadImage, UnreadInput, channels_first
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
        max_instances: most instances of an image in training, drawn at random each time, all of those that the
            augmentation leaves in the image equally likely; None for all.
        recompute_boxes: take the tight box of each mask for the one in the file, in training and at a test, as the
            baselines do; for files whose boxes were drawn loosely or lie beside their masks.

    Attributes:
        is_cached: tells of a sample with ``cache_variant`` and without ``image`` whether a model needs no more of the
            image, whose embedding is kept; None where images are always read. A training that has no augmentation but
            the horizontal flip may set it.

    Raises:
        UserError: ``max_instances`` is less than 1.
    """

    def __init__(
        self,
        *,
        is_train: bool,
        image_size: int,
        augmentations: Sequence[T.Augmentation] = (),
        image_format: str = "RGB",
        max_instances: int | None = 100,
        recompute_boxes: bool = False,
    ) -> None:
        if max_instances is not None and max_instances < 1:
            raise UserError(
                f"dataloader.train.mapper.max_instances={max_instances}: expected at least 1, or null for all."
            )
        self.is_train = is_train
        self.image_size = image_size
        self.augmentations = T.AugmentationList(augmentations if is_train else [])
        self.resize = canvas_resize(image_size)
        self.image_format = image_format
        self.max_instances = max_instances
        self.recompute_boxes = recompute_boxes
        self.is_cached: Callable[[Mapping[str, Any]], bool] | None = None

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dataset dict in Detectron2's standard form.

        Returns:
            The dict without ``annotations``, with ``image`` (3, H, W) uint8 in the resized frame and ``instances``
            with ``gt_boxes``, ``gt_masks`` (PolygonMasks, or BitMasks where the file has RLE) and ``gt_classes``; and
            with ``cache_variant``, such as ``plain-1024-RGB`` or ``flipped-1024-RGB``, where the image is the file's or
            its mirror image. Where ``is_cached``, ``image`` is an :class:`~sam_d2.data.unread_image.UnreadImage`.

        Raises:
            UserError: the image cannot be read, has not the size that the annotations say, or is so thin that the
                resize would leave nothing of it.
        """
        sample = copy.copy(dataset_dict)
        annotations = pop_instances(sample)
        is_cached = self.is_cached if sample.keys() >= {"height", "width"} else None
        augmented = (
            T.AugInput(read_annotated_image(sample, self.image_format))
            if is_cached is None
            else UnreadInput((sample["height"], sample["width"]))
        )
        name = image_label(sample)
        original_size = augmented.image.shape[:2]
        if self.recompute_boxes:
            annotations = [_with_tight_box(annotation, original_size) for annotation in annotations]
        transforms = self.augmentations(augmented)
        variant = _cache_variant(transforms)
        if variant is not None:
            sample["cache_variant"] = f"{variant}-{self.image_size}-{self.image_format}"
        size = augmented.image.shape[:2]
        require_resizable(size, self.image_size, name if size == original_size else f"{name}, augmented")
        transforms += self.resize(augmented)
        resized = augmented.image.shape[:2]
        if is_cached is None:
            sample["image"] = channels_first(augmented.image)
        else:
            image = UnreadImage(sample, self.image_format, transforms, resized)
            sample["image"] = image if is_cached(sample) else image.read()
        if self.is_train:
            sample["instances"] = self._drawn(annotations, resized, transforms)
        else:
            sample["instances"] = untouched_instances(annotations, original_size)
        return sample

    def _drawn(
        self, annotations: list[dict[str, Any]], size: tuple[int, int], transforms: T.TransformList
    ) -> Instances:
        """Return at most ``max_instances`` of the annotations that are in the image, in the file's order.

        As few as possible are transformed, which is what an RLE costs; only where there are too many is a random
        number drawn.
        """
        masks = mask_format(annotations)
        cap = len(annotations) if self.max_instances is None else self.max_instances
        if len(annotations) <= cap:
            return detection_utils.filter_empty_instances(annotated_instances(annotations, size, transforms, masks))
        order = np.random.permutation(len(annotations))
        parts: list[Instances] = []
        missing = cap
        # The places of those that turn out to be moved out of the image go to the next in the order.
        while missing and len(order):
            rows, order = np.sort(order[:missing]), order[missing:]
            part = annotated_instances([annotations[row] for row in rows], size, transforms, masks)
            part.row = torch.as_tensor(rows)
            parts.append(detection_utils.filter_empty_instances(part))
            missing -= len(parts[-1])
        drawn = Instances.cat(parts)
        if len(parts) > 1:  # a copy of bitmaps
            drawn = drawn[drawn.row.argsort()]
        drawn.remove("row")
        return drawn


def _cache_variant(transforms: T.TransformList) -> str | None:
    """Return ``plain`` or ``flipped``; None where an image is not the file's, mirrored or not."""
    moved = [transform for transform in transforms.transforms if not isinstance(transform, T.NoOpTransform)]
    if not all(isinstance(transform, T.HFlipTransform) for transform in moved):
        return None
    return "flipped" if len(moved) % 2 else "plain"


def _with_tight_box(annotation: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Return an annotation whose box holds its mask's pixels and no more; one without a pixel keeps the file's.

    The pixels are the evaluator's, drawn in the original frame of ``size`` (height, width): after a flip or a resize
    a polygon's own bounds would differ from them by up to half a pixel.
    """
    segmentation = annotation["segmentation"]
    rle = (
        mask_util.merge(mask_util.frPyObjects(segmentation, *size)) if isinstance(segmentation, list) else segmentation
    )
    x, y, width, height = mask_util.toBbox(rle).tolist()
    if not width * height:
        return annotation
    return {**annotation, "bbox": [x, y, x + width, y + height], "bbox_mode": BoxMode.XYXY_ABS}
