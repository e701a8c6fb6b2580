"""Box heads one after the other, each on the boxes of the one before (Cascade R-CNN, arXiv:1712.00726)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads.fast_rcnn import Predictions, fast_rcnn_inference
from detectron2.modeling.roi_heads.roi_heads import Features, StandardROIHeads
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage


class _ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.scale = scale
        return input

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return grad_outputs[0] * ctx.scale, None


class CascadeROIHeads(StandardROIHeads):
    """Region heads with a cascade of box heads."""

    def __init__(
        self,
        *,
        box_in_features: Sequence[str], box_pooler: ROIPooler, box_heads: Sequence[nn.Module],
        box_predictors: Sequence[nn.Module], proposal_matchers: Sequence[Matcher], **kwargs: Any,
    ) -> None:  # fmt: skip
        """Put the stages together.

        Args:
            box_in_features: names of the box heads' feature maps.
            box_pooler: pools the regions of all stages.
            box_heads: head of each stage.
            box_predictors: predictor of each stage, with one box for all classes.
            proposal_matchers: matcher of each stage, stricter from one to the next.
            kwargs: see :class:`StandardROIHeads`; there is no ``proposal_matcher``.
        """
        assert "proposal_matcher" not in kwargs, "a cascade has proposal_matchers, one for each stage"
        stages = [len(box_heads), len(box_predictors), len(proposal_matchers)]
        assert len(set(stages)) == 1, "{} heads, {} predictors and {} matchers".format(*stages)
        super().__init__(
            box_in_features=box_in_features, box_pooler=box_pooler, box_head=nn.ModuleList(box_heads),
            box_predictor=nn.ModuleList(box_predictors), proposal_matcher=proposal_matchers[0], **kwargs,
        )  # fmt: skip
        self.num_cascade_stages, self.proposal_matchers = stages[0], proposal_matchers

    def _box_losses(
        self, features: Features, proposals: list[Instances], targets: list[Instances]
    ) -> dict[str, torch.Tensor]:
        return self._forward_box(features, proposals, targets)

    def _forward_box(
        self, features: Features, proposals: list[Instances], targets: list[Instances] | None = None
    ) -> Any:
        """Return the losses of all stages, their names ending in ``_stage0`` and on, or the detections.

        Detections have the boxes of the last stage and the mean of all stages' probabilities.
        """
        levels = [features[name] for name in self.box_in_features]
        sizes = [one.image_size for one in proposals]
        boxes: Sequence[torch.Tensor] = []
        outputs: list[tuple[Any, Predictions, list[Instances]]] = []
        for stage in range(self.num_cascade_stages):
            if stage > 0:
                proposals = self._create_proposals_from_boxes(boxes, sizes)
                if self.training:
                    assert targets is not None
                    proposals = self._match_and_label_boxes(proposals, stage, targets)
            predictions = self._run_stage(levels, proposals, stage)
            predictor: Any = self.box_predictor[stage]  # type: ignore[index]
            boxes = predictor.predict_boxes(predictions, proposals)
            outputs.append((predictor, predictions, proposals))
        if not self.training:
            by_stage = [predictor.predict_probs(predictions, own) for predictor, predictions, own in outputs]
            scores = [sum(of_image) * (1.0 / len(outputs)) for of_image in zip(*by_stage, strict=True)]
            limits = (predictor.test_score_thresh, predictor.test_nms_thresh, predictor.test_topk_per_image)
            return fast_rcnn_inference(boxes, scores, sizes, *limits)[0]
        losses = {}
        for stage, (predictor, predictions, own) in enumerate(outputs):
            with get_event_storage().name_scope(f"stage{stage}"):
                found = predictor.losses(predictions, own)
            losses.update({f"{name}_stage{stage}": loss for name, loss in found.items()})
        return losses

    @torch.no_grad()
    def _match_and_label_boxes(
        self, proposals: list[Instances], stage: int, targets: list[Instances]
    ) -> list[Instances]:
        """Give the proposals of a stage, in place, ``gt_classes`` and ``gt_boxes``; all of them are trained on."""
        objects, background = [], []
        for own, truth in zip(proposals, targets, strict=True):
            quality = pairwise_iou(truth.gt_boxes, own.proposal_boxes)
            matches, labels = self.proposal_matchers[stage](quality)
            own.gt_classes = self._classes_of(matches, labels, truth.gt_classes)
            boxes = truth.gt_boxes.tensor
            own.gt_boxes = Boxes(boxes[matches] if len(boxes) else torch.zeros_like(own.proposal_boxes.tensor))
            objects.append((labels == 1).sum().item())
            background.append(labels.numel() - objects[-1])
        storage = get_event_storage()
        storage.put_scalar(f"stage{stage}/roi_head/num_fg_samples", sum(objects) / len(objects))
        storage.put_scalar(f"stage{stage}/roi_head/num_bg_samples", sum(background) / len(background))
        return proposals

    def _run_stage(self, features: list[torch.Tensor], proposals: list[Instances], stage: int) -> Predictions:
        """Return the logits and deltas of a stage.

        The stages' losses are summed. So that the features do not get the sum of their gradients, but the mean, as
        in the paper, the gradient is scaled down here.
        """
        pooled = self.box_pooler(features, [one.proposal_boxes for one in proposals])
        if self.training:
            pooled = _ScaleGradient.apply(pooled, 1.0 / self.num_cascade_stages)
        return self.box_predictor[stage](self.box_head[stage](pooled))  # type: ignore[index]

    def _create_proposals_from_boxes(
        self, boxes: Sequence[torch.Tensor], image_sizes: Sequence[tuple[int, int]]
    ) -> list[Instances]:
        """Return predicted boxes, clipped to their image and without gradient, as proposals.

        While training the empty ones are dropped; at inference the scores of all stages must stay side by side.
        """
        proposals = []
        for tensor, size in zip(boxes, image_sizes, strict=True):
            own = Boxes(tensor.detach())
            own.clip(size)
            proposals.append(Instances(size, proposal_boxes=own[own.nonempty()] if self.training else own))
        return proposals
