"""Everything that happens in proposed regions.

B images, R regions of one image, M ground truths of one image, K classes without the background, whose label is K.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage

Features = Mapping[str, torch.Tensor]


def select_foreground_proposals(
    proposals: Sequence[Instances], bg_label: int
) -> tuple[list[Instances], list[torch.Tensor]]:
    """Return, of each image, the proposals that hold an object, and a mask (R,) bool of them.

    Args:
        proposals: of each image, with ``gt_classes``; -1 is ignored.
        bg_label: label of the background.
    """
    masks = [(one.gt_classes != -1) & (one.gt_classes != bg_label) for one in proposals]
    return [one[mask.nonzero().squeeze(1)] for one, mask in zip(proposals, masks, strict=True)], masks


class ROIHeads(nn.Module):
    """Base of the region heads: gives proposals their targets and draws those that are trained on."""

    def __init__(
        self,
        *,
        num_classes: int, batch_size_per_image: int, positive_fraction: float, proposal_matcher: Matcher,
        proposal_append_gt: bool = True,
    ) -> None:  # fmt: skip
        """Set how proposals are drawn.

        Args:
            num_classes: K.
            batch_size_per_image: how many proposals of an image enter the losses.
            positive_fraction: share of those with an object, at most.
            proposal_matcher: labels the proposals, 1, 0 or -1.
            proposal_append_gt: the ground truth is a proposal, too, so that there are good ones from the start.
        """
        super().__init__()
        self.num_classes, self.proposal_matcher = num_classes, proposal_matcher
        self.batch_size_per_image, self.positive_fraction = batch_size_per_image, positive_fraction
        self.proposal_append_gt = proposal_append_gt

    def _classes_of(self, matches: torch.Tensor, labels: torch.Tensor, gt_classes: torch.Tensor) -> torch.Tensor:
        """Return the class (R,) of matched proposals: K for the background, -1 for what is ignored."""
        if gt_classes.numel() == 0:
            return torch.full_like(matches, self.num_classes)
        classes = gt_classes[matches]
        classes[labels == 0] = self.num_classes
        classes[labels == -1] = -1
        return classes

    def _sample_proposals(
        self, matched_idxs: torch.Tensor, matched_labels: torch.Tensor, gt_classes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the indices of proposals drawn at random, those with an object first, and their classes.

        Args:
            matched_idxs: (R,) index of the ground truth.
            matched_labels: (R,) what the matcher says of it.
            gt_classes: (M,) of the ground truth.
        """
        classes = self._classes_of(matched_idxs, matched_labels, gt_classes)
        limits = (self.batch_size_per_image, self.positive_fraction)
        chosen = torch.cat(subsample_labels(classes, *limits, self.num_classes))
        return chosen, classes[chosen]

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: Sequence[Instances], targets: Sequence[Instances]
    ) -> list[Instances]:
        """Match proposals with the ground truth and draw those that are trained on.

        Args:
            proposals: of each image, with ``proposal_boxes`` and ``objectness_logits``.
            targets: ground truth of each image, with ``gt_boxes`` and ``gt_classes``.

        Returns:
            of each image, the drawn proposals with ``gt_classes`` and, where the image has ground truth, every other
            ``gt_*`` field of it. For the background these fields mean nothing.
        """
        if self.proposal_append_gt:
            proposals = add_ground_truth_to_proposals(targets, proposals)
        sampled, objects, background = [], [], []
        for own, truth in zip(proposals, targets, strict=True):
            matches, labels = self.proposal_matcher(pairwise_iou(truth.gt_boxes, own.proposal_boxes))
            chosen, classes = self._sample_proposals(matches, labels, truth.gt_classes)
            drawn = own[chosen]
            drawn.gt_classes = classes
            if len(truth) > 0:
                for name, value in truth.get_fields().items():
                    if name.startswith("gt_") and not drawn.has(name):
                        drawn.set(name, value[matches[chosen]])
            background.append((classes == self.num_classes).sum().item())
            objects.append(classes.numel() - background[-1])
            sampled.append(drawn)
        storage = get_event_storage()
        storage.put_scalar("roi_head/num_fg_samples", np.mean(objects))
        storage.put_scalar("roi_head/num_bg_samples", np.mean(background))
        return sampled

    def forward(
        self, images: ImageList, features: Features, proposals: list[Instances], targets: list[Instances] | None = None
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """Train or detect.

        Args:
            images: B images.
            features: by name, (B, C, H, W).
            proposals: of each image, with ``proposal_boxes`` and ``objectness_logits``.
            targets: ground truth of each image with ``gt_boxes``, ``gt_classes`` and perhaps ``gt_masks``; while
                training alone.

        Returns:
            while training the sampled proposals and the losses, otherwise the detections of each image and nothing.
        """
        raise NotImplementedError


class StandardROIHeads(ROIHeads):
    """A box head and a mask head, each with a pooler of its own."""

    def __init__(
        self,
        *,
        box_in_features: Sequence[str], box_pooler: ROIPooler, box_head: nn.Module, box_predictor: nn.Module,
        mask_in_features: Sequence[str] | None = None, mask_pooler: ROIPooler | None = None,
        mask_head: nn.Module | None = None, train_on_pred_boxes: bool = False, **kwargs: Any,
    ) -> None:  # fmt: skip
        """Put the parts together.

        Args:
            box_in_features: names of the box head's feature maps.
            box_pooler: pools the regions of the box head.
            box_head: features of a region.
            box_predictor: such as :class:`FastRCNNOutputLayers`.
            mask_in_features: names of the mask head's feature maps; None for no masks.
            mask_pooler: pools the regions of the mask head; None gives it the feature maps themselves, by name.
            mask_head: such as :class:`MaskRCNNConvUpsampleHead`.
            train_on_pred_boxes: train the mask head on the boxes of the box head instead of on the proposals.
            kwargs: see :class:`ROIHeads`.
        """
        super().__init__(**kwargs)
        self.in_features = self.box_in_features = box_in_features
        self.box_pooler, self.box_head, self.box_predictor = box_pooler, box_head, box_predictor
        self.train_on_pred_boxes = train_on_pred_boxes
        self.mask_on = mask_in_features is not None
        if mask_in_features is not None:
            self.mask_in_features = mask_in_features
            self.mask_pooler, self.mask_head = mask_pooler, mask_head

    def forward(
        self, images: ImageList, features: Features, proposals: list[Instances], targets: list[Instances] | None = None
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """See :meth:`ROIHeads.forward`."""
        if not self.training:
            return self.forward_with_given_boxes(features, self._forward_box(features, proposals)), {}
        assert targets, "region heads need ground truth while training"
        sampled = self.label_and_sample_proposals(proposals, targets)
        # the box head first: with train_on_pred_boxes it changes the proposals
        losses = self._box_losses(features, sampled, targets)
        return sampled, {**losses, **self._forward_mask(features, sampled)}

    def _box_losses(
        self, features: Features, proposals: list[Instances], targets: list[Instances]
    ) -> dict[str, torch.Tensor]:
        return self._forward_box(features, proposals)

    def forward_with_given_boxes(self, features: Features, instances: list[Instances]) -> list[Instances]:
        """Give detections what is not a box: their masks.

        Args:
            features: by name, (B, C, H, W).
            instances: of each image, with ``pred_boxes`` and ``pred_classes``; changed in place.
        """
        assert not self.training, "boxes are given at inference alone"
        assert instances[0].has("pred_boxes") and instances[0].has("pred_classes"), "boxes and classes are missing"
        return self._forward_mask(features, instances)

    def _forward_box(self, features: Features, proposals: list[Instances]) -> Any:
        """Return the losses of the box head, or the detections of each image."""
        levels = [features[name] for name in self.box_in_features]
        pooled = self.box_pooler(levels, [one.proposal_boxes for one in proposals])
        predictions = self.box_predictor(self.box_head(pooled))
        if not self.training:
            return self.box_predictor.inference(predictions, proposals)[0]  # type: ignore[operator]
        losses = self.box_predictor.losses(predictions, proposals)  # type: ignore[operator]
        if self.train_on_pred_boxes:
            with torch.no_grad():
                boxes = self.box_predictor.predict_boxes_for_gt_classes(predictions, proposals)  # type: ignore[operator]
                for one, own in zip(proposals, boxes, strict=True):
                    one.proposal_boxes = Boxes(own)
        return losses

    def _forward_mask(self, features: Features, instances: list[Instances]) -> Any:
        """Return the loss of the mask head, or the instances with masks."""
        if not self.mask_on:
            return {} if self.training else instances
        assert self.mask_head is not None
        if self.training:
            instances, _ = select_foreground_proposals(instances, self.num_classes)
        chosen = {name: features[name] for name in self.mask_in_features}
        if self.mask_pooler is None:
            return self.mask_head(chosen, instances)
        boxes = [one.proposal_boxes if self.training else one.pred_boxes for one in instances]
        return self.mask_head(self.mask_pooler(list(chosen.values()), boxes), instances)
