"""The evaluators' interface and the loop of model and evaluator over a dataset."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from detectron2.utils.comm import get_world_size, is_main_process
from detectron2.utils.logger import log_every_n_seconds

_logger = logging.getLogger(__name__)


class DatasetEvaluator:
    """Collects predictions batch by batch and scores them in the end."""

    def reset(self) -> None:
        """Forget everything; called before each round of evaluation."""

    def process(self, inputs: Any, outputs: Any) -> None:
        """Take in one batch.

        Args:
            inputs: list of dicts, what the model was called with.
            outputs: what it returned, one entry per input.
        """

    def evaluate(self) -> dict[str, Any] | None:
        """Score what was taken in.

        Returns:
            task -> metric -> number; None or empty on ranks that do not score.
        """
        return None


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators as one."""

    def __init__(self, evaluators: Sequence[DatasetEvaluator]) -> None:
        """Keep the evaluators, which are called in this order."""
        super().__init__()
        self._evaluators = evaluators

    def reset(self) -> None:
        """Reset all."""
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        """Give the batch to all."""
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> dict[str, Any]:
        """Return the results of all in one dict; empty on other ranks than the main one.

        Raises:
            AssertionError: two evaluators use the same key.
        """
        merged: dict[str, Any] = {}
        for evaluator in self._evaluators:
            results = evaluator.evaluate()
            if results is None or not is_main_process():
                continue
            for key, value in results.items():
                assert key not in merged, f"Different evaluators produce results with the same key {key}"
                merged[key] = value
        return merged


class _Clock:
    """Seconds of the loop's phases per batch, without the warm-up batches."""

    def __init__(self, total: int) -> None:
        """Start.

        Args:
            total: batches to come.
        """
        self.total = total
        self.warmup = min(5, total - 1)
        self.start = self._last = time.perf_counter()
        self._seconds = {"data": 0.0, "compute": 0.0, "eval": 0.0}

    def tick(self) -> None:
        """Start a phase."""
        self._last = time.perf_counter()

    def tock(self, phase: str) -> None:
        """Book the time since the last tick on a phase, and start the next."""
        now = time.perf_counter()
        self._seconds[phase] += now - self._last
        self._last = now

    def forget(self) -> None:
        """Begin to count."""
        self.start = time.perf_counter()
        self._seconds = dict.fromkeys(self._seconds, 0.0)

    def compute_seconds(self) -> float:
        """Return the time in the model since counting began."""
        return self._seconds["compute"]

    def report(self, index: int) -> None:
        """Log the progress after batch ``index``, at most every 5 seconds, once there is something to say."""
        counted = index + 1 - (self.warmup if index >= self.warmup else 0)
        data, compute, evaluation = (seconds / counted for seconds in self._seconds.values())
        if index < 2 * self.warmup and compute <= 5:
            return
        whole = (time.perf_counter() - self.start) / counted
        eta = timedelta(seconds=int(whole * (self.total - index - 1)))
        log_every_n_seconds(
            logging.INFO,
            f"Inference done {index + 1}/{self.total}. Dataloading: {data:.4f} s/iter. "
            f"Inference: {compute:.4f} s/iter. Eval: {evaluation:.4f} s/iter. Total: {whole:.4f} s/iter. "
            f"ETA={eta}",
            n=5,
        )


def inference_on_dataset(
    model: Callable[[Any], Any],
    data_loader: Any,
    evaluator: DatasetEvaluator | MutableSequence[DatasetEvaluator] | None,
    callbacks: Mapping[str, Callable[[], Any]] | None = None,
) -> Any:
    """Run a model over a dataset without gradients, score its outputs, and log how long it took.

    Args:
        model: called with each batch; a module is in eval mode meanwhile.
        data_loader: iterable of batches with a length.
        evaluator: one or a list; None only measures the time.
        callbacks: functions without arguments under ``on_start``, ``before_inference``, ``after_inference``
            and ``on_end``.

    Returns:
        What ``evaluator.evaluate()`` returns; an empty dict instead of None.
    """
    total = len(data_loader)
    _logger.info(f"Start inference on {total} batches")
    if evaluator is None:
        evaluator = DatasetEvaluators([])
    elif isinstance(evaluator, MutableSequence):
        evaluator = DatasetEvaluators(evaluator)
    evaluator.reset()

    def notify(event: str) -> None:
        if callbacks and event in callbacks:
            callbacks[event]()

    clock = _Clock(total)
    with ExitStack() as stack:
        if isinstance(model, nn.Module):
            stack.enter_context(inference_context(model))
        stack.enter_context(torch.no_grad())
        clock.tick()
        notify("on_start")
        for index, inputs in enumerate(data_loader):
            clock.tock("data")
            if index == clock.warmup:
                clock.forget()
            notify("before_inference")
            outputs = model(inputs)
            notify("after_inference")
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            clock.tock("compute")
            evaluator.process(inputs, outputs)
            clock.tock("eval")
            clock.report(index)
            clock.tick()
        notify("on_end")
    _log_speed(clock)
    results = evaluator.evaluate()
    return {} if results is None else results


def _log_speed(clock: _Clock) -> None:
    """Log this rank's time, before it waits for others. Scripts search logs for these words."""
    whole = time.perf_counter() - clock.start
    compute = clock.compute_seconds()
    for name, seconds, clock_text in (
        ("inference time", whole, timedelta(seconds=whole)),
        ("inference pure compute time", compute, timedelta(seconds=int(compute))),
    ):
        per_batch = seconds / (clock.total - clock.warmup)
        _logger.info(f"Total {name}: {clock_text} ({per_batch:.6f} s / iter per device, on {get_world_size()} devices)")


@contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, and back in its previous mode afterwards (not after an exception)."""
    training = model.training
    model.eval()
    yield
    model.train(training)
