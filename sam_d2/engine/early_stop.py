"""The end of a training that no longer improves."""

from __future__ import annotations

import logging
import math
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm
from sam_d2.engine.checkpoint import FINAL, Checkpointer
from sam_d2.engine.stop_metric import less_is_better
from sam_d2.errors import UserError

logger = logging.getLogger(__name__)


class EarlyStop(HookBase):
    """End the training where a metric has not improved for some evaluations.

    Register it in every process, after the evaluation and before the periodic checkpoints: these then hold what it
    knows, and a resumed run stops where an uninterrupted one would have. The final checkpoint has the weights of
    the last step; ``model_best.pth`` those of the best AP.

    Args:
        period: iterations between two evaluations.
        checkpointer: of the run folder.
        metric: name in the storage. Of the validation loss and its terms less is better, of any other more.
        patience: evaluations in a row without improvement that end it; None never ends it.
        max_iter: steps of the training; with too few of them for it a warning says so.

    Raises:
        UserError: ``patience`` is less than 1, or there are no evaluations during the training to wait for.
    """

    def __init__(
        self, period: int, checkpointer: Checkpointer, metric: str, patience: int | None, max_iter: float = math.inf
    ) -> None:
        if patience is not None and patience < 1:
            raise UserError(f"train.early_stop.patience={patience}: expected at least 1 evaluation, or null.")
        if patience is not None and not 1 <= period < max_iter:
            raise UserError(
                "train.early_stop.patience needs evaluations during the training: set train.eval_period, which is "
                f"{period}, to at least 1 and less than its steps ({max_iter})."
            )
        if patience is not None and (patience + 1) * period >= max_iter:  # the first evaluation is the best so far
            logger.warning(
                "train.early_stop.patience=%d: no training of %s steps ends early with train.eval_period=%d",
                patience,
                max_iter,
                period,
            )
        self.period = period
        self.checkpointer = checkpointer
        self.metric = metric
        self.patience = patience
        self._sign = -1.0 if less_is_better(metric) else 1.0
        self._best = -math.inf  # times the sign: more is better
        self._best_step = 0
        self._waited = 0

    def before_train(self) -> None:
        """Say what the scores are then worth; end a resumed training that was over before it was interrupted."""
        if self.patience is not None:
            logger.info(
                "Early stop looks at %s on the test images: they choose the weights, so scores on them flatter. "
                "Figures to publish are of a split that chose nothing (docs/fine-tuning.md).",
                self.metric,
            )
        if self.patience is not None and self._waited >= self.patience:
            logger.warning("%s Set train.early_stop.patience higher to go on.", self._text())
            self.trainer.stop()

    def after_step(self) -> None:
        """Compare after an evaluation; the one at the end of the training ends nothing."""
        done = self.trainer.iter + 1
        if self.patience is None or done % self.period or done == self.trainer.max_iter:
            return
        # Only the main process has the metric, and all must end at the same step.
        value = comm.all_gather(self._value())[0]
        if isinstance(value, str):
            raise UserError(value)
        if self._sign * value > self._best:  # never where it is not a number
            self._best, self._best_step, self._waited = self._sign * value, done, 0
        else:
            self._waited += 1
        if self._waited >= self.patience:
            self.checkpointer.save(FINAL, iteration=self.trainer.iter)
            logger.warning("Stopped after step %d of %d: %s", done, self.trainer.max_iter, self._text())
            self.trainer.stop()

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, its step, and the evaluations since; empty where nothing is watched."""
        if self.patience is None:
            return {}
        return {"metric": self.metric, "best": self._best, "best_step": self._best_step, "waited": self._waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned; another metric begins anew."""
        if state["metric"] == self.metric:
            self._best, self._best_step, self._waited = state["best"], state["best_step"], state["waited"]

    def _value(self) -> float | str | None:
        """Return the metric just evaluated; a message where there is none, None in other processes."""
        if not comm.is_main_process():
            return None
        latest = self.trainer.storage.latest()
        if self.metric not in latest:
            known = ", ".join(sorted(name for name in latest if "/" in name or less_is_better(name)))
            return f"train.early_stop.metric={self.metric}: the evaluation gave none, but {known}."
        return float(latest[self.metric][0])

    def _text(self) -> str:
        best = f"{self._sign * self._best:.4g} after step {self._best_step}" if self._best_step else "none"
        return f"{self.metric} has not improved in {self._waited} evaluations (best: {best})."
