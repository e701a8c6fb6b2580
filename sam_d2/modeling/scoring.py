"""The score that ranks a mask: a named choice, printed with every AP.

``class_score`` is the class confidence of whatever made the prompt (1 for ground-truth prompts), ``predicted_iou``
SAM's own estimate, ``stability`` the IoU of the mask thresholded above and below (SAM, arXiv 2304.02643,
section 5), ``mean_probability`` the mean foreground probability over the mask. Names joined by ``*`` multiply.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sam_d2.errors import UserError

SCORES = ("class_score", "predicted_iou", "stability", "mean_probability")


def parse_score(score: str) -> tuple[str, ...]:
    """Return the factors of a score such as ``class_score*predicted_iou``.

    Raises:
        UserError: a factor is unknown or named twice.
    """
    factors = tuple(score.split("*"))
    unknown = [factor for factor in factors if factor not in SCORES]
    if unknown or len(set(factors)) != len(factors):
        raise UserError(
            f"model.score={score!r}: expected one of {', '.join(SCORES)}, or several different ones joined by '*'."
        )
    return factors


def stability_score(logits: Tensor, *, offset: float = 1.0) -> Tensor:
    """Return the IoU of ``logits > offset`` and ``logits > -offset``: how much the mask depends on the threshold.

    Args:
        logits: (N, h, w) mask logits, any frame.
        offset: distance of both thresholds from 0.

    Returns:
        (N,) float32 in [0, 1]; 0 where even the lower threshold leaves nothing.
    """
    high = (logits > offset).flatten(1).sum(1)
    low = (logits > -offset).flatten(1).sum(1)
    return torch.where(low > 0, high / low.clamp(min=1), torch.zeros_like(low, dtype=torch.float32))


def mean_probability(logits: Tensor) -> Tensor:
    """Return the mean of sigmoid(logits) over the cells above 0.

    Args:
        logits: (N, h, w) mask logits, any frame.

    Returns:
        (N,) float32 in [0, 1]; 0 for an empty mask.
    """
    inside = logits > 0
    total = (logits.sigmoid() * inside).flatten(1).sum(1)
    return total / inside.flatten(1).sum(1).clamp(min=1)


def score_masks(
    factors: tuple[str, ...], logits: Tensor, predicted_iou: Tensor, class_score: Tensor | None = None
) -> Tensor:
    """Return the scores of masks.

    Args:
        factors: as :func:`parse_score` returns them.
        logits: (N, H0, W0) mask logits, original frame.
        predicted_iou: (N,).
        class_score: (N,) of what made the prompts; 1 where None.

    Returns:
        (N,) float32.
    """
    given = torch.ones_like(predicted_iou) if class_score is None else class_score
    values = {"predicted_iou": predicted_iou, "class_score": given}
    if "stability" in factors:
        values["stability"] = stability_score(logits)
    if "mean_probability" in factors:
        values["mean_probability"] = mean_probability(logits)
    return combine_scores(factors, values)


def combine_scores(factors: tuple[str, ...], values: dict[str, Tensor]) -> Tensor:
    """Multiply the named scores; each value is (N,) float32."""
    product = values[factors[0]]
    for factor in factors[1:]:
        product = product * values[factor]
    return product
