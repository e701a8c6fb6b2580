"""The place where a training step leaves its numbers, images and histograms."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from fvcore.common.history_buffer import HistoryBuffer

_active: list["EventStorage"] = []


def get_event_storage() -> "EventStorage":
    """Return the storage of the innermost ``with EventStorage(...)``.

    Raises:
        AssertionError: there is none.
    """
    assert _active, "get_event_storage() is only possible inside of 'with EventStorage(...)'"
    return _active[-1]


def has_event_storage() -> bool:
    """Tell whether this runs inside of a ``with EventStorage(...)``."""
    return len(_active) > 0


class EventStorage:
    """The metrics of a training, by name and iteration.

    It is a context manager: inside of it :func:`get_event_storage` returns it, so that a model can record
    numbers without being handed the storage.
    """

    def __init__(self, start_iter: int = 0) -> None:
        """Begin at an iteration, which a resumed training sets.

        Args:
            start_iter: the first iteration.
        """
        self._iter = start_iter
        self._history: defaultdict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._smoothing_hints: dict[str, bool] = {}
        self._latest_scalars: dict[str, tuple[float, int]] = {}
        self._current_prefix = ""
        # what a writer has not written yet
        self._vis_data: list[tuple[str, Any, int]] = []
        self._histograms: list[dict[str, Any]] = []

    def __enter__(self) -> "EventStorage":
        _active.append(self)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        assert _active[-1] is self
        _active.pop()

    @property
    def iter(self) -> int:
        """The current iteration."""
        return self._iter

    @iter.setter
    def iter(self, val: int) -> None:
        self._iter = int(val)

    @property
    def iteration(self) -> int:
        """The same as ``iter``; an older name."""
        return self._iter

    def step(self) -> None:
        """Go to the next iteration."""
        self._iter += 1

    def put_scalar(self, name: str, value: Any, smoothing_hint: bool = True, cur_iter: int | None = None) -> None:
        """Record a number.

        Args:
            name: its name; the active name scope is put before it.
            value: anything that ``float()`` takes.
            smoothing_hint: whether the number is noisy, so that writers show a median instead.
            cur_iter: the iteration, where it is not the current one.

        Raises:
            AssertionError: the name was recorded with another hint before.
        """
        name = self._current_prefix + name
        iteration = self._iter if cur_iter is None else cur_iter
        number = float(value)
        self._history[name].update(number, iteration)
        self._latest_scalars[name] = (number, iteration)
        hint = self._smoothing_hints.setdefault(name, smoothing_hint)
        assert hint == smoothing_hint, f"{name} was recorded before with smoothing_hint={hint}"

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: Any) -> None:
        """Record several numbers, given by name: ``put_scalars(loss=0.3, accuracy=0.9)``."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def put_image(self, img_name: str, img_tensor: Any) -> None:
        """Keep an image for TensorBoard.

        Args:
            img_name: its name.
            img_tensor: (3, H, W) RGB, float in [0, 1] or uint8 in [0, 255], tensor or array.
        """
        self._vis_data.append((img_name, img_tensor, self._iter))

    def put_histogram(self, hist_name: str, hist_tensor: torch.Tensor, bins: int = 1000) -> None:
        """Keep a histogram of all values of a tensor for TensorBoard.

        Args:
            hist_name: its name.
            hist_tensor: float, any shape.
            bins: how many bins of equal width between the least and the greatest value.
        """
        low, high = (bound.item() for bound in torch.aminmax(hist_tensor))
        edges = torch.linspace(low, high, steps=bins + 1, dtype=torch.float32)
        self._histograms.append(
            {  # the arguments of SummaryWriter.add_histogram_raw
                "tag": hist_name,
                "global_step": self._iter,
                "bucket_limits": edges[1:].tolist(),
                "bucket_counts": torch.histc(hist_tensor, bins=bins).tolist(),
                "min": low,
                "max": high,
                "num": len(hist_tensor),
                "sum": float(hist_tensor.sum()),
                "sum_squares": float((hist_tensor**2).sum()),
            }
        )

    def clear_images(self) -> None:
        """Forget the images; a writer calls it when they are written."""
        self._vis_data = []

    def clear_histograms(self) -> None:
        """Forget the histograms; a writer calls it when they are written."""
        self._histograms = []

    def history(self, name: str) -> HistoryBuffer:
        """Return all values of one name.

        Raises:
            KeyError: nothing was recorded under that name.
        """
        if name not in self._history:
            raise KeyError(f"nothing was recorded under the name {name}")
        return self._history[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        """Return all values of all names."""
        return self._history

    def latest(self) -> dict[str, tuple[float, int]]:
        """Return the last value of each name and the iteration it belongs to."""
        return self._latest_scalars

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """Return what :meth:`latest` does, but the median where a number is noisy.

        Args:
            window_size: the median is over so many iterations up to the last one that has a value.
        """
        return {
            name: (
                self._history[name].median(self.count_samples(name, window_size))
                if self._smoothing_hints[name]
                else value,
                iteration,
            )
            for name, (value, iteration) in self._latest_scalars.items()
        }

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """Return how many values a name has in the ``window_size`` iterations up to its last one."""
        values = self._history[name].values()
        count = 0
        while count < len(values) and values[-1 - count][1] > values[-1][1] - window_size:
            count += 1
        return count

    def smoothing_hints(self) -> dict[str, bool]:
        """Return for each name whether its numbers are noisy."""
        return self._smoothing_hints

    @contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Put ``name/`` before the names of all scalars that are recorded inside of this context."""
        outer = self._current_prefix
        self._current_prefix = name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._current_prefix = outer
