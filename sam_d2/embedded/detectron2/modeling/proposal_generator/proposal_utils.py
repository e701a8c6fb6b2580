"""Choice of proposals among what a region proposal network predicts."""

import math
from collections.abc import Sequence

import torch

from detectron2.layers.nms import batched_nms
from detectron2.structures import Boxes, Instances


def find_top_rpn_proposals(
    proposals: Sequence[torch.Tensor], pred_objectness_logits: Sequence[torch.Tensor],
    image_sizes: Sequence[tuple[int, int]], nms_thresh: float, pre_nms_topk: int, post_nms_topk: int,
    min_box_size: float, training: bool,
) -> list[Instances]:  # fmt: skip
    """Return the best proposals of each image.

    Args:
        proposals: of each level, (B, R_l, 4) XYXY in the frame of the model's input.
        pred_objectness_logits: of each level, (B, R_l).
        image_sizes: (height, width) of each image, without padding; proposals are clipped to it.
        nms_thresh: IoU above which, within a level, the worse of two proposals goes.
        pre_nms_topk: how many of each level go into the suppression, at most.
        post_nms_topk: how many of all levels come out of it, at most.
        min_box_size: both sides of a proposal must be longer than this.
        training: whether a prediction that is not finite is an error; it is dropped otherwise.

    Returns:
        of each image, instances with ``proposal_boxes`` and ``objectness_logits``, the best first.

    Raises:
        FloatingPointError: while training, a prediction is infinite or NaN.
    """
    best_boxes, best_scores, best_levels = [], [], []
    for level, (boxes, logits) in enumerate(zip(proposals, pred_objectness_logits, strict=True)):
        scores, order = logits.topk(min(logits.shape[1], pre_nms_topk), dim=1)
        best_scores.append(scores)
        best_boxes.append(boxes.gather(1, order[..., None].expand(-1, -1, boxes.shape[-1])))
        best_levels.append(order.new_full((order.shape[1],), level))
    all_boxes, all_scores, all_levels = torch.cat(best_boxes, 1), torch.cat(best_scores, 1), torch.cat(best_levels)

    results = []
    for image, size in enumerate(image_sizes):
        found = Instances(size, proposal_boxes=Boxes(all_boxes[image]), objectness_logits=all_scores[image])
        found.level = all_levels
        finite = found.proposal_boxes.tensor.isfinite().all(dim=1) & found.objectness_logits.isfinite()
        if not finite.all():
            if training:
                raise FloatingPointError("Predicted boxes or scores contain Inf/NaN. Training has diverged.")
            found = found[finite]
        found.proposal_boxes.clip(size)
        found = found[found.proposal_boxes.nonempty(threshold=min_box_size)]
        keep = batched_nms(found.proposal_boxes.tensor, found.objectness_logits, found.level, nms_thresh)
        found.remove("level")
        results.append(found[keep[:post_nms_topk]])
    return results


def add_ground_truth_to_proposals(gt: Sequence[Instances | Boxes], proposals: Sequence[Instances]) -> list[Instances]:
    """Return the proposals of each image and, after them, its ground truth as proposals of a probability of nearly 1.

    Args:
        gt: of each image, instances with ``gt_boxes``, or the boxes alone.
        proposals: of each image, with ``proposal_boxes`` and ``objectness_logits``; other fields must be in ``gt``.

    Raises:
        ValueError: the two lists are of different numbers of images.
    """
    if len(proposals) != len(gt):
        raise ValueError(f"ground truth of {len(gt)} images, proposals of {len(proposals)}")
    joined = []
    for truth, own in zip(gt, proposals, strict=True):
        fields: dict = {"gt_boxes": truth} if isinstance(truth, Boxes) else truth.get_fields()
        certain = Instances(own.image_size, **fields)
        certain.proposal_boxes = certain.gt_boxes
        logit = math.log((1.0 - 1e-10) / (1 - (1.0 - 1e-10)))
        certain.objectness_logits = torch.full((len(certain),), logit, device=own.objectness_logits.device)
        missing = [name for name in own.get_fields() if not certain.has(name)]
        assert not missing, f"the ground truth has no {', '.join(missing)}, which the proposals have"
        joined.append(Instances.cat([own, certain]))  # of the proposals' fields alone
    return joined
