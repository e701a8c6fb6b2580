"""Keep the weights that scored best."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from detectron2.engine import HookBase
from sam_d2.engine.checkpoint import BEST, Checkpointer, load_checkpoint_file
from sam_d2.errors import UserError

logger = logging.getLogger(__name__)


class BestCheckpoint(HookBase):
    """Write ``model_best.pth`` whenever a metric is higher than ever before in the run.

    Detectron2's BestCheckpointer begins anew when a run is resumed, and a worse model then replaces the best one.
    This one finds the best value in the file that it wrote. Register it after the evaluation.

    Args:
        period: iterations between two evaluations; 0 where there is only the one after training.
        checkpointer: of the run folder.
        metric: name in the storage, more is better.
        words: what it is called in the log; its name by default.
    """

    def __init__(self, period: int, checkpointer: Checkpointer, metric: str, words: str = "") -> None:
        self.period = period
        self.checkpointer = checkpointer
        self.metric = metric
        self.words = words or metric
        self.best = -math.inf

    def before_train(self) -> None:
        """Read the best value so far, where the run has one."""
        file = Path(self.checkpointer.save_dir) / f"{BEST}.pth"
        if not file.is_file():
            return
        try:
            saved = load_checkpoint_file(file, mmap=True).get("best")
        except UserError as error:  # the run's own state is in other files, which may be whole
            logger.warning("%s Of the scores before it nothing is known: the next evaluation replaces the file.", error)
            return
        value = saved.get(self.metric) if isinstance(saved, dict) else None  # the file may be one from anywhere
        self.best = value if isinstance(value, int | float) else self.best

    def after_step(self) -> None:
        """Compare after an evaluation within the training."""
        done = self.trainer.iter + 1
        if self.period > 0 and done % self.period == 0 and done != self.trainer.max_iter:
            self._compare(done)

    def after_train(self) -> None:
        """Compare after the evaluation at the end, unless the training failed."""
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._compare(self.trainer.iter)

    def _compare(self, done: int) -> None:
        value, _ = self.trainer.storage.latest().get(self.metric, (math.nan, 0))
        if not value > self.best:  # also where it is not a number
            return
        self.best = value
        self.checkpointer.save(BEST, iteration=done - 1, best={self.metric: float(value)})
        logger.info("Best so far: %s %.2f after step %d", self.words, value, done)
