"""Class and box of a region (Fast R-CNN, arXiv:1504.08083).

B images, N regions of all of them, K classes without the background, whose label is K.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from detectron2.layers import ShapeSpec, cat, cross_entropy
from detectron2.layers.nms import batched_nms
from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage

__all__ = ["FastRCNNOutputLayers", "fast_rcnn_inference"]

Predictions = tuple[torch.Tensor, torch.Tensor]


def fast_rcnn_inference(
    boxes: Sequence[torch.Tensor], scores: Sequence[torch.Tensor],
    image_shapes: Sequence[tuple[int, int]], score_thresh: float, nms_thresh: float, topk_per_image: int,
) -> tuple[list[Instances], list[torch.Tensor]]:  # fmt: skip
    """Choose detections: by score, then by suppression within each class.

    Args:
        boxes: of each image, (R, 4 K) XYXY, or (R, 4) where all classes have the same box.
        scores: of each image, (R, K + 1) probabilities, the background last.
        image_shapes: (height, width) of each image; boxes are clipped to it.
        score_thresh: a detection's score must be greater.
        nms_thresh: IoU above which the worse of two detections of a class goes.
        topk_per_image: how many of an image to keep, the best; a negative number keeps all.

    Returns:
        of each image, the detections with ``pred_boxes``, ``scores`` and ``pred_classes``, the best first; and the
        rows of ``boxes`` that they come from.
    """
    found = [
        fast_rcnn_inference_single_image(*one, score_thresh, nms_thresh, topk_per_image)
        for one in zip(boxes, scores, image_shapes, strict=True)
    ]
    return [instances for instances, _ in found], [rows for _, rows in found]


def fast_rcnn_inference_single_image(
    boxes: torch.Tensor, scores: torch.Tensor,
    image_shape: tuple[int, int], score_thresh: float, nms_thresh: float, topk_per_image: int,
) -> tuple[Instances, torch.Tensor]:  # fmt: skip
    """Choose the detections of one image; arguments and result as in :func:`fast_rcnn_inference`."""
    finite = boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
    if not finite.all():
        boxes, scores = boxes[finite], scores[finite]
    scores = scores[:, :-1]
    rows, classes = (scores > score_thresh).nonzero(as_tuple=True)
    per_class = boxes.unflatten(1, (-1, 4))
    chosen = Boxes(per_class[rows, 0] if per_class.shape[1] == 1 else per_class[rows, classes])
    chosen.clip(image_shape)
    chosen_scores = scores[rows, classes]
    keep = batched_nms(chosen.tensor, chosen_scores, classes, nms_thresh)
    if topk_per_image >= 0:
        keep = keep[:topk_per_image]
    detections = Instances(image_shape, pred_boxes=chosen[keep], scores=chosen_scores[keep], pred_classes=classes[keep])
    return detections, rows[keep]


def _log_classification_stats(pred_logits: torch.Tensor, gt_classes: torch.Tensor, prefix: str = "fast_rcnn") -> None:
    """Record how many of the regions, and of those with an object, are classified rightly."""
    if gt_classes.numel() == 0:
        return
    background = pred_logits.shape[1] - 1
    predicted = pred_logits.argmax(dim=1)
    right = predicted == gt_classes
    is_object = (gt_classes >= 0) & (gt_classes < background)
    objects = is_object.sum().item()
    storage = get_event_storage()
    storage.put_scalar(f"{prefix}/cls_accuracy", right.sum().item() / gt_classes.numel())
    if objects > 0:
        missed = (is_object & (predicted == background)).sum().item()
        storage.put_scalar(f"{prefix}/fg_cls_accuracy", (is_object & right).sum().item() / objects)
        storage.put_scalar(f"{prefix}/false_negative", missed / objects)


class FastRCNNOutputLayers(nn.Module):
    """Two linear layers: class scores, and deltas from the proposal to the box."""

    def __init__(
        self, input_shape: ShapeSpec | int, *, box2box_transform: Box2BoxTransform, num_classes: int,
        test_score_thresh: float = 0.0, test_nms_thresh: float = 0.5, test_topk_per_image: int = 100,
        cls_agnostic_bbox_reg: bool = False, smooth_l1_beta: float = 0.0, box_reg_loss_type: str = "smooth_l1",
        loss_weight: float | Mapping[str, float] = 1.0, use_sigmoid_ce: bool = False,
    ) -> None:  # fmt: skip
        """Make the layers.

        Args:
            input_shape: shape of a region's features, or their number.
            box2box_transform: what the deltas mean.
            num_classes: K.
            test_score_thresh: see :func:`fast_rcnn_inference`.
            test_nms_thresh: likewise.
            test_topk_per_image: likewise.
            cls_agnostic_bbox_reg: one box for all classes instead of one for each.
            smooth_l1_beta: where smooth L1 turns from square to linear; 0 is L1.
            box_reg_loss_type: "smooth_l1", "giou", "diou" or "ciou".
            loss_weight: factor of the losses, or of each by its name, ``loss_cls`` and ``loss_box_reg``.
            use_sigmoid_ce: a binary cross-entropy for each class instead of one over all.
        """
        super().__init__()
        shape = ShapeSpec(channels=input_shape) if isinstance(input_shape, int) else input_shape
        size = math.prod(length or 1 for length in (shape.channels, shape.height, shape.width))
        self.num_classes = num_classes
        self.cls_score = nn.Linear(size, num_classes + 1)
        self.bbox_pred = nn.Linear(size, (1 if cls_agnostic_bbox_reg else num_classes) * len(box2box_transform.weights))
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        self.box2box_transform = box2box_transform
        self.smooth_l1_beta, self.box_reg_loss_type = smooth_l1_beta, box_reg_loss_type
        self.test_score_thresh, self.test_nms_thresh = test_score_thresh, test_nms_thresh
        self.test_topk_per_image = test_topk_per_image
        if isinstance(loss_weight, float):
            loss_weight = dict.fromkeys(("loss_cls", "loss_box_reg"), loss_weight)
        self.loss_weight: Any = loss_weight
        self.use_sigmoid_ce = use_sigmoid_ce

    def forward(self, x: torch.Tensor) -> Predictions:
        """Predict.

        Args:
            x: features of the regions, (N, ...).

        Returns:
            class logits (N, K + 1), and deltas (N, 4 K) or (N, 4).
        """
        features = x.flatten(start_dim=1)
        return self.cls_score(features), self.bbox_pred(features)

    def losses(self, predictions: Predictions, proposals: Sequence[Instances]) -> dict[str, torch.Tensor]:
        """Return ``loss_cls`` and ``loss_box_reg``.

        Args:
            predictions: what :meth:`forward` returned for the proposals.
            proposals: of each image, with ``proposal_boxes``, ``gt_classes`` and, where it has objects, ``gt_boxes``.
        """
        scores, deltas = predictions
        if proposals:
            gt_classes = cat([one.gt_classes for one in proposals])
            boxes = cat([one.proposal_boxes.tensor for one in proposals])
            # background regions have no target, and need none
            targets = cat([(one.gt_boxes if one.has("gt_boxes") else one.proposal_boxes).tensor for one in proposals])
        else:
            gt_classes = torch.empty(0, dtype=torch.int64, device=deltas.device)
            boxes = targets = torch.empty((0, 4), device=deltas.device)
        assert not boxes.requires_grad, "no gradient may flow into the proposals"
        _log_classification_stats(scores, gt_classes)
        classify = self.sigmoid_cross_entropy_loss if self.use_sigmoid_ce else cross_entropy
        losses = {
            "loss_cls": classify(scores, gt_classes),
            "loss_box_reg": self.box_reg_loss(boxes, targets, deltas, gt_classes),
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def sigmoid_cross_entropy_loss(self, pred_class_logits: torch.Tensor, gt_classes: torch.Tensor) -> torch.Tensor:
        """Return the sum over the classes of the binary cross-entropy, per region.

        Args:
            pred_class_logits: (N, K + 1); the background's are not used.
            gt_classes: (N,) labels in [0, K].
        """
        if pred_class_logits.numel() == 0:
            return pred_class_logits.new_zeros(())
        classes = pred_class_logits.shape[1] - 1
        targets = F.one_hot(gt_classes, classes + 1)[:, :-1].to(pred_class_logits.dtype)
        loss = F.binary_cross_entropy_with_logits(pred_class_logits[:, :-1], targets, reduction="none")
        return loss.sum() / len(gt_classes)

    def box_reg_loss(
        self, proposal_boxes: torch.Tensor, gt_boxes: torch.Tensor, pred_deltas: torch.Tensor, gt_classes: torch.Tensor
    ) -> torch.Tensor:
        """Return the box loss of the objects, divided by the number of all regions, so that each object counts alike.

        Args:
            proposal_boxes: (N, 4) XYXY.
            gt_boxes: (N, 4) XYXY.
            pred_deltas: (N, 4 K) or (N, 4).
            gt_classes: (N,) labels in [0, K].
        """
        objects = ((gt_classes >= 0) & (gt_classes < self.num_classes)).nonzero().squeeze(1)
        deltas = pred_deltas[objects]
        if deltas.shape[1] > 4:
            deltas = deltas.view(-1, self.num_classes, 4)[torch.arange(len(objects)), gt_classes[objects]]
        loss = _dense_box_regression_loss(
            [proposal_boxes[objects]], self.box2box_transform, [deltas[None]], [gt_boxes[objects]], ...,
            self.box_reg_loss_type, self.smooth_l1_beta,
        )  # fmt: skip
        return loss / max(gt_classes.numel(), 1.0)

    def inference(
        self, predictions: Predictions, proposals: Sequence[Instances]
    ) -> tuple[list[Instances], list[torch.Tensor]]:
        """Return the detections, see :func:`fast_rcnn_inference`.

        Args:
            predictions: what :meth:`forward` returned for the proposals.
            proposals: of each image, with ``proposal_boxes``.
        """
        boxes, scores = self.predict_boxes(predictions, proposals), self.predict_probs(predictions, proposals)
        limits = (self.test_score_thresh, self.test_nms_thresh, self.test_topk_per_image)
        return fast_rcnn_inference(boxes, scores, [one.image_size for one in proposals], *limits)

    def predict_boxes_for_gt_classes(
        self, predictions: Predictions, proposals: Sequence[Instances]
    ) -> Sequence[torch.Tensor]:
        """Return, of each image, the boxes (R, 4) predicted for the class in ``gt_classes``.

        Args:
            predictions: what :meth:`forward` returned for the proposals.
            proposals: of each image, with ``proposal_boxes`` and ``gt_classes``; the background's box is any.
        """
        boxes = self.predict_boxes(predictions, proposals)
        if not boxes or boxes[0].shape[1] == 4:
            return boxes
        return [
            own.unflatten(1, (-1, 4))[torch.arange(len(one)), one.gt_classes.clamp(0, self.num_classes - 1)]
            for own, one in zip(boxes, proposals, strict=True)
        ]

    def predict_boxes(self, predictions: Predictions, proposals: Sequence[Instances]) -> Sequence[torch.Tensor]:
        """Return the boxes of each image, (R, 4 K) or (R, 4) XYXY.

        Args:
            predictions: what :meth:`forward` returned for the proposals.
            proposals: of each image, with ``proposal_boxes``.
        """
        if not proposals:
            return []
        boxes = cat([one.proposal_boxes.tensor for one in proposals])
        return self.box2box_transform.apply_deltas(predictions[1], boxes).split([len(one) for one in proposals])

    def predict_probs(self, predictions: Predictions, proposals: Sequence[Instances]) -> Sequence[torch.Tensor]:
        """Return the class probabilities of each image, (R, K + 1).

        Args:
            predictions: what :meth:`forward` returned for the proposals.
            proposals: of each image.
        """
        logits = predictions[0]
        probabilities = logits.sigmoid() if self.use_sigmoid_ce else logits.softmax(dim=-1)
        return probabilities.split([len(one) for one in proposals])
