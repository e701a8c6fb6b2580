"""An exponential moving average of the weights, which is what is evaluated and saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from detectron2.engine import HookBase
from sam_d2.engine.checkpoint import Checkpointer
from sam_d2.engine.saved_state import is_dense
from sam_d2.errors import UserError


class WeightAverage(HookBase):
    """Average the trainable parameters over the steps; register it before what evaluates and saves.

    After step t the average moves to the weights by 1 - d, where d is the smaller of ``decay`` and
    (1 + t) / (10 + t): a short training would otherwise be dominated by the weights it began with.
    Frozen parameters and buffers are not averaged. The training itself goes on from its own weights.

    Args:
        model: not yet wrapped for several processes, each of which averages for itself.
        decay: d of a long training, 0 to 1, such as 0.999; None averages nothing, and the hook does nothing.

    Raises:
        UserError: ``decay`` is not within 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        if decay is not None and not 0 <= decay < 1:
            raise UserError(f"train.ema.decay={decay}: expected at least 0 and less than 1, or null for no average.")
        self.decay = decay
        self.parameters = {} if decay is None else {n: p for n, p in model.named_parameters() if p.requires_grad}
        # Of two sets of weights, averaged and trained, the model holds one and this the other.
        self._others: dict[str, Tensor] = {}
        self._model_is_average = False

    def before_train(self) -> None:
        """Begin with the model's weights, unless a checkpoint has brought an average."""
        if not self._others:
            self._others = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def after_step(self) -> None:
        """Move the average towards the weights of this step, if it was taken."""
        if self.decay is None or not getattr(self.trainer, "step_taken", True):
            return
        steps = self.trainer.iter + 1
        move = get_ema_multi_avg_fn(min(self.decay, (1 + steps) / (10 + steps)))
        move(list(self._others.values()), [parameter.detach() for parameter in self.parameters.values()], steps)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model hold the average inside the block."""
        if self._model_is_average or not self._others:
            yield
            return
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Any]:
        """Return the set of weights that the model does not hold, and which of the two it is; empty without one."""
        return {"weights": self._others, "model_is_average": self._model_is_average} if self._others else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both sets of weights, after those of the model were loaded.

        Raises:
            UserError: other parameters were averaged.
            ValueError: it is no average of these parameters.
        """
        weights = state["weights"]
        if weights.keys() != self.parameters.keys():
            raise UserError(
                "The checkpoint holds an average of other parameters than this training's. Go on with the run's own "
                "config (config.yaml in its folder); train.ema and model.freeze must stay as they were."
            )
        if wrong := [name for name, p in self.parameters.items() if not is_dense(weights[name], tuple(p.shape))]:
            raise ValueError(f"the average of {wrong[0]} is no tensor of {tuple(self.parameters[wrong[0]].shape)}")
        self._others = {name: weights[name].to(p.device) for name, p in self.parameters.items()}
        if state["model_is_average"]:
            self._swap()
            self._model_is_average = False

    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.data, self._others[name] = self._others[name], parameter.data
        self._model_is_average = not self._model_is_average


class AverageCheckpointer(Checkpointer):
    """Checkpointer whose files hold the average as the model, and the trained weights in the hook's state.

    So every file of a run can be evaluated, exported and fine-tuned further, and resuming from it is exact.

    Args:
        average: of the training.
        *args: of :class:`Checkpointer`.
        **kwargs: of :class:`Checkpointer`.
    """

    def __init__(self, average: WeightAverage, /, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.average = average

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name.pth`` with the average as the model."""
        with self.average.applied():
            super().save(name, **kwargs)
