"""A run over a dataset: what is left of it is divided among the processes, and the first one joins what they made."""

from __future__ import annotations

import ctypes
import datetime
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detectron2.utils import comm
from sam_d2.errors import UserError
from sam_d2.labelling.index import BoxedImage, DatasetIndex
from sam_d2.labelling.journal import FinishedImage, Journal, JournalWriter, MadeAnnotation
from sam_d2.labelling.labeller import DamagedModelError
from sam_d2.labelling.output import Counts, write_output
from sam_d2.labelling.progress import LabelProgress

_M_MMAP_THRESHOLD = -3  # malloc.h
_LARGE_BLOCK = 1 << 20
_LONGEST_WAIT = datetime.timedelta(days=30)
Label = Callable[[BoxedImage], list[MadeAnnotation]]


@dataclass(frozen=True)
class LabellingRun:
    """The work on one dataset, of one process of one or several.

    Attributes:
        source: the COCO file.
        output: the file to write.
        journal: of this run, begun.
        keep_existing: whether annotations that have a mask keep it.
        batch_size: images between two writes to the journal.
    """

    source: Path
    output: Path
    journal: Journal
    keep_existing: bool
    batch_size: int

    def remaining(self, index: DatasetIndex) -> np.ndarray:
        """Return the places of the images that are left to this process: every one of so many as there are processes.

        Args:
            index: of the dataset.
        """
        done = self.journal.finished(index.count("images"))
        world, rank = comm.get_world_size(), comm.get_rank()
        rows = index.images_with_boxes(self.keep_existing)
        return np.fromiter((row for row in rows if not done[row] and row % world == rank), dtype=np.int64)

    def label(self, index: DatasetIndex, rows: np.ndarray, label: Label, progress: LabelProgress) -> None:
        """Make the masks of images, and write each batch to the journal.

        Args:
            index: of the dataset.
            rows: places of the images.
            label: makes the masks of an image's boxes.
            progress: is told of each image.
        """
        writer = self.journal.writer(comm.get_rank())
        try:
            for start in range(0, len(rows), self.batch_size):
                self._label_batch(writer, index, rows[start : start + self.batch_size].tolist(), label, progress)
        finally:
            progress.close()
            writer.close()

    def _label_batch(
        self, writer: JournalWriter, index: DatasetIndex, rows: list[int], label: Label, progress: LabelProgress
    ) -> None:
        batch: list[FinishedImage] = []
        for row in rows:
            try:
                batch.append(FinishedImage(row, label(index.image(row, self.keep_existing))))
            except DamagedModelError:
                raise  # would be so in every other image, too
            except UserError as error:
                batch.append(FinishedImage(row, [], str(error)))
            progress.add(len(batch[-1].annotations))
        writer.write(batch)

    def join(self, index: DatasetIndex, info: dict[str, Any]) -> Counts:
        """Write the output, and delete the journal where no image is left to try again.

        Args:
            index: of the dataset.
            info: how the masks were made.
        """
        counts = write_output(self.output, self.journal, index, info, self.keep_existing)
        index.close()
        if not counts.images_unread:
            self.journal.remove()
        return counts


def keep_memory_flat() -> None:
    """Have large blocks given back to the system as soon as they are freed, where the C library is glibc.

    By itself glibc raises the size of what it calls large to that of the largest block freed so far, up to 32 MiB. Then
    masks of many sizes share a heap with what stays, and it grows from image to image.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


class Processes:
    """Waits for the other processes of a run, which may take days longer; one process alone waits for nothing."""

    def __init__(self) -> None:
        self._group: torch.distributed.ProcessGroup | None = None
        if comm.get_world_size() > 1:
            # NCCL and the default group give up after minutes, and NCCL's wait occupies the GPU.
            group = torch.distributed.new_group(backend="gloo", timeout=_LONGEST_WAIT)
            assert isinstance(group, torch.distributed.ProcessGroup)  # this process is in it
            self._group = group

    def wait(self) -> None:
        """Return when every process has come here."""
        if self._group is not None:
            torch.distributed.barrier(group=self._group)
