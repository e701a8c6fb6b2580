"""Evaluation during and after training."""

from collections.abc import Callable
from typing import Any

from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from ..train_loop import HookBase


class EvalHook(HookBase):
    """Call an evaluation function each ``eval_period`` iterations and after the last; store its numbers.

    All ranks must have this hook or none, because they wait for one another after it. A rank that has nothing
    to evaluate gets a function that returns None.
    """

    def __init__(self, eval_period: int, eval_function: Callable[[], Any], eval_after_train: bool = True) -> None:
        """Say what, and when.

        Args:
            eval_period: iterations between two evaluations; 0 leaves only the one at the end.
            eval_function: returns nothing, or a nested dict of numbers, stored under names such as
                ``bbox/AP``.
            eval_after_train: evaluate after the last iteration.
        """
        self._period = eval_period
        self._func = eval_function
        self._eval_after_train = eval_after_train

    def _evaluate(self) -> None:
        results = self._func()
        if results:
            assert isinstance(results, dict), f"the evaluation function must return a dict, not {results!r}"
            metrics = flatten_results_dict(results)
            for name, value in metrics.items():
                try:
                    float(value)
                except Exception as error:
                    raise ValueError(
                        f"[EvalHook] eval_function should return a nested dict of float; {name!r} is {value!r}."
                    ) from error
            self.trainer.storage.put_scalars(**metrics, smoothing_hint=False)
        # Ranks need different times; without a barrier the first would wait in the next step's all-reduce.
        comm.synchronize()

    def after_step(self) -> None:
        """Evaluate where the period is full, but leave the last iteration to ``after_train``."""
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter:
            self._evaluate()

    def after_train(self) -> None:
        """Evaluate at the end, unless training failed, then let go of the function and what it holds."""
        if self._eval_after_train and self.trainer.iter + 1 >= self.trainer.max_iter:
            self._evaluate()
        del self._func
