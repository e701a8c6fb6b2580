"""What a training has gone on without: images that could not be read, and steps whose loss was not a number."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from detectron2.utils.events import get_event_storage
from sam_d2.data.findings import plural

logger = logging.getLogger(__name__)

MOST_IN_A_ROW = 10
"""Steps in a row that may be skipped: after more of them it is the weights, not the images."""


class StepCounts:
    """Counts of a run from its beginning, over all processes; a resume goes on with them.

    Attributes:
        bad_images: positions of the stream where another image was taken for one that could not be read.
        not_finite: steps that were skipped because a loss or the gradient was not a number.
        in_a_row: of these the ones since the last step that was taken.
        left_out: steps that the gradient scaler of float16 has left out while it looked for its scale.
    """

    def __init__(self) -> None:
        self.bad_images = 0
        self.not_finite = 0
        self.in_a_row = 0
        self.left_out = 0

    def add(self, bad_images: int, *, not_finite: bool, left_out: bool = False) -> None:
        """Count a step; what has grown goes to the curves.

        Args:
            bad_images: of all processes in this step.
            not_finite: whether it is skipped for its loss or gradient.
            left_out: whether the gradient scaler has left it out.
        """
        self.bad_images += bad_images
        self.not_finite += not_finite
        self.in_a_row = self.in_a_row + 1 if not_finite else 0
        self.left_out += left_out
        if bad_images:
            get_event_storage().put_scalar("bad_images", self.bad_images, smoothing_hint=False)
        if not_finite:
            get_event_storage().put_scalar("not_finite_skipped", self.not_finite, smoothing_hint=False)
        if left_out:
            get_event_storage().put_scalar("scaler_left_out", self.left_out, smoothing_hint=False)

    def report(self) -> None:
        """Log the counts that are not zero."""
        if self.bad_images:
            logger.warning(
                "*** In the place of %s that could not be read another was taken "
                "(dataloader.train.on_bad_image=skip). The lines above name them. ***",
                plural(self.bad_images, "image"),
            )
        if self.not_finite:
            logger.warning(
                "*** %s skipped for a loss or gradient that was not a number (train.on_not_finite=skip) ***",
                plural(self.not_finite, "step was", "steps were"),
            )
        if self.left_out:
            logger.info(
                "%s left out by the gradient scaler of float16", plural(self.left_out, "step was", "steps were")
            )

    def state_dict(self) -> dict[str, int]:
        """Return the counts."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from what :meth:`state_dict` returned; a file may hold more or less, of another version."""
        self.bad_images = state.get("bad_images", self.bad_images)
        self.not_finite = state.get("not_finite", self.not_finite)
        self.in_a_row = state.get("in_a_row", self.in_a_row)
        self.left_out = state.get("left_out", self.left_out)
