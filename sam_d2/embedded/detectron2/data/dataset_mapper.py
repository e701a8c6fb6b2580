"""The default way from a dataset dict to what a model takes."""

import copy
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fvcore.transforms.transform import Transform

from . import detection_utils as utils
from . import transforms as T

__all__ = ["DatasetMapper"]


class DatasetMapper:
    """Read the image, augment it, and turn its annotations into :class:`Instances` of the resized frame.

    Args:
        is_train: False drops the annotations.
        augmentations: augmentations or transforms, applied in order.
        image_format: as in ``detection_utils.read_image``.
        use_instance_mask: keep the segmentations.
        use_keypoint: must be False in the embedded core.
        instance_mask_format: "polygon" or "bitmask".
        keypoint_hflip_indices: must be None in the embedded core.
        precomputed_proposal_topk: must be None in the embedded core.
        recompute_boxes: take the boxes from the transformed masks; a crop leaves the given ones too large.

    Raises:
        AssertionError: boxes are to come from masks that are not used.
        NotImplementedError: keypoints or precomputed proposals are asked for.
    """

    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | Transform],
        image_format: str,
        use_instance_mask: bool = False,
        use_keypoint: bool = False,
        instance_mask_format: str = "polygon",
        keypoint_hflip_indices: Any = None,
        precomputed_proposal_topk: int | None = None,
        recompute_boxes: bool = False,
    ) -> None:
        assert use_instance_mask or not recompute_boxes, "recompute_boxes requires instance masks"
        if use_keypoint or keypoint_hflip_indices is not None or precomputed_proposal_topk is not None:
            raise NotImplementedError(
                "The embedded Detectron2 core has no keypoints and no stored proposals: install Detectron2."
            )
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.use_instance_mask, self.instance_mask_format = use_instance_mask, instance_mask_format
        self.recompute_boxes = recompute_boxes
        mode = "training" if is_train else "inference"
        logging.getLogger(__name__).info(f"[DatasetMapper] Augmentations used in {mode}: {augmentations}")

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dataset dict.

        Args:
            dataset_dict: in Detectron2's format; it is not changed.

        Returns:
            The other fields with "image": tensor (C, H, W) in ``image_format``; in training, where there are
            annotations, with "instances", crowd and empty ones left out; with "sem_seg", int64 (H, W), where
            the record names a label file.
        """
        record = copy.deepcopy(dataset_dict)
        image = utils.read_image(record["file_name"], format=self.image_format)
        utils.check_image_size(record, image)
        label_file = record.pop("sem_seg_file_name", None)
        labels = None if label_file is None else utils.read_image(label_file, "L")[:, :, 0]

        aug_input = T.AugInput(image, sem_seg=labels)
        transforms = self.augmentations(aug_input)
        # Tensors travel from the workers through shared memory, arrays would be pickled.
        record["image"] = torch.as_tensor(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
        if aug_input.sem_seg is not None:
            record["sem_seg"] = torch.as_tensor(aug_input.sem_seg.astype("long"))
        annotations = record.pop("annotations", None)
        if self.is_train and annotations is not None:
            record["instances"] = self._instances(annotations, transforms, aug_input.image.shape[:2])
        return record

    def _instances(self, annotations: list[dict[str, Any]], transforms: Transform, image_size: tuple[int, int]) -> Any:
        unused = {"keypoints"} if self.use_instance_mask else {"keypoints", "segmentation"}
        moved = [
            utils.transform_instance_annotations(
                {key: value for key, value in annotation.items() if key not in unused}, transforms, image_size
            )
            for annotation in annotations
            if annotation.get("iscrowd", 0) == 0
        ]
        instances = utils.annotations_to_instances(moved, image_size, mask_format=self.instance_mask_format)
        if self.recompute_boxes:
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        return utils.filter_empty_instances(instances)
