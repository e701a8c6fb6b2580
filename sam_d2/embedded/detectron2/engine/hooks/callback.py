"""A hook made of plain functions."""

from collections.abc import Callable
from typing import Any

from ..train_loop import HookBase

Callback = Callable[[Any], Any]


class CallbackHook(HookBase):
    """Call the given functions, each with the trainer as its argument."""

    def __init__(
        self,
        *,
        before_train: Callback | None = None,
        after_train: Callback | None = None,
        before_step: Callback | None = None,
        after_step: Callback | None = None,
    ) -> None:
        self._callbacks = {
            "before_train": before_train,
            "after_train": after_train,
            "before_step": before_step,
            "after_step": after_step,
        }

    def _call(self, event: str) -> None:
        callback = self._callbacks[event]
        if callback is not None:
            callback(self.trainer)

    def before_train(self) -> None:
        """Call ``before_train``."""
        self._call("before_train")

    def after_train(self) -> None:
        """Call ``after_train``, then let go of all functions: as closures they may hold the trainer."""
        self._call("after_train")
        self._callbacks.clear()

    def before_step(self) -> None:
        """Call ``before_step``."""
        self._call("before_step")

    def after_step(self) -> None:
        """Call ``after_step``."""
        self._call("after_step")
