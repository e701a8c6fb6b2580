"""A score's calibration: what IoU a mask of a given score has had, so that 0.8 means an IoU of about 0.8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import isotonic_regression
from torch import Tensor

from sam_d2.errors import UserError

_LEAST_RISE = 1e-3
"""Rise of the curve over the whole range of scores where the IoU does not rise, so that masks keep their order."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ScoreCalibration:
    """A rising curve from a score to the IoU to expect, through knots; level before the first and behind the last.

    Isotonic regression (Zadrozny and Elkan, KDD 2002) of IoU on the score, by pool adjacent violators.

    Attributes:
        score: what it was fitted for, such as ``class_score*predicted_iou``.
        dataset: registered name of the images it was fitted on.
        predictions: how many there were.
        x: (K,) float64 scores, rising.
        y: (K,) float64 calibrated scores, 0-1, rising.
    """

    score: str
    dataset: str
    predictions: int
    x: Floats
    y: Floats

    @classmethod
    def fit(cls, scores: Floats, ious: Floats, *, score: str, dataset: str) -> ScoreCalibration:
        """Fit the curve to predictions.

        Where a higher score has no higher IoU, isotonic regression is level, and masks would lose their order; a
        thousandth over the range of all scores is added to keep it, so that ranking by either is the same.

        Args:
            scores: (N,) finite scores.
            ious: (N,) the masks' true IoU, 0-1; predictions with NaN, which have none, are left out.
            score: name of the score.
            dataset: registered name of what they were measured on.

        Raises:
            UserError: fewer than two different scores are left.
        """
        known = ~np.isnan(ious)
        x, rows = np.unique(scores[known], return_inverse=True)
        if len(x) < 2:
            raise UserError(
                f"{dataset}: {int(known.sum())} predictions with {len(x)} different values of {score}; a calibration "
                "needs at least two. Fit it on more images, or for a score that varies."
            )
        weights = np.bincount(rows)
        curve = isotonic_regression(np.bincount(rows, ious[known]) / weights, weights=weights)
        # Of a level stretch its two ends are enough.
        ends = np.unique(np.concatenate([curve.blocks[:-1], curve.blocks[1:] - 1]))
        rise = (x[ends] - x[0]) / (x[-1] - x[0])
        return cls(score, dataset, int(known.sum()), x[ends], (1 - _LEAST_RISE) * curve.x[ends] + _LEAST_RISE * rise)

    def __call__(self, scores: Floats) -> Floats:
        """Return the calibrated scores of (N,) scores."""
        return np.interp(scores, self.x, self.y)

    def of_tensor(self, scores: Tensor) -> Tensor:
        """Return the calibrated scores of (N,) scores as float64 on the same device.

        In float32 the least rise of the curve would be lost between scores that lie near to each other, and with it
        their order.
        """
        return torch.from_numpy(self(scores.detach().double().cpu().numpy())).to(scores.device)

    def entry(self) -> dict[str, Any]:
        """Return it as tensors and plain values, for a checkpoint."""
        knots = {"x": torch.from_numpy(self.x.copy()), "y": torch.from_numpy(self.y.copy())}
        return {"score": self.score, "dataset": self.dataset, "predictions": self.predictions, **knots}

    @classmethod
    def of_entry(cls, entry: Any, file: str) -> ScoreCalibration:
        """Read what :meth:`entry` gave.

        Args:
            entry: of a checkpoint.
            file: its name, for the message.

        Raises:
            UserError: it is something else.
        """
        try:
            x, y = (np.asarray(entry[name], dtype=np.float64) for name in ("x", "y"))
            usable = x.ndim == 1 and x.shape == y.shape and len(x) > 1 and bool((np.diff(x) > 0).all())
            if not usable or not np.isfinite([*x, *y]).all():
                raise ValueError("its knots are not rising finite numbers")
            return cls(str(entry["score"]), str(entry["dataset"]), int(entry["predictions"]), x, y)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"{file}: its calibration of scores cannot be read ({error}); fit it again with "
                "tools/calibrate_scores.py."
            ) from error


def calibrated_name(score: str) -> str:
    """Return what a report calls a score after its calibration."""
    return f"calibrated({score})"
