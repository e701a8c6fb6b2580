"""torchvision's Mask R-CNN with other numbers of classes, frozen norms and layers; random weights, no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from torch import nn
from torchvision.models import detection
from torchvision.ops import FrozenBatchNorm2d

from sam_d2.errors import UserError
from sam_d2.modeling.torchvision_rcnn import TorchvisionMaskRCNN, coco_labels

Architecture = Literal["maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"]
Labels = Literal["auto", "contiguous", "coco"]
Norm = Literal["BN", "SyncBN", "FrozenBN"]

_STAGES = ("layer4", "layer3", "layer2", "layer1", "conv1")
_PARTS = {"conv1": ("conv1", "bn1")}


def build_mask_rcnn(
    architecture: Architecture,
    *,
    num_classes: int | None,
    labels: Labels = "auto",
    trainable_layers: int = 3,
    norm: Norm = "FrozenBN",
    norm_eps: float = 1e-5,
    input_format: str = "RGB",
    **options: Any,
) -> TorchvisionMaskRCNN:
    """Build one of torchvision's two Mask R-CNNs with random weights.

    Args:
        architecture: torchvision's name of it.
        num_classes: of the dataset, without the background; train_net.py sets it where the config leaves it null.
        labels: ``contiguous`` gives class 0 the label 1 and so on; ``coco`` keeps COCO's 91 labels (category ids
            and background), so that the heads of weights trained on COCO stay; ``auto`` is ``coco`` for 80 classes,
            which are taken to be COCO's, and ``contiguous`` for any other number.
        trainable_layers: stages of the ResNet that are trained, from its end: 0 none, 5 all.
        norm: ``BN`` as in torchvision's training of v2; ``SyncBN`` with the statistics of all processes' images, on
            GPUs; ``FrozenBN`` for batches of few images, as in its v1.
        norm_eps: of frozen norms.
        input_format: RGB.
        **options: arguments of ``torchvision.models.detection.MaskRCNN`` such as ``rpn_fg_iou_thresh``.

    Raises:
        UserError: one of the arguments has no such value.
    """
    builders = {
        "maskrcnn_resnet50_fpn": detection.maskrcnn_resnet50_fpn,
        "maskrcnn_resnet50_fpn_v2": detection.maskrcnn_resnet50_fpn_v2,
    }
    for key, value, allowed in (
        ("architecture", architecture, tuple(builders)),
        ("labels", labels, get_args(Labels)),
        ("norm", norm, get_args(Norm)),
        ("trainable_layers", trainable_layers, tuple(range(len(_STAGES) + 1))),
    ):
        if value not in allowed:
            raise UserError(f"model.{key}={value!r}: expected one of {', '.join(map(str, allowed))}.")
    for part in ("rpn", "box"):
        low, high = options.get(f"{part}_bg_iou_thresh"), options.get(f"{part}_fg_iou_thresh")
        if low is not None and high is not None and low > high:
            raise UserError(
                f"model.{part}_bg_iou_thresh={low} is above model.{part}_fg_iou_thresh={high}: regions of less overlap "
                "than the first are background, of more than the second an object."
            )
    known = _labels(num_classes, labels)
    # A config's lists are of a type that torchvision takes for a single value.
    options = {key: list(value) if isinstance(value, Sequence) else value for key, value in options.items()}
    outputs = max(known) + 1
    model = builders[architecture](weights=None, weights_backbone=None, num_classes=outputs, **options)
    if norm == "FrozenBN":
        _freeze_norms(model, norm_eps)
    elif norm == "SyncBN":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    trained = [part for stage in _STAGES[:trainable_layers] for part in _PARTS.get(stage, (stage,))]
    for name, parameter in model.backbone.body.named_parameters():
        parameter.requires_grad = name.split(".")[0] in trained
    return TorchvisionMaskRCNN(model, known, input_format)


def _labels(num_classes: int | None, labels: Labels) -> list[int]:
    """Return torchvision's label of each class."""
    coco = coco_labels()
    if num_classes is None or num_classes < 1:
        raise UserError(f"model.num_classes={num_classes}: set it to the number of the dataset's classes.")
    if labels == "coco" and num_classes != len(coco):
        raise UserError(f"model.labels=coco is for COCO's {len(coco)} classes, not for {num_classes}: take auto.")
    if labels == "contiguous" or num_classes != len(coco):
        return list(range(1, num_classes + 1))
    return coco


def _freeze_norms(module: nn.Module, eps: float) -> None:
    """Put torchvision's frozen norm in the place of every BatchNorm2d."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features, eps=eps))
        else:
            _freeze_norms(child, eps)
