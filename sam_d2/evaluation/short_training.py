"""What to say of a model that has learnt nothing yet, as its loss has it, or that has lost what it knew."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

from detectron2.utils.events import get_event_storage, has_event_storage
from sam_d2.evaluation.results import Result

NOTHING = 1.0
"""AP, 0-100, below which a model has learnt nothing that counts."""
FAR = 5.0
"""AP by which a trivial baseline must lead, so that the data are known to hold something to learn; or the base, which
the training has then spoilt."""
FEW_STEPS = 50
"""Steps, less than a warm-up, after which neither AP nor loss says anything."""
_FALLING = 0.99


def training_losses() -> list[tuple[float, int]]:
    """Return (total loss, iteration) of each step of the training that runs now; none outside of one."""
    histories = get_event_storage().histories() if has_event_storage() else {}
    return histories["total_loss"].values() if "total_loss" in histories else []


def short_training_hint(
    rows: Iterable[Result], losses: Sequence[tuple[float, int]], *, pretrained: bool = False
) -> str | None:
    """Say why a model may be far below its base, or have an AP of about 0 where trivial baselines are far above it.

    Args:
        rows: results that can be compared with one another.
        losses: (total loss, iteration) of each step of this training.
        pretrained: whether the training began with weights of a file.

    Returns:
        One line; None where the model has learnt something, no baseline leads far, or nothing was trained. The loss
        counts as falling where its mean over the last quarter of the steps is 1 % below that of the quarter before.
    """
    rows = list(rows)
    if not losses:
        return None
    score = next((row.score for row in rows if row.method == "model"), None)
    by_method = {row.method: row.metric("AP") for row in rows if row.method != "base" or row.score == score}
    steps = losses[-1][1] + 1
    after = f"Hint: after {steps} step{'s' if steps > 1 else ''} AP"
    if by_method.get("base", 0.0) > by_method.get("model", math.nan) + FAR:
        fallen = f"fell from {by_method['base']:.1f} (base) to {by_method['model']:.1f}"
        return f"{after} {fallen}. Its steps may be too large: try a lower optimizer.lr"
    best = max((by_method[name] for name in ("box_as_mask", "ellipse") if name in by_method), default=0.0)
    if not by_method.get("model", NOTHING) < NOTHING or not best > by_method["model"] + FAR:
        return None
    after += " is about 0"
    if steps < FEW_STEPS:
        other = "" if pretrained else ", or begin with weights: train.init_checkpoint"
        return f"{after}; so few say nothing yet. Raise train.max_iter{other}"
    if len(losses) < FEW_STEPS:
        return None  # resumed a moment ago
    quarter = len(losses) // 4
    now = fmean(loss for loss, _ in losses[-quarter:])
    before = fmean(loss for loss, _ in losses[-2 * quarter : -quarter])
    change = f"({before:.3g} to {now:.3g} from the third to the last quarter of the steps)"
    if now < _FALLING * before:
        return f"{after}, but total_loss still falls {change}: train longer, train.max_iter"
    return (
        f"{after}, and total_loss does not fall {change}: more steps alone may not help. "
        "Look at what the model gets, tools/visualize_data.py, and at optimizer.lr"
    )
