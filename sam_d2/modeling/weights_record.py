"""What is known of weights beyond what their tensors show; a checkpoint says it beside the model."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from sam_d2.errors import UserError
from sam_d2.modeling.calibration import ScoreCalibration

logger = logging.getLogger(__name__)


class WeightsRecord:
    """What is known of the prompts and masks that a model's weights were trained with.

    No tensor of the model, because official files, which load strictly, have no such entries.

    Args:
        draw_boxes: whether the model is given its boxes as drawn masks too, ``model.draw_boxes``.

    Attributes:
        multimask_trained: whether mask outputs 1 to 3, which only ``model.multimask`` reaches, have ever been
            trained. Random weights have not.
        multimask_reached: whether gradients on their way to the next step come from these outputs.
        calibrations: of the scores of these very weights, by kind of test prompt; empty where none was fitted.
        file: that the model's weights are from, empty for random ones.
    """

    MULTIMASK = "multimask_trained"
    """Key of a checkpoint: a bool."""
    DRAW_BOXES = "draw_boxes"
    """Key of a checkpoint: a bool."""
    CALIBRATIONS = "score_calibrations"
    """Key of a checkpoint: calibrations by kind of test prompt, as ``ScoreCalibration.entry`` gives them."""

    def __init__(self, *, draw_boxes: bool) -> None:
        self.draw_boxes = draw_boxes
        self.multimask_trained = False
        self.multimask_reached = False
        self.calibrations: dict[str, ScoreCalibration] = {}
        self.file = ""

    def entries(self) -> dict[str, Any]:
        """Return what a checkpoint holds beside the model."""
        entries: dict[str, Any] = {self.MULTIMASK: self.multimask_trained, self.DRAW_BOXES: self.draw_boxes}
        if self.calibrations:
            entries[self.CALIBRATIONS] = {prompt: one.entry() for prompt, one in self.calibrations.items()}
        return entries

    def came_from(self, file: str, saved: dict[str, Any], *, begins: bool) -> None:
        """Take over what a file says of its weights, and compare it with the model that they are for.

        Published weights say nothing: their three masks are trained, and no box was ever drawn for them.

        Args:
            file: its name, for messages.
            saved: its content beside the model; the entries of this record are taken out.
            begins: whether a training goes on from the weights, which teaches them what they do not know.

        Raises:
            UserError: the weights were trained with drawn boxes and the model draws none, or the other way round and
                no training teaches them; or its calibrations cannot be read.
        """
        multimask, drawn = saved.pop(self.MULTIMASK, None), saved.pop(self.DRAW_BOXES, None)
        self.file, self.multimask_trained = file, multimask is not False
        calibrations = saved.pop(self.CALIBRATIONS, None) or {}
        if not isinstance(calibrations, dict):
            raise UserError(f"{file}: its calibrations of scores cannot be read; take another file.")
        self.calibrations = {name: ScoreCalibration.of_entry(one, file) for name, one in calibrations.items()}
        if begins:
            self.weights_change()
        if drawn and not self.draw_boxes:
            raise UserError(
                f"{file}: these weights were trained with model.draw_boxes=true, and without it their masks are "
                "worthless. Set model.draw_boxes=true, or take the config.yaml of their run."
            )
        if not self.draw_boxes or drawn:
            return
        if begins:
            logger.info("%s: its weights have not seen model.draw_boxes=true; this training teaches them", file)
        elif drawn is None:
            logger.warning(
                "%s does not say whether its weights were trained with model.draw_boxes=true; if they were not, their "
                "masks are worse with it",
                file,
            )
        else:
            raise UserError(
                f"{file}: these weights were trained without model.draw_boxes. Set model.draw_boxes=false, or train "
                "them with it: train.init_checkpoint."
            )

    def weights_change(self) -> None:
        """Drop the calibrations, which were fitted to other weights, and say so."""
        if self.calibrations:
            logger.warning(
                "%s: the calibration of its scores (%s) is dropped, because training changes the weights it was fitted "
                "to. Fit it again afterwards: tools/calibrate_scores.py",
                self.file,
                ", ".join(self.calibrations),
            )
            self.calibrations = {}

    def calibration(self, prompt: str, score: str) -> ScoreCalibration:
        """Return the calibration of a score with one kind of test prompt.

        Raises:
            UserError: there is none, or it was fitted for another score.
        """
        found = self.calibrations.get(prompt)
        remedy = f"Fit it with tools/calibrate_scores.py RUN model.score='{score}', or set model.calibrate=false."
        if found is None:
            others = f"; it has that of {', '.join(self.calibrations)}" if self.calibrations else ""
            raise UserError(
                f"model.calibrate=true: {self.file or 'a model of random weights'} has no calibration for {prompt} "
                f"prompts{others}. {remedy}"
            )
        if found.score != score:
            raise UserError(
                f"model.calibrate=true: {self.file} was calibrated for model.score={found.score} (on {found.dataset}), "
                f"not for {score}. {remedy}"
            )
        return found

    def require_multimask(self) -> None:
        """Raise where the best of three masks would be the best of one trained and made-up ones.

        A model that was never loaded passes: its first evaluation, before training, is of random weights anyway.

        Raises:
            UserError: the weights are of a file, and nothing ever trained these outputs.
        """
        if self.file and not self.multimask_trained:
            raise UserError(
                f"{self.file}: the three masks of model.multimask=true were never trained in these weights (it was "
                "false). Take multimask=false and no best_of_3 for them, or train them: model.multimask=true, a prompt "
                "with single points, train.eval_base=false. SAM's published weights have them trained."
            )


def note_step(model: nn.Module) -> None:
    """Let a model, wrapped for several processes or not, know that an optimizer has taken a step."""
    record = _record_of(model)
    if record is None:
        return
    record.weights_change()
    if record.multimask_reached:
        record.multimask_trained, record.multimask_reached = True, False


def note_skip(model: nn.Module) -> None:
    """Let a model, wrapped or not, know that no step follows from the gradients that it has made."""
    record = _record_of(model)
    if record is not None:
        record.multimask_reached = False


def _record_of(model: nn.Module) -> WeightsRecord | None:
    record = getattr(getattr(model, "module", model), "weights_record", None)
    return record if isinstance(record, WeightsRecord) else None
