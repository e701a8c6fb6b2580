"""torchvision's Mask R-CNN as a Detectron2 meta-architecture.

``B`` images, ``N`` instances of one image, ``H, W`` the image as the mapper gives it, ``H0, W0`` the original one.
torchvision's own transform resizes and normalises inside the model, so a mapper for it resizes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, MaskRCNN_ResNet50_FPN_Weights
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import resize_boxes

from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils import comm
from sam_d2.errors import UserError

_PASTED_AT_ONCE = 16
"""Soft masks of the original size that exist at a time; 100 of a large photograph are gigabytes."""


COCO_OUTPUTS = len(MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
"""Labels of torchvision's weights for COCO: the background, and the category ids with those of no category."""


def coco_categories() -> dict[int, str]:
    """Return the names of COCO's 80 categories by their ids, 1 to 90 with gaps, which are torchvision's labels."""
    names = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return {label: name for label, name in enumerate(names) if name not in ("__background__", "N/A")}


def coco_labels() -> list[int]:
    """Return torchvision's label of each of COCO's 80 classes."""
    return list(coco_categories())


class TorchvisionMaskRCNN(GeneralizedRCNN):
    """torchvision's Mask R-CNN behind Detectron2's inputs and outputs.

    The modules keep torchvision's names, so its published files load with no mapping of keys. The score of a mask is
    its class score, and its pixels are those whose probability is at least 0.5.

    Mask R-CNN, arXiv 1703.06870; the variant v2 follows arXiv 2111.11429.

    Args:
        detector: torchvision's model; its modules are taken over.
        labels: torchvision's label of each of the dataset's classes, which begins with 1 (0 is the background). A
            detection with a label of no class is dropped.
        input_format: order of the channels that the mapper gives.

    Raises:
        UserError: ``input_format`` is not RGB, which all of torchvision's weights were trained with, or a label is
            none of the detector's.
    """

    def __init__(self, detector: MaskRCNN, labels: Sequence[int], input_format: str = "RGB") -> None:
        super().__init__(detector.backbone, detector.rpn, detector.roi_heads, detector.transform)
        if input_format != "RGB":
            raise UserError(f"model.input_format={input_format!r}: torchvision's models take RGB.")
        self.input_format = input_format
        outputs = self.roi_heads.box_predictor.cls_score.out_features
        if not labels or min(labels) < 1 or max(labels) >= outputs or len(set(labels)) < len(labels):
            raise UserError(f"labels {list(labels)}: expected different ones from 1 to {outputs - 1}.")
        self.num_classes = len(labels)
        self.register_buffer("labels", torch.tensor(labels), persistent=False)
        classes = torch.full((outputs,), -1)
        classes[list(labels)] = torch.arange(len(labels))
        self.register_buffer("classes", classes, persistent=False)

    @property
    def device(self) -> torch.device:
        """Where images are moved to."""
        return self.labels.device

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Any:
        """Return losses in training and detections otherwise.

        Args:
            batched_inputs: B dicts with ``image`` (3, H, W) uint8 RGB 0-255; in training ``instances`` with
                ``gt_boxes`` (N, 4) XYXY, ``gt_masks`` and ``gt_classes``, in the image's frame, N may be 0;
                otherwise ``height`` and ``width`` of the original image where it is another one.

        Returns:
            In training torchvision's ``loss_classifier, loss_box_reg, loss_mask, loss_objectness,
            loss_rpn_box_reg``, scalars with a graph to every trainable parameter. Otherwise B dicts with
            ``instances``: Instances (H0, W0) on the model's device with ``pred_boxes`` XYXY, ``scores`` (N,) 0-1
            in falling order, ``pred_classes`` (N,) and ``pred_masks`` (N, H0, W0) bool.
        """
        images = [sample["image"].to(self.device).float() / 255 for sample in batched_inputs]
        if not self.training:
            sizes = [
                (int(sample.get("height", image.shape[1])), int(sample.get("width", image.shape[2])))
                for sample, image in zip(batched_inputs, images, strict=True)
            ]
            return self._detect(images, sizes)
        targets = [self._target(sample["instances"]) for sample in batched_inputs]
        nothing = not any(len(target["boxes"]) for target in targets)
        head = self.roi_heads.mask_head
        if any(isinstance(module, nn.SyncBatchNorm) for module in head.modules()):
            # A head in eval mode would take no part in the others' statistics, and they would wait for it.
            nothing = all(comm.all_gather(nothing))
        with _norm_kept(head, nothing):
            return self._losses(images, targets)

    def _losses(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        resized, moved = self.transform(images, targets)
        features = self.backbone(resized.tensors)
        proposals, proposal_losses = self.rpn(resized, features, moved)
        _, losses = self.roi_heads(features, proposals, resized.image_sizes, moved)
        return {**losses, **proposal_losses}

    @torch.no_grad()
    def _detect(self, images: list[Tensor], sizes: list[tuple[int, int]]) -> list[dict[str, Instances]]:
        resized, _ = self.transform(images)
        features = self.backbone(resized.tensors)
        proposals, _ = self.rpn(resized, features)
        found, _ = self.roi_heads(features, proposals, resized.image_sizes)
        return [
            {"instances": self._instances(detections, frame, size)}
            for detections, frame, size in zip(found, resized.image_sizes, sizes, strict=True)
        ]

    def _instances(self, found: dict[str, Tensor], frame: tuple[int, int], size: tuple[int, int]) -> Instances:
        """Return the detections of one image, made in the model's ``frame``, in that of ``size``, both (h, w)."""
        classes = self.classes[found["labels"]]
        known = classes >= 0
        boxes = resize_boxes(found["boxes"][known], list(frame), list(size))
        soft = found["masks"][known].float()
        masks = torch.zeros((len(boxes), *size), dtype=torch.bool, device=boxes.device)
        for start in range(0, len(boxes), _PASTED_AT_ONCE):
            rows = slice(start, start + _PASTED_AT_ONCE)
            masks[rows] = paste_masks_in_image(soft[rows], boxes[rows], size)[:, 0] >= 0.5
        result = Instances(size)
        result.pred_boxes = Boxes(boxes)
        result.scores = found["scores"][known]
        result.pred_classes = classes[known]
        result.pred_masks = masks
        return result

    def _target(self, instances: Instances) -> dict[str, Tensor]:
        """Return torchvision's form of the ground truth; boxes without area, which it refuses, are left out."""
        instances = instances[instances.gt_boxes.nonempty()].to(self.device)
        classes = instances.gt_classes
        if len(classes) and int(classes.max()) >= self.num_classes:
            raise UserError(
                f"The dataset has a class {int(classes.max())}, the model has {self.num_classes} (0 to "
                f"{self.num_classes - 1}): set model.num_classes to the number of the dataset's classes."
            )
        masks = instances.gt_masks
        if isinstance(masks, PolygonMasks):
            masks = BitMasks.from_polygon_masks(masks, *instances.image_size)
        return {
            "boxes": instances.gt_boxes.tensor.float(),
            "labels": self.labels[classes],
            "masks": masks.tensor.to(self.device, torch.uint8),
        }

    def convert_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of a file of torchvision's under this model's names.

        Names of torchvision's older files become today's, those of an ImageNet classifier the ResNet's, without its
        last layer; counters of batches go where the norm is frozen.

        Args:
            state: tensors by name, of a published file or of a checkpoint of this model.
        """
        own = self.state_dict()
        if "fc.weight" in state:
            renamed = {f"backbone.body.{name}": value for name, value in state.items() if not name.startswith("fc.")}
        else:
            renamed = {_today(name): value for name, value in state.items()}
        return {
            name: value for name, value in renamed.items() if name in own or not name.endswith("num_batches_tracked")
        }


def _today(name: str) -> str:
    """Return the name that a weight of torchvision's files from before 0.13 has since."""
    name = name.replace("rpn.head.conv.weight", "rpn.head.conv.0.0.weight")
    name = name.replace("rpn.head.conv.bias", "rpn.head.conv.0.0.bias")
    for number in range(4):
        name = name.replace(f"mask_head.mask_fcn{number + 1}.", f"mask_head.{number}.0.")
        name = name.replace(f"fpn.inner_blocks.{number}.weight", f"fpn.inner_blocks.{number}.0.weight")
        name = name.replace(f"fpn.inner_blocks.{number}.bias", f"fpn.inner_blocks.{number}.0.bias")
        name = name.replace(f"fpn.layer_blocks.{number}.weight", f"fpn.layer_blocks.{number}.0.weight")
        name = name.replace(f"fpn.layer_blocks.{number}.bias", f"fpn.layer_blocks.{number}.0.bias")
    return name


@contextmanager
def _norm_kept(head: nn.Module, nothing: bool) -> Iterator[None]:
    """Keep the running statistics of a head that sees ``nothing``: those of no pixel would pull them to zero."""
    modes = [(module, module.training) for module in head.modules()]
    if nothing:
        head.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
