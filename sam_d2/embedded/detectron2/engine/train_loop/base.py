"""The loop that all trainers share."""

import logging
import weakref
from collections.abc import Sequence
from typing import Any

from detectron2.utils.events import EventStorage

from .hook import HookBase

_logger = logging.getLogger(__package__)


class TrainerBase:
    """A loop over ``run_step`` with hooks around it; knows nothing of models, data or optimizers.

    Attributes:
        iter: number of the current iteration; ``max_iter`` once training has ended without an exception.
        start_iter: number of the first iteration.
        max_iter: number of the iteration before which training ends.
        storage: metrics; open from ``before_train`` to ``after_train``.
    """

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter: int = 0
        self.start_iter: int = 0
        self.max_iter: int
        self.storage: EventStorage

    def register_hooks(self, hooks: Sequence[HookBase | None]) -> None:
        """Append hooks, which run in this order; entries that are None are left out.

        A hook sees the trainer through a weak proxy, or the two would keep each other alive.
        """
        for hook in hooks:
            if hook is None:
                continue
            assert isinstance(hook, HookBase), f"not a hook: {hook!r}"
            hook.trainer = weakref.proxy(self)
            self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the iterations ``start_iter`` to ``max_iter - 1``.

        Raises:
            Exception: whatever a step or a hook raised, after it was logged and ``after_train`` was run.
        """
        _logger.info("Starting training from iteration %d", start_iter)
        self.start_iter = self.iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self._loop()
            except Exception:
                _logger.exception("Exception during training:")
                raise
            finally:
                self.after_train()

    def _loop(self) -> None:
        self.before_train()
        for iteration in range(self.start_iter, self.max_iter):
            self.iter = iteration
            self.before_step()
            self.run_step()
            self.after_step()
        # Only here does iter reach max_iter: by it after_train tells a finished run from a failed one.
        self.iter += 1

    def _call_hooks(self, event: str) -> None:
        for hook in self._hooks:
            getattr(hook, event)()

    def before_train(self) -> None:
        """Call every hook's ``before_train``."""
        self._call_hooks("before_train")

    def after_train(self) -> None:
        """Call every hook's ``after_train``, the metrics carrying the final iteration number."""
        self.storage.iter = self.iter
        self._call_hooks("after_train")

    def before_step(self) -> None:
        """Bring the metrics to this iteration, then call every hook's ``before_step``."""
        self.storage.iter = self.iter
        self._call_hooks("before_step")

    def after_backward(self) -> None:
        """Call every hook's ``after_backward``; a ``run_step`` does so between gradients and update."""
        self._call_hooks("after_backward")

    def after_step(self) -> None:
        """Call every hook's ``after_step``."""
        self._call_hooks("after_step")

    def run_step(self) -> None:
        """Do one iteration.

        Raises:
            NotImplementedError: always; a subclass says what an iteration is.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return ``iteration`` and, where any hook has a state, ``hooks``: class name -> state.

        Of several hooks of one class only the first with a state is kept.
        """
        hook_states: dict[str, dict] = {}
        for hook in self._hooks:
            state = hook.state_dict()
            if state:
                hook_states.setdefault(type(hook).__qualname__, state)
        return {"iteration": self.iter, **({"hooks": hook_states} if hook_states else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the iteration and hand each saved state to the first hook of that class name."""
        self.iter = state_dict["iteration"]
        owners: dict[str, Any] = {}
        for hook in self._hooks:
            owners.setdefault(type(hook).__qualname__, hook)
        for name, state in state_dict.get("hooks", {}).items():
            if name in owners:
                owners[name].load_state_dict(state)
            else:
                _logger.warning("The checkpoint has a state of hook '%s', which is not registered.", name)
