"""SAM's three masks of an ambiguous prompt: which one is the answer."""

from __future__ import annotations

import torch
from torch import Tensor


def of_highest_iou(logits: Tensor, predicted_iou: Tensor) -> tuple[Tensor, Tensor]:
    """Return of (n, M, L, L) logits and (n, M) predicted IoU those of the best mask: (n, L, L) and (n,)."""
    best = predicted_iou.argmax(dim=1)
    rows = torch.arange(len(best), device=best.device)
    return logits[rows, best], predicted_iou[rows, best]
