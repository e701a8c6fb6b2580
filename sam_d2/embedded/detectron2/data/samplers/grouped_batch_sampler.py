"""Batches whose elements are all of one group."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import BatchSampler, Sampler


class GroupedBatchSampler(BatchSampler):
    """Batches of indices of one group each, as close to the sampler's order as that allows.

    Args:
        sampler: yields indices in [0, N).
        group_ids: N ints, the group of each index.
        batch_size: number of indices in a batch.

    Raises:
        ValueError: ``sampler`` is no ``torch.utils.data.Sampler``.
        AssertionError: ``group_ids`` is not one-dimensional.
    """

    def __init__(self, sampler: Sampler, group_ids: Sequence[int], batch_size: int) -> None:
        if not isinstance(sampler, Sampler):
            raise ValueError(f"GroupedBatchSampler needs a torch.utils.data.Sampler, got sampler={sampler}")
        self.sampler = sampler
        self.group_ids = np.asarray(group_ids)
        assert self.group_ids.ndim == 1, self.group_ids.shape
        self.batch_size = batch_size
        # Kept between iterations: what did not fill a batch goes into the next pass.
        self.buffer_per_group: dict[int, list[int]] = {int(group): [] for group in np.unique(self.group_ids)}

    def __iter__(self) -> Iterator[list[int]]:
        for index in self.sampler:
            waiting = self.buffer_per_group[int(self.group_ids[index])]
            waiting.append(index)
            if len(waiting) == self.batch_size:
                batch = waiting.copy()
                waiting.clear()
                yield batch

    def __len__(self) -> int:
        raise NotImplementedError("The number of batches depends on the order of the sampler.")
