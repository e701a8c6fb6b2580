"""fvcore's periodic checkpointer, driven by the training loop."""

from fvcore.common.checkpoint import PeriodicCheckpointer as PeriodicSaver

from ..train_loop import HookBase


class PeriodicCheckpointer(PeriodicSaver, HookBase):
    """Save ``model_<iteration>`` each ``period`` iterations and ``model_final`` after the last one."""

    def before_train(self) -> None:
        """Learn from the trainer which iteration is the last."""
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        """Save where it is time to."""
        self.step(self.trainer.iter)
