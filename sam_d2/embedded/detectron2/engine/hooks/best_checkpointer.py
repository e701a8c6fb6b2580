"""Keep the weights that scored best."""

import logging
import math
import operator
from typing import Literal

from fvcore.common.checkpoint import Checkpointer

from ..train_loop import HookBase


class BestCheckpointer(HookBase):
    """Save ``model_best`` whenever the chosen metric is better than ever before in this run.

    Register it after the hook that produces the metric, and with the same period.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: Literal["max", "min"] = "max",
        file_prefix: str = "model_best",
    ) -> None:
        """Choose the metric.

        Args:
            eval_period: period of the :class:`EvalHook` in iterations; 0 where it runs only at the end.
            checkpointer: saves the weights.
            val_metric: name in the metrics, such as ``bbox/AP50``.
            mode: ``max`` where more is better, ``min`` where less is.
            file_prefix: name of the checkpoint without its ending.
        """
        assert mode in ("max", "min"), f"Mode {mode!r} of BestCheckpointer is unknown: use 'max' or 'min'."
        self._logger = logging.getLogger(__package__)
        self._period = eval_period
        self._checkpointer = checkpointer
        self._val_metric = val_metric
        self._better = operator.gt if mode == "max" else operator.lt
        self._file_prefix = file_prefix
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def _check(self) -> None:
        latest = self.trainer.storage.latest().get(self._val_metric)
        if latest is None:
            self._logger.warning(f"No metric {self._val_metric!r} is stored: no best checkpoint is kept.")
            return
        value, iteration = latest
        finite = math.isfinite(value)
        news = f"{self._val_metric} is {value:0.5f} @ {iteration} steps"
        if self.best_metric is None:
            # Nothing to compare with: any real number is the first best.
            improved = finite
        else:
            improved = self._better(value, self.best_metric)
            news += f"; best so far {self.best_metric:0.5f} @ {self.best_iter} steps"
        if not improved:
            self._logger.info(f"Best checkpoint not replaced: {news}.")
            return
        if finite:
            self.best_metric, self.best_iter = value, iteration
        self._checkpointer.save(self._file_prefix, iteration=iteration)
        self._logger.info(f"Best checkpoint saved: {news}.")

    def after_step(self) -> None:
        """Compare when :class:`EvalHook` has just run within the training."""
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter:
            self._check()

    def after_train(self) -> None:
        """Compare with the final evaluation, unless training failed."""
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._check()
