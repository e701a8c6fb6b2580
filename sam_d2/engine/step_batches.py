"""The batches of one training step, which can be taken more than once and in parts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

Sample = dict[str, Any]


class Part(NamedTuple):
    """Images that go through the model at once.

    Attributes:
        samples: of one batch.
        divisor: of their losses, so that those of all parts sum to the mean over the step's images.
        last: whether the step has no further part.
    """

    samples: list[Sample]
    divisor: float
    last: bool


class StepBatches:
    """Batches of a loader, read when they are first needed and kept for another try.

    Args:
        loader: the running iterator.
        count: batches of a step.

    Attributes:
        seconds: waited for the loader so far.
        current: images of the part that was taken last.
    """

    def __init__(self, loader: Iterator[list[Sample]], count: int) -> None:
        self._loader = loader
        self._count = count
        self._read: list[list[Sample]] = []
        self.seconds = 0.0
        self.current: list[Sample] = []

    @property
    def images(self) -> int:
        """Number of images of the batches read so far."""
        return sum(map(len, self._read))

    @property
    def samples(self) -> list[Sample]:
        """Images of the batches read so far; none of batches that are in another form than Detectron2's."""
        return [sample for batch in self._read for sample in batch if isinstance(sample, dict)]

    @property
    def largest(self) -> int:
        """Images of the largest batch read so far."""
        return max(map(len, self._read), default=0)

    def parts(self, at_once: int | None = None) -> Iterator[Part]:
        """Yield the step's images in order, from the first one at each call.

        Args:
            at_once: most images of a part; None gives whole batches. No part has images of two batches.
        """
        for number in range(self._count):
            batch = self._batch(number)
            size = at_once or len(batch)
            for start in range(0, len(batch), size):
                self.current = batch[start : start + size]
                # A whole batch is divided by the number of batches exactly.
                divisor = self._count * len(batch) / len(self.current)
                yield Part(self.current, divisor, number + 1 == self._count and start + size >= len(batch))

    def _batch(self, number: int) -> list[Sample]:
        if number == len(self._read):
            start = time.perf_counter()
            self._read.append(next(self._loader))
            self.seconds += time.perf_counter() - start
        return self._read[number]
