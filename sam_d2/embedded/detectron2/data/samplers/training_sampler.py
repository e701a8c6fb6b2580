"""Endless shuffled index streams for training."""

import itertools
import logging
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from detectron2.utils import comm

logger = logging.getLogger(__name__)


class EndlessSampler(Sampler):
    """An endless stream of indices; process r of n gets the positions r, r + n, r + 2n, ...

    Every process draws the whole stream from the same seed and keeps its own part, so they never need to
    talk. The stream is not shared among loader workers: ``ToIterableDataset`` does that.

    Args:
        shuffle: whether each pass is in random order.
        seed: must be the same in all processes; None draws one that they share.
    """

    def __init__(self, shuffle: bool, seed: int | None) -> None:
        self._shuffle = shuffle
        self._seed = int(comm.shared_random_seed() if seed is None else seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self._infinite_indices(), self._rank, None, self._world_size)

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            indices = self._pass_indices(generator)
            if self._shuffle:
                indices = indices[torch.randperm(len(indices), generator=generator)]
            yield from indices.tolist()

    def _pass_indices(self, generator: torch.Generator) -> torch.Tensor:
        """Return the indices of one pass in ascending or fixed order: int64 of shape (indices,)."""
        raise NotImplementedError


class TrainingSampler(EndlessSampler):
    """Every index once per pass, without end.

    Args:
        size: number of elements of the dataset.
        shuffle: whether each pass is in random order.
        seed: must be the same in all processes; None draws one that they share.

    Raises:
        TypeError: ``size`` is no int.
        ValueError: ``size`` is not positive.
    """

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None) -> None:
        if not isinstance(size, int):
            raise TypeError(f"TrainingSampler(size=) expects an int, got {type(size)}.")
        if size <= 0:
            raise ValueError(f"TrainingSampler(size=) expects a positive int, got {size}.")
        super().__init__(shuffle, seed)
        self._size = size

    def _pass_indices(self, generator: torch.Generator) -> torch.Tensor:
        return torch.arange(self._size)


class RandomSubsetTrainingSampler(TrainingSampler):
    """A fixed random part of the dataset without end, to see how accuracy grows with the number of images.

    Args:
        size: number of elements of the dataset.
        subset_ratio: the part that is used, in (0, 1].
        shuffle: whether each pass is in random order.
        seed_shuffle: seed of the order; None draws one that all processes share.
        seed_subset: seed of the choice of the part; None draws one that all processes share.

    Raises:
        AssertionError: the ratio is out of range, or leaves no element.
    """

    def __init__(
        self,
        size: int,
        subset_ratio: float,
        shuffle: bool = True,
        seed_shuffle: int | None = None,
        seed_subset: int | None = None,
    ) -> None:
        super().__init__(size=size, shuffle=shuffle, seed=seed_shuffle)
        assert 0.0 < subset_ratio <= 1.0, f"subset_ratio must be in (0, 1], got {subset_ratio}"
        subset_size = int(size * subset_ratio)
        assert subset_size > 0, f"subset_ratio {subset_ratio} of {size} elements leaves none"
        generator = torch.Generator()
        generator.manual_seed(int(comm.shared_random_seed() if seed_subset is None else seed_subset))
        self._subset = torch.randperm(size, generator=generator)[:subset_size]
        logger.info(f"Randomly sample {subset_size} data from the original {size} data")

    def _pass_indices(self, generator: torch.Generator) -> torch.Tensor:
        return self._subset
