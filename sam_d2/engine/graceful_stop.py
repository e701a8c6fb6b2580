"""The end of a training that is asked to stop: after the step, with a checkpoint, and no evaluation lost."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase, hooks
from sam_d2.engine.checkpoint import Checkpointer
from sam_d2.engine.distributed import in_main_process
from sam_d2.engine.whole_checkpoint import last_checkpoint, tagged_checkpoint
from sam_d2.interruption import Interrupted, stop_requests

logger = logging.getLogger(__name__)

EVALUATION_DUE = "evaluation_due"
"""Key of a checkpoint whose step was to be evaluated and has not been."""


class GracefulStop(HookBase):
    """Write a checkpoint and end the training where a process of the run has been asked to stop.

    Register it last. After the last step of a training nothing is to be saved: the final checkpoint is there, and the
    evaluation that follows ends at once.

    Args:
        checkpointer: of the run folder.
    """

    def __init__(self, checkpointer: Checkpointer) -> None:
        self.checkpointer = checkpointer

    def after_step(self) -> None:
        """End the training, all processes after the same step.

        Raises:
            Interrupted: the checkpoint is written.
            UserError: it cannot be written.
        """
        request = self.trainer.news.stop
        if request is None or self.trainer.iter + 1 >= self.trainer.max_iter:
            return
        with stop_requests.finishing():
            # Together, because the launcher ends those that are left when the first is gone.
            in_main_process(lambda: save_step(self.checkpointer, self.trainer.iter))
        raise Interrupted(request)


class SafeEvaluation(hooks.EvalHook):
    """Detectron2's EvalHook; whatever ends an evaluation costs no step, and a request to stop ends it at once.

    The checkpoint of a step comes after its evaluation, because it holds what that has told. Where the evaluation ends
    with an error or is interrupted, the step is saved without, and a resume begins with the evaluation
    (:class:`CatchUp`): it goes on as if nothing had been in between.

    Args:
        period: iterations between two evaluations; 0 leaves only the one at the end.
        evaluate: returns a nested dict of numbers.
        checkpointer: of the run folder.
    """

    def __init__(self, period: int, evaluate: Callable[[], Any], checkpointer: Checkpointer) -> None:
        super().__init__(period, evaluate)
        self.period = period
        self.checkpointer = checkpointer

    def after_step(self) -> None:
        """Evaluate where the period is full and the training goes on.

        Raises:
            Interrupted: a process was asked to stop, before or in the evaluation.
        """
        done = self.trainer.iter + 1
        if self.period <= 0 or done % self.period or done == self.trainer.max_iter:
            return
        try:
            if request := self.trainer.news.stop:
                raise Interrupted(request)
            with stop_requests.at_once():
                super().after_step()
        except BaseException:
            self._keep_the_step()
            raise

    def after_train(self) -> None:
        """Evaluate at the end, unless the training has ended before; a request to stop ends it at once."""
        if self.trainer.iter + 1 < self.trainer.max_iter:
            super().after_train()
            return
        with stop_requests.at_once():
            super().after_train()

    def _keep_the_step(self) -> None:
        with stop_requests.finishing():
            try:
                save_step(self.checkpointer, self.trainer.iter, **{EVALUATION_DUE: True})
            except Exception as error:  # such as a full disk, which may be what ended the evaluation
                logger.warning("No checkpoint of step %d: %s", self.trainer.iter + 1, error)


class CatchUp(HookBase):
    """Make up for the evaluation that was due when the training ended; register it last.

    Args:
        hooks: that look at an evaluation after a step, with the evaluation itself first.
    """

    def __init__(self, hooks: Sequence[HookBase | None]) -> None:
        self.hooks = [hook for hook in hooks if hook is not None]
        self.due = False

    def before_train(self) -> None:
        """Evaluate the weights of the checkpoint, as after the step that they are of."""
        if not self.due:
            return
        logger.info("The evaluation that the interruption prevented comes first")
        trainer = self.trainer
        start = trainer.iter
        trainer.iter = trainer.storage.iter = start - 1
        for hook in self.hooks:
            hook.after_step()
        trainer.iter = trainer.storage.iter = start
        self.due = False


def save_step(checkpointer: Checkpointer, iteration: int, **content: Any) -> None:
    """Write the checkpoint of a step, unless it is there.

    Args:
        checkpointer: of the run folder; writes in the main process.
        iteration: of the step, counted from 0.
        **content: to be in the file too.
    """
    name = f"model_{iteration:07d}"
    tagged = tagged_checkpoint(Path(checkpointer.save_dir))
    if tagged is None or tagged.stem != name:
        checkpointer.save(name, iteration=iteration, **content)


def how_to_go_on(folder: Path) -> str:
    """Say which checkpoint a run has left and which command goes on from it."""
    last = last_checkpoint(folder)
    state = f"{last} is its last checkpoint" if last else "it has no checkpoint yet, so it begins again"
    script = shlex.join(word for word in sys.argv if word != "--resume")
    launcher = "torchrun ..." if "TORCHELASTIC_RUN_ID" in os.environ else "python"
    return f"{state}. To go on: {launcher} {script} --resume"
