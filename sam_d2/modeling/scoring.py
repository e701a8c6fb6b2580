"""The score that ranks a mask: a named choice, printed with every AP.

``class_score`` is the class confidence of whatever made the prompt (1 for ground-truth prompts), ``predicted_iou``
SAM's own estimate, ``stability`` the IoU of the mask thresholded above and below (SAM, arXiv 2304.02643,
section 5), ``mean_probability`` the mean foreground probability over the mask. Names joined by ``*`` multiply, and
``^x`` behind a name is its exponent: ``class_score*predicted_iou^0.5``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from sam_d2.errors import UserError

SCORES = ("class_score", "predicted_iou", "stability", "mean_probability")
STABILITY_OFFSET = 1.0
"""Distance of the thresholds whose masks ``stability`` compares from 0, logits."""

_FACTOR = re.compile(r"([a-z_]+)(?:\^([0-9]*\.?[0-9]+))?")


def parse_score(score: str, *, key: str = "model.score") -> dict[str, float]:
    """Return the factors of a score such as ``class_score*predicted_iou^0.5`` with their exponents.

    Args:
        score: ``name[^x](*name[^x])*`` without spaces, x a positive number.
        key: where it was given, for the message.

    Raises:
        UserError: a factor is unknown or named twice, or an exponent is not a positive number.
    """
    factors: dict[str, float] = {}
    for part in str(score).split("*"):
        found = _FACTOR.fullmatch(part)
        name, exponent = (found[1], float(found[2] or 1)) if found else ("", 0.0)
        if name not in SCORES or name in factors or not 0 < exponent < math.inf:
            raise UserError(
                f"{key}={score!r}: {part!r} cannot be used; expected one of {', '.join(SCORES)}, with ^x behind it for "
                "a positive exponent x, or several different ones joined by '*': class_score*predicted_iou^0.5."
            )
        factors[name] = exponent
    return factors


def combine_scores(factors: Mapping[str, float], values: Mapping[str, Tensor]) -> Tensor:
    """Multiply the named scores, each to the power of its exponent.

    SAM does not bound its predicted IoU: a value below 0 counts as 0 where an exponent other than 1 is asked of it.

    Args:
        factors: as :func:`parse_score` returns them.
        values: (N,) by name, at least those of ``factors``.

    Returns:
        (N,) float32, worked out in float64.
    """
    powers = [
        values[name].double() if exponent == 1 else values[name].double().clamp(min=0) ** exponent
        for name, exponent in factors.items()
    ]
    return torch.stack(powers).prod(dim=0).float()
