"""True averages for batch normalisation."""

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import nn

from detectron2.utils.events import EventStorage

from ..train_loop import HookBase

_logger = logging.getLogger(__package__)


class PreciseBN(HookBase):
    """Replace the moving averages of batch-norm layers by averages over ``num_iter`` batches.

    Runs each ``period`` iterations and after the last one. Only layers that are in training mode when the
    hook is made and run are updated.
    """

    def __init__(self, period: int, model: nn.Module, data_loader: Iterable, num_iter: int) -> None:
        """Keep the parts; without batch-norm layers in training mode the hook does nothing.

        Args:
            period: iterations between two updates; 0 leaves only the one at the end.
            model: called with each batch.
            data_loader: its iterator is made at the first update and goes on at the next.
            num_iter: batches to average over.
        """
        self._period = period
        self._model = model
        self._data_loader = data_loader
        self._num_iter = num_iter
        self._data_iter: Iterator | None = None
        self._disabled = not get_bn_modules(model)
        if self._disabled:
            _logger.info("PreciseBN is off: the model has no batch-norm layer in training mode.")

    def after_step(self) -> None:
        """Update where it is time to."""
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or (self._period > 0 and done % self._period == 0):
            self.update_stats()

    def update_stats(self) -> None:
        """Compute the averages now."""
        if self._disabled:
            return
        if self._data_iter is None:
            self._data_iter = iter(self._data_loader)
        _logger.info(f"PreciseBN: averaging over {self._num_iter} batches; others would give other averages.")
        # The forward passes may store metrics, which are not those of a training step: they go to a storage
        # that is thrown away.
        with EventStorage():
            update_bn_stats(self._model, self._batches(self._data_iter), self._num_iter)

    def _batches(self, source: Iterator) -> Iterator[Any]:
        for count, batch in enumerate(source, start=1):
            if count % 100 == 0:
                _logger.info(f"PreciseBN: {count}/{self._num_iter} batches.")
            yield batch
