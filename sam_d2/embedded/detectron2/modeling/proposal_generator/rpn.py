"""Region proposal network (Faster R-CNN, arXiv:1506.01497, section 3.1).

B images, L feature maps of (H, W), A anchors at each place, R anchors of all levels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from detectron2.layers import Conv2d, cat
from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from detectron2.utils.memory import retry_if_cuda_oom


class StandardRPNHead(nn.Module):
    """3x3 convolutions, then one 1x1 convolution for the objectness and one for the deltas, shared by all levels."""

    def __init__(
        self, *, in_channels: int, num_anchors: int, box_dim: int = 4, conv_dims: Sequence[int] = (-1,)
    ) -> None:
        """Make the layers.

        Args:
            in_channels: channels of each feature map.
            num_anchors: A.
            box_dim: numbers of a box.
            conv_dims: channels after each 3x3 convolution, -1 for as many as before.

        Raises:
            ValueError: a number of channels that is neither positive nor -1.
        """
        super().__init__()
        convs, channels = nn.Sequential(), in_channels
        for index, wanted in enumerate(conv_dims):
            out = channels if wanted == -1 else wanted
            if out <= 0:
                raise ValueError(f"A convolution cannot have {out} output channels.")
            conv = Conv2d(channels, out, kernel_size=3, stride=1, padding=1, activation=nn.ReLU())
            convs.add_module(f"conv{index}", conv)
            channels = out
        # several convolutions are "conv.conv0" and on in checkpoints, a single one is "conv"
        self.conv = convs[0] if len(convs) == 1 else convs
        self.objectness_logits = nn.Conv2d(channels, num_anchors, kernel_size=1)
        self.anchor_deltas = nn.Conv2d(channels, num_anchors * box_dim, kernel_size=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, features: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Predict.

        Args:
            features: of each level, (B, C, H, W).

        Returns:
            of each level, logits (B, A, H, W) and deltas (B, A x box_dim, H, W).
        """
        hidden = [self.conv(level) for level in features]
        return [self.objectness_logits(level) for level in hidden], [self.anchor_deltas(level) for level in hidden]


class RPN(nn.Module):
    """Predicts, for each anchor, whether there is an object and where, and returns the best boxes."""

    def __init__(
        self,
        *,
        in_features: Sequence[str], head: nn.Module, anchor_generator: nn.Module, anchor_matcher: Matcher,
        box2box_transform: Box2BoxTransform, batch_size_per_image: int, positive_fraction: float,
        pre_nms_topk: Sequence[int], post_nms_topk: Sequence[int], nms_thresh: float = 0.7, min_box_size: float = 0.0,
        anchor_boundary_thresh: float = -1.0, loss_weight: float | Mapping[str, float] = 1.0,
        box_reg_loss_type: str = "smooth_l1", smooth_l1_beta: float = 0.0,
    ) -> None:  # fmt: skip
        """Put the parts together.

        Args:
            in_features: names of the feature maps.
            head: such as :class:`StandardRPNHead`.
            anchor_generator: such as :class:`DefaultAnchorGenerator`, for the same feature maps.
            anchor_matcher: labels the anchors, 1, 0 or -1.
            box2box_transform: what the deltas mean.
            batch_size_per_image: how many anchors of an image enter the loss, which is divided by that number.
            positive_fraction: share of the foreground among them, at most.
            pre_nms_topk: see :func:`find_top_rpn_proposals`; while training, and otherwise.
            post_nms_topk: likewise.
            nms_thresh: see :func:`find_top_rpn_proposals`.
            min_box_size: least side of a proposal, in pixels of the model's input.
            anchor_boundary_thresh: ignore the anchors that stand out of the image by as many pixels; -1 for none.
            loss_weight: factor of the losses, or of each by its name.
            box_reg_loss_type: "smooth_l1", "giou", "diou" or "ciou".
            smooth_l1_beta: where smooth L1 turns from square to linear; 0 is L1.
        """
        super().__init__()
        self.rpn_head, self.anchor_generator = head, anchor_generator
        self.in_features = in_features
        self.anchor_matcher, self.box2box_transform = anchor_matcher, box2box_transform
        self.batch_size_per_image, self.positive_fraction = batch_size_per_image, positive_fraction
        # by whether it is training
        self.pre_nms_topk, self.post_nms_topk = ({True: k[0], False: k[1]} for k in (pre_nms_topk, post_nms_topk))
        self.nms_thresh, self.min_box_size = nms_thresh, float(min_box_size)
        self.anchor_boundary_thresh = anchor_boundary_thresh
        if isinstance(loss_weight, float):
            loss_weight = dict.fromkeys(("loss_rpn_cls", "loss_rpn_loc"), loss_weight)
        self.loss_weight: Any = loss_weight
        self.box_reg_loss_type, self.smooth_l1_beta = box_reg_loss_type, smooth_l1_beta

    def _subsample_labels(self, label: torch.Tensor) -> torch.Tensor:
        """Set, in place, all labels but those of a random choice to -1, and return them."""
        positive, negative = subsample_labels(label, self.batch_size_per_image, self.positive_fraction, 0)
        label.fill_(-1)
        label[positive] = 1
        label[negative] = 0
        return label

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: Sequence[Instances]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Give the anchors their targets.

        Args:
            anchors: of each level.
            gt_instances: of each image, with ``gt_boxes`` in the frame of the model's input.

        Returns:
            of each image, labels (R,) int8, 1 foreground, 0 background and -1 not in the loss; and the box of the
            matched ground truth (R, 4), which means something for the foreground alone.
        """
        boxes = Boxes.cat(anchors)
        all_labels, all_targets = [], []
        for truth in gt_instances:
            qualities = retry_if_cuda_oom(pairwise_iou)(truth.gt_boxes, boxes)
            matches, labels = retry_if_cuda_oom(self.anchor_matcher)(qualities)
            del qualities  # the largest tensor here; the images after it would need as much again
            matches, labels = matches.to(boxes.device), labels.to(boxes.device)
            if self.anchor_boundary_thresh >= 0:
                labels[~boxes.inside_box(truth.image_size, self.anchor_boundary_thresh)] = -1  # type: ignore[arg-type]
            all_labels.append(self._subsample_labels(labels))
            targets = truth.gt_boxes.tensor
            all_targets.append(targets[matches] if len(targets) else torch.zeros_like(boxes.tensor))
        return all_labels, all_targets

    def losses(
        self,
        anchors: list[Boxes], pred_objectness_logits: list[torch.Tensor], gt_labels: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor], gt_boxes: list[torch.Tensor],
    ) -> dict[str, torch.Tensor]:  # fmt: skip
        """Return ``loss_rpn_cls`` and ``loss_rpn_loc``, both per sampled anchor.

        Args:
            anchors: of each level.
            pred_objectness_logits: of each level, (B, H x W x A).
            gt_labels: of each image, (R,), from :meth:`label_and_sample_anchors`.
            pred_anchor_deltas: of each level, (B, H x W x A, 4).
            gt_boxes: of each image, (R, 4), likewise.
        """
        labels = torch.stack(gt_labels)
        is_positive, is_sampled = labels == 1, labels >= 0
        positives, sampled = is_positive.sum().item(), is_sampled.sum().item()
        storage = get_event_storage()
        storage.put_scalar("rpn/num_pos_anchors", positives / len(labels))
        storage.put_scalar("rpn/num_neg_anchors", (sampled - positives) / len(labels))
        localization = _dense_box_regression_loss(
            anchors, self.box2box_transform, pred_anchor_deltas, gt_boxes, is_positive,
            box_reg_loss_type=self.box_reg_loss_type, smooth_l1_beta=self.smooth_l1_beta,
        )  # fmt: skip
        logits = cat(pred_objectness_logits, dim=1)[is_sampled]
        objectness = F.binary_cross_entropy_with_logits(logits, labels[is_sampled].float(), reduction="sum")
        normalizer = self.batch_size_per_image * len(labels)
        losses = {"loss_rpn_cls": objectness / normalizer, "loss_rpn_loc": localization / normalizer}
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def forward(
        self, images: ImageList, features: Mapping[str, torch.Tensor], gt_instances: Sequence[Instances] | None = None
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """Propose boxes and, while training, compute the losses.

        Args:
            images: B images.
            features: by name, (B, C, H, W).
            gt_instances: of each image, with ``gt_boxes``; needed while training.

        Returns:
            proposals of each image, and the losses by name.
        """
        levels = [features[name] for name in self.in_features]
        anchors = self.anchor_generator(levels)
        logits, deltas = self.rpn_head(levels)
        # the anchors change fastest, as the generator has them
        logits = [level.permute(0, 2, 3, 1).flatten(start_dim=1) for level in logits]
        box_dim = self.anchor_generator.box_dim
        deltas = [
            level.unflatten(1, (-1, box_dim)).permute(0, 3, 4, 1, 2).flatten(start_dim=1, end_dim=-2)
            for level in deltas
        ]
        losses = {}
        if self.training:
            assert gt_instances is not None, "a region proposal network needs ground truth while training"
            labels, targets = self.label_and_sample_anchors(anchors, gt_instances)
            losses = self.losses(anchors, logits, labels, deltas, targets)
        return self.predict_proposals(anchors, logits, deltas, images.image_sizes), losses

    @torch.no_grad()
    def predict_proposals(
        self,
        anchors: list[Boxes], pred_objectness_logits: list[torch.Tensor], pred_anchor_deltas: list[torch.Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Instances]:  # fmt: skip
        """Return the best proposals of each image; no gradient flows through their coordinates.

        Args:
            anchors: of each level.
            pred_objectness_logits: of each level, (B, H x W x A).
            pred_anchor_deltas: of each level, (B, H x W x A, 4).
            image_sizes: (height, width) of each image without its padding.
        """
        return find_top_rpn_proposals(
            self._decode_proposals(anchors, pred_anchor_deltas), pred_objectness_logits, image_sizes,
            self.nms_thresh, self.pre_nms_topk[self.training], self.post_nms_topk[self.training],
            self.min_box_size, self.training,
        )  # fmt: skip

    def _decode_proposals(self, anchors: list[Boxes], pred_anchor_deltas: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the boxes of each level that the deltas lead to, (B, H x W x A, 4)."""
        decoded = []
        for level, deltas in zip(anchors, pred_anchor_deltas, strict=True):
            sources = level.tensor.expand_as(deltas).flatten(end_dim=1)
            decoded.append(self.box2box_transform.apply_deltas(deltas.flatten(end_dim=1), sources).view_as(deltas))
        return decoded
