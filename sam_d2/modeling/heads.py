"""SAM's three masks of an ambiguous prompt: which one is the answer, and whether their outputs were ever trained."""

from __future__ import annotations

import torch
from torch import Tensor

from sam_d2.errors import UserError


class MultimaskHeads:
    """What is known of a model's mask outputs 1 to 3, which only training with ``model.multimask`` reaches.

    No tensor of the model, because official files, which load strictly, have no such entry; a checkpoint holds it
    beside the model.

    Attributes:
        trained: whether they have ever been trained. Random weights have not.
        file: that the model's weights are from, empty for random ones.
    """

    ENTRY = "multimask_trained"
    """Key of a checkpoint: a bool."""

    def __init__(self) -> None:
        self.trained = False
        self.file = ""

    def came_from(self, file: str, recorded: bool | None) -> None:
        """Take over what a file says of its weights; those without a record, as published ones are, are trained."""
        self.trained = recorded is not False
        self.file = file

    def require_trained(self) -> None:
        """Raise where the best of three masks would be the best of one trained and made-up ones.

        A model that was never loaded passes: its first evaluation, before training, is of random weights anyway.

        Raises:
            UserError: the weights are of a file, and nothing ever trained these outputs.
        """
        if self.file and not self.trained:
            raise UserError(
                f"{self.file}: the three masks of model.multimask=true were never trained in these weights (it was "
                "false). Take multimask=false for them, or train them: model.multimask=true, a prompt with single "
                "points, train.eval_base=false. SAM's published weights have them trained."
            )


def of_highest_iou(logits: Tensor, predicted_iou: Tensor) -> tuple[Tensor, Tensor]:
    """Return of (n, M, L, L) logits and (n, M) predicted IoU those of the best mask: (n, L, L) and (n,)."""
    best = predicted_iou.argmax(dim=1)
    rows = torch.arange(len(best), device=best.device)
    return logits[rows, best], predicted_iou[rows, best]
