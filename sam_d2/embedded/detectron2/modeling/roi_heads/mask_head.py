"""Mask of a region (Mask R-CNN, arXiv:1703.06870, section 3).

N regions, K classes, S the side of a predicted mask.
"""

from collections.abc import Sequence
from typing import Any

import torch
from fvcore.nn import weight_init
from torch import nn
from torch.nn import functional as F

from detectron2.layers import Conv2d, ConvTranspose2d, ShapeSpec, cat, get_norm
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage

__all__ = ["BaseMaskRCNNHead", "MaskRCNNConvUpsampleHead"]


def _of_class(logits: torch.Tensor, instances: Sequence[Instances], field: str) -> torch.Tensor:
    """Return from (N, K, S, S) the masks (N, S, S) of each region's class, or the only ones there are."""
    if logits.size(1) == 1:
        return logits[:, 0]
    classes = cat([one.get(field) for one in instances]).to(torch.int64)
    return logits[torch.arange(len(logits), device=classes.device), classes]


def mask_rcnn_loss(pred_mask_logits: torch.Tensor, instances: Sequence[Instances], vis_period: int = 0) -> torch.Tensor:
    """Return the mean binary cross-entropy over the pixels of all regions' masks.

    Args:
        pred_mask_logits: (N, K, S, S), or (N, 1, S, S) where one mask serves all classes.
        instances: of each image, N in all, with ``proposal_boxes``, ``gt_classes`` and ``gt_masks``.
        vis_period: record prediction and target as images each so many iterations; 0 for never.
    """
    side = pred_mask_logits.size(2)
    assert side == pred_mask_logits.size(3), f"masks must be square, not {tuple(pred_mask_logits.shape[2:])}"
    filled = [one for one in instances if len(one) > 0]
    if not filled:
        return pred_mask_logits.sum() * 0
    targets = cat([
        one.gt_masks.crop_and_resize(one.proposal_boxes.tensor, side).to(device=pred_mask_logits.device)
        for one in filled
    ])  # fmt: skip
    logits = _of_class(pred_mask_logits, filled, "gt_classes")
    is_foreground = targets > 0.5 if targets.dtype != torch.bool else targets
    targets = targets.to(dtype=torch.float32)

    wrong = (logits > 0.0) != is_foreground
    pixels, foreground = wrong.numel(), is_foreground.sum().item()
    missed = (wrong & is_foreground).sum().item()
    errors = wrong.sum().item()
    storage = get_event_storage()
    storage.put_scalar("mask_rcnn/accuracy", 1 - errors / max(pixels, 1.0))
    storage.put_scalar("mask_rcnn/false_positive", (errors - missed) / max(pixels - foreground, 1.0))
    storage.put_scalar("mask_rcnn/false_negative", missed / max(foreground, 1.0))
    if vis_period > 0 and storage.iter % vis_period == 0:
        for index, pair in enumerate(torch.cat([logits.sigmoid(), targets], dim=2)):
            storage.put_image(f"Left: mask prediction;   Right: mask GT ({index})", pair.expand(3, -1, -1))
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="mean")


def mask_rcnn_inference(pred_mask_logits: torch.Tensor, pred_instances: Sequence[Instances]) -> None:
    """Give detections their masks: ``pred_masks`` (., 1, S, S), probabilities in the frame of the box.

    Args:
        pred_mask_logits: (N, K, S, S), or (N, 1, S, S) where one mask serves all classes.
        pred_instances: of each image, N in all, with ``pred_classes``; changed in place.
    """
    masks = _of_class(pred_mask_logits, pred_instances, "pred_classes")[:, None].sigmoid()
    counts = [len(one) for one in pred_instances]
    for instances, own in zip(pred_instances, masks.split(counts), strict=True):
        instances.pred_masks = own


class BaseMaskRCNNHead(nn.Module):
    """Loss and inference of a mask head; a subclass has the layers."""

    def __init__(self, *, loss_weight: float = 1.0, vis_period: int = 0) -> None:
        """Set what the loss needs.

        Args:
            loss_weight: factor of the loss.
            vis_period: see :func:`mask_rcnn_loss`.
        """
        super().__init__()
        self.vis_period = vis_period
        self.loss_weight = loss_weight

    def forward(self, x: Any, instances: list[Instances]) -> dict[str, torch.Tensor] | list[Instances]:
        """Predict masks.

        Args:
            x: features of the regions, as :meth:`layers` takes them.
            instances: of each image: what :func:`mask_rcnn_loss` or :func:`mask_rcnn_inference` needs.

        Returns:
            while training ``{"loss_mask": loss}``, otherwise the instances with ``pred_masks``.
        """
        logits = self.layers(x)
        if self.training:
            return {"loss_mask": mask_rcnn_loss(logits, instances, self.vis_period) * self.loss_weight}
        mask_rcnn_inference(logits, instances)
        return instances

    def layers(self, x: Any) -> torch.Tensor:
        """Return mask logits (N, K, S, S) of the regions' features."""
        raise NotImplementedError


class MaskRCNNConvUpsampleHead(BaseMaskRCNNHead, nn.Sequential):  # type: ignore[misc]
    """3x3 convolutions, a 2x2 transposed one that doubles the resolution, and a 1x1 one to the classes."""

    def __init__(
        self, input_shape: ShapeSpec, *, num_classes: int, conv_dims: Sequence[int], conv_norm: Any = "", **kwargs: Any
    ) -> None:
        """Make the layers.

        Args:
            input_shape: shape of a region's features.
            num_classes: K; 1 where one mask serves all classes.
            conv_dims: channels after each 3x3 convolution and, last, after the transposed one.
            conv_norm: norm of the 3x3 convolutions, see :func:`detectron2.layers.get_norm`.
            kwargs: see :class:`BaseMaskRCNNHead`.
        """
        super().__init__(**kwargs)
        assert len(conv_dims) >= 1, "conv_dims must have an entry"
        channels = input_shape.channels or 1
        for number, dim in enumerate(conv_dims[:-1], start=1):
            norm = get_norm(conv_norm, dim)
            conv = Conv2d(channels, dim, kernel_size=3, padding=1, bias=not conv_norm, norm=norm, activation=nn.ReLU())
            self.add_module(f"mask_fcn{number}", conv)
            channels = dim
        self.deconv = ConvTranspose2d(channels, conv_dims[-1], kernel_size=2, stride=2)
        self.add_module("deconv_relu", nn.ReLU())
        self.predictor = Conv2d(conv_dims[-1], num_classes, kernel_size=1)
        for name, layer in self.named_children():
            if name == "deconv" or name.startswith("mask_fcn"):
                weight_init.c2_msra_fill(layer)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)  # type: ignore[arg-type]

    def layers(self, x: torch.Tensor) -> torch.Tensor:
        """Return mask logits (N, K, S, S) of features (N, C, S / 2, S / 2)."""
        for layer in self:
            x = layer(x)
        return x
