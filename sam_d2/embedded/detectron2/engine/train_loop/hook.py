"""The interface by which everything that is not the training step itself joins the loop."""

from typing import Any


class HookBase:
    """Base of all hooks; every method does nothing until a subclass overrides it.

    The order within :meth:`TrainerBase.train` is ``before_train``; for each iteration ``before_step``, the
    step (with ``after_backward`` between the backward pass and the optimizer), ``after_step``; then
    ``after_train``, also where training ended with an exception. ``before_step`` is expected to take next to
    no time: slow work belongs in ``after_step``, so that timers measure the step alone.

    Attributes:
        trainer: weak proxy of the trainer, set by :meth:`TrainerBase.register_hooks`; None before.
    """

    trainer: Any = None

    def before_train(self) -> None:
        """Run once, before the first iteration."""

    def after_train(self) -> None:
        """Run once, after the last iteration or after an exception."""

    def before_step(self) -> None:
        """Run before each iteration."""

    def after_backward(self) -> None:
        """Run after the backward pass of each iteration, while the gradients are there."""

    def after_step(self) -> None:
        """Run after each iteration; ``trainer.iter`` is still the number of the iteration just done."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold; a hook with a state defines ``load_state_dict`` too."""
        return {}
