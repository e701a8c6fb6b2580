"""Writers of what an event storage holds: to a JSON file, to TensorBoard, to the terminal."""

import datetime
import functools
import json
import logging
import os
import time
from collections import defaultdict
from typing import Any

import torch

from detectron2.utils.event_storage import EventStorage, get_event_storage
from detectron2.utils.file_io import PathManager


class EventWriter:
    """Base class: something that takes the current event storage's content elsewhere."""

    def write(self) -> None:
        """Write what is new in the current storage."""
        raise NotImplementedError

    def close(self) -> None:
        """Close files, if there are any."""


class JSONWriter(EventWriter):
    """Append one JSON object per line, with the scalars of one iteration and the key "iteration"."""

    def __init__(self, json_file: str, window_size: int = 20) -> None:
        """Open the file, to append to it.

        Args:
            json_file: the file.
            window_size: the median of noisy scalars is over so many iterations.
        """
        self._file = PathManager.open(json_file, "a")
        self._window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        """Write the scalars of iterations later than the last written one."""
        lines: defaultdict[int, dict[str, float]] = defaultdict(dict)
        latest = get_event_storage().latest_with_smoothing_hint(self._window_size)
        for name, (value, iteration) in latest.items():
            if iteration > self._last_write:
                lines[iteration][name] = value
        self._last_write = max(lines, default=self._last_write)
        for iteration, scalars in lines.items():
            self._file.write(json.dumps({**scalars, "iteration": iteration}, sort_keys=True) + "\n")
        self._file.flush()
        if hasattr(self._file, "fileno"):  # not all files of iopath's handlers have one
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorboardXWriter(EventWriter):
    """Write scalars, images and histograms for TensorBoard."""

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs: Any) -> None:
        """Remember where to write; the file is opened by the first write.

        Args:
            log_dir: folder of the event file.
            window_size: the median of noisy scalars is over so many iterations.
            kwargs: further arguments of ``torch.utils.tensorboard.SummaryWriter``.
        """
        self._writer_args = {"log_dir": log_dir, **kwargs}
        self._window_size = window_size
        self._last_write = -1

    @functools.cached_property
    def _writer(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

        return SummaryWriter(**self._writer_args)

    def write(self) -> None:
        """Write the scalars of iterations later than the last written one, and all images and histograms."""
        storage = get_event_storage()
        latest = storage.latest_with_smoothing_hint(self._window_size)
        fresh = {name: entry for name, entry in latest.items() if entry[1] > self._last_write}
        for name, (value, iteration) in fresh.items():
            self._writer.add_scalar(name, value, iteration)
        self._last_write = max((iteration for _, iteration in fresh.values()), default=self._last_write)

        for name, image, iteration in storage._vis_data:
            self._writer.add_image(name, image, iteration)
        for histogram in storage._histograms:
            self._writer.add_histogram_raw(**histogram)
        # this is the only writer of images and histograms, so nobody else waits for them
        storage.clear_images()
        storage.clear_histograms()

    def close(self) -> None:
        """Close the file, if it was opened."""
        if "_writer" in self.__dict__:
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """Log one line with ETA, iteration, losses, times, learning rate and GPU memory.

    A scalar is shown where its name contains "loss" or "[metric]".
    """

    def __init__(self, max_iter: int | None = None, window_size: int = 20) -> None:
        """Set how long the training is.

        Args:
            max_iter: iterations of the training; without it there is no ETA.
            window_size: the median of the losses is over so many iterations.
        """
        self.logger = logging.getLogger("detectron2.utils.events")
        self._max_iter = max_iter
        self._window_size = window_size
        self._last_write: tuple[int, float] | None = None  # iteration and time of the last line without timings

    def _eta(self, storage: EventStorage) -> str | None:
        if self._max_iter is None:
            return None
        left = self._max_iter - storage.iter - 1
        try:
            seconds = storage.history("time").median(1000) * left
        except KeyError:
            # no timer hook: the time since the last line, which is less exact
            last, self._last_write = self._last_write, (storage.iter, time.perf_counter())
            if last is None:
                return None
            seconds = (self._last_write[1] - last[1]) / (storage.iter - last[0]) * left
        else:
            storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
        return str(datetime.timedelta(seconds=int(seconds)))

    def _medians(self, storage: EventStorage, part_of_name: str) -> str:
        return "  ".join(
            f"{name}: {history.median(storage.count_samples(name, self._window_size)):.4g}"
            for name, history in storage.histories().items()
            if part_of_name in name
        )

    def _times(self, storage: EventStorage) -> str:
        text = ""
        histories = storage.histories()
        if "time" in histories:
            text += f"time: {histories['time'].global_avg():.4f}  last_time: {histories['time'].latest():.4f}  "
        if "data_time" in histories:
            mean = histories["data_time"].avg(storage.count_samples("data_time", self._window_size))
            text += f"data_time: {mean:.4f}  last_data_time: {histories['data_time'].latest():.4f}  "
        return text

    def write(self) -> None:
        """Log the line; nothing once the training is over."""
        storage = get_event_storage()
        if storage.iter == self._max_iter:
            return
        eta = self._eta(storage)
        histories = storage.histories()
        rate = f"{histories['lr'].latest():.5g}" if "lr" in histories else "N/A"
        memory = ""
        if torch.cuda.is_available():
            memory = f"max_mem: {torch.cuda.max_memory_allocated() / 1024**2:.0f}M"
        self.logger.info(
            f" {f'eta: {eta}  ' if eta else ''}iter: {storage.iter}  {self._medians(storage, 'loss')}"
            f"  {self._medians(storage, '[metric]')}  {self._times(storage)} lr: {rate}  {memory}"
        )
