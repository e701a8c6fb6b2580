"""What weights have learned to be asked, beyond what their tensors show; a checkpoint says it beside the model."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from sam_d2.errors import UserError

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
        file: that the model's weights are from, empty for random ones.
    """

    MULTIMASK = "multimask_trained"
    """Key of a checkpoint: a bool."""
    DRAW_BOXES = "draw_boxes"
    """Key of a checkpoint: a bool."""

    def __init__(self, *, draw_boxes: bool) -> None:
        self.draw_boxes = draw_boxes
        self.multimask_trained = False
        self.multimask_reached = False
        self.file = ""

    def entries(self) -> dict[str, bool]:
        """Return what a checkpoint holds beside the model."""
        return {self.MULTIMASK: self.multimask_trained, self.DRAW_BOXES: self.draw_boxes}

    def came_from(self, file: str, saved: dict[str, Any], *, begins: bool) -> None:
        """Take over what a file says of its weights, and compare it with the model that they are for.

        Published weights say nothing: their three masks are trained, and no box was ever drawn for them.

        Args:
            file: its name, for messages.
            saved: its content beside the model; the entries of this record are taken out.
            begins: whether a training goes on from the weights, which teaches them what they do not know.

        Raises:
            UserError: the weights were trained with drawn boxes and the model draws none, or the other way round and
                no training teaches them.
        """
        multimask, drawn = saved.pop(self.MULTIMASK, None), saved.pop(self.DRAW_BOXES, None)
        self.file, self.multimask_trained = file, multimask is not False
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
    if record is not None and record.multimask_reached:
        record.multimask_trained, record.multimask_reached = True, False


def note_skip(model: nn.Module) -> None:
    """Let a model, wrapped or not, know that no step follows from the gradients that it has made."""
    record = _record_of(model)
    if record is not None:
        record.multimask_reached = False


def _record_of(model: nn.Module) -> WeightsRecord | None:
    record = getattr(getattr(model, "module", model), "weights_record", None)
    return record if isinstance(record, WeightsRecord) else None
