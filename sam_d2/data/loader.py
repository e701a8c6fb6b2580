"""A training loader whose every sample is a function of (seed, position) alone.

Detectron2's sampler restarts its stream on a resume, and its workers draw from a state that depends on their
number. Here the sampler yields (position, index), and all random choices of a sample are seeded from the run's seed
and its position, so a run that goes on at iteration ``k`` sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from detectron2.data import DatasetFromList
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from sam_d2.data.shared_records import SharedRecords
from sam_d2.errors import BadImageError, UserError

BAD_IMAGES = "bad_images"
"""Key of a sample that stands in the place of images that could not be read: what was said of them."""
MOST_BAD_IMAGES = 10
"""Images tried for one position of the stream: where all are bad, it is the disk and not the images."""
DatasetDict = dict[str, Any]
Mapper = Callable[[DatasetDict], DatasetDict]


def sample_seed(seed: int, position: int) -> int:
    """Return the 63-bit seed of the sample at ``position`` of the training stream of a run."""
    low, high = np.random.SeedSequence([seed, position]).generate_state(2)
    return (int(high) << 32 | int(low)) >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's global generators inside the block, and restore them after it.

    Augmentations draw from these; the model and the caller must not notice.
    """
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


class SeededDataset(Dataset):
    """A mapped dataset that is read by (position, index); the sample carries its ``seed`` to the model.

    Args:
        dataset: dataset dicts.
        mapper: dataset dict to sample.
        seed: of the run.
        skip_bad_images: take another image for one that cannot be read: drawn from (seed, position), so the sample
            remains a function of these and of the files, and a batch keeps its size. What was said of the bad ones is
            in the sample's ``bad_images``.
    """

    def __init__(self, dataset: Dataset, mapper: Mapper, seed: int, *, skip_bad_images: bool = False) -> None:
        self.dataset = dataset
        self.mapper = mapper
        self.seed = seed
        self.skip_bad_images = skip_bad_images

    def __getitem__(self, key: tuple[int, int]) -> DatasetDict:
        position, index = key
        seed = sample_seed(self.seed, position)
        bad: list[str] = []
        while True:
            try:
                with seeded(seed):
                    sample = self.mapper(self.dataset[index])
                break
            except BadImageError as error:
                if not self.skip_bad_images:
                    raise
                bad.append(str(error))
                index = self._another(position, bad)
        sample["seed"] = seed
        if bad:
            sample[BAD_IMAGES] = bad
        return sample

    def _another(self, position: int, bad: list[str]) -> int:
        """Return the index to read where those before it could not be read; what is drawn before is unchanged."""
        if len(bad) == MOST_BAD_IMAGES:
            raise UserError(f"{bad[-1]} It is the last of {len(bad)} in a row that cannot be read. Is the disk there?")
        size = len(self.dataset)  # type: ignore[arg-type]
        return int(np.random.default_rng([self.seed, position, len(bad)]).integers(size))


class PositionSampler(Sampler):
    """The endless training stream: every image once per epoch, in an order drawn from (seed, epoch).

    Args:
        size: images of the dataset.
        seed: of the run.
        shuffle: False keeps the dataset's order.
        start: position of the stream, over all ranks, to begin with.
        rank: this process takes positions ``start + rank``, ``start + rank + world_size``, ...
        world_size: number of processes.
    """

    def __init__(
        self,
        size: int,
        *,
        seed: int,
        shuffle: bool = True,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if size < 1:
            raise UserError("The training dataset has no images.")
        self.size = size
        self.seed = seed
        self.shuffle = shuffle
        self.start = start
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        position = self.start + self.rank
        epoch, order = -1, np.arange(self.size)
        while True:
            if position // self.size != epoch:
                epoch = position // self.size
                if self.shuffle:
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
            yield position, int(order[position % self.size])
            position += self.world_size


class GroupedBatches(Sampler):
    """Batches of a training stream whose images are all landscape, or all portrait or square.

    Positions are put into the batch of their group in the stream's order, and a batch is given out when it is full. So
    the batches depend on the stream alone, and those before ``start`` can be passed over without reading an image.

    Args:
        stream: of this process, from the beginning of the run.
        landscape: of each image of the dataset, whether it is wider than high.
        batch_size: images of a batch of this process.
        start: batches to pass over.
    """

    def __init__(self, stream: PositionSampler, landscape: np.ndarray, batch_size: int, *, start: int = 0) -> None:
        self.stream = stream
        self.landscape = landscape
        self.batch_size = batch_size
        self.start = start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        groups: tuple[list[tuple[int, int]], ...] = ([], [])
        given = 0
        for key in self.stream:
            group = groups[self.landscape[key[1]]]
            group.append(key)
            if len(group) == self.batch_size:
                if given >= self.start:
                    yield list(group)
                given += 1
                group.clear()


class TrainLoader:
    """Endless batches of mapped samples; set ``start_iteration`` before the first batch to go on with a run.

    Args:
        dataset: dataset dicts; kept once in shared memory whatever the number of workers.
        mapper: dataset dict to sample.
        total_batch_size: images per step over all processes.
        num_workers: processes that read and augment; 0 does it in the training process.
        seed: of the run.
        shuffle: draw a new order each epoch.
        aspect_ratio_grouping: no batch has landscape images beside others; a batch is padded to its largest image.
            The dataset's ``width`` and ``height`` decide.
        on_bad_image: ``error`` ends the training at an image that cannot be read or has another size than its
            annotations say; ``skip`` takes another one for it, counted.

    Raises:
        UserError: the batch cannot be shared evenly between the processes, there are no images, or ``on_bad_image`` is
            neither.
    """

    def __init__(
        self,
        dataset: list[DatasetDict],
        *,
        mapper: Mapper,
        total_batch_size: int,
        num_workers: int = 2,
        seed: int = 0,
        shuffle: bool = True,
        aspect_ratio_grouping: bool = False,
        on_bad_image: str = "error",
    ) -> None:
        world_size = comm.get_world_size()
        if on_bad_image not in ("error", "skip"):
            raise UserError(f"dataloader.train.on_bad_image={on_bad_image}: expected error or skip.")
        if total_batch_size < 1 or total_batch_size % world_size:
            raise UserError(
                f"dataloader.train.total_batch_size={total_batch_size} cannot be shared evenly by {world_size} "
                "processes; take a multiple of that."
            )
        if not dataset:
            raise UserError("The training dataset has no images.")
        self.size = len(dataset)
        self.mapper = mapper
        self.total_batch_size = total_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.shuffle = shuffle
        self.start_iteration = 0
        self._landscape = (
            np.array([record["width"] > record["height"] for record in dataset], dtype=np.int64)
            if aspect_ratio_grouping
            else None
        )
        self.records = SharedRecords(dataset)
        self.dataset = DatasetFromList(dataset, serialize=lambda _: self.records)
        self._samples = SeededDataset(self.dataset, mapper, seed, skip_bad_images=on_bad_image == "skip")

    def __iter__(self) -> Iterator[list[DatasetDict]]:
        return iter(
            DataLoader(
                self._samples,
                batch_sampler=self._batches(),
                num_workers=self.num_workers,
                collate_fn=trivial_batch_collator,
                worker_init_fn=_begin_worker,
                # The loader draws its workers' base seed, which nothing here uses, from the global generator otherwise.
                generator=torch.Generator(),
            )
        )

    def _batches(self) -> Sampler:
        rank, world_size = comm.get_rank(), comm.get_world_size()
        batch_size = self.total_batch_size // world_size
        stream = PositionSampler(
            self.size,
            seed=self.seed,
            shuffle=self.shuffle,
            start=self.start_iteration * self.total_batch_size if self._landscape is None else 0,
            rank=rank,
            world_size=world_size,
        )
        if self._landscape is None:
            return BatchSampler(stream, batch_size, drop_last=True)
        return GroupedBatches(stream, self._landscape, batch_size, start=self.start_iteration)


def _begin_worker(worker: int) -> None:
    """Keep a worker from competing with the training process for its cores, and from the signals sent to its group.

    Ctrl-C, and SIGTERM of ``timeout`` and of some schedulers, reach the whole process group: the training needs its
    workers to finish the step. They end when it ends.
    """
    import cv2

    os.setpgid(0, 0)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
