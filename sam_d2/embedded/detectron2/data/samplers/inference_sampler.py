"""Every element once, split among the processes."""

from collections.abc import Iterator

from torch.utils.data import Sampler

from detectron2.utils import comm


class InferenceSampler(Sampler):
    """Each index exactly once over all processes, in contiguous parts whose lengths differ by one at most.

    Args:
        size: number of elements of the dataset.

    Raises:
        AssertionError: ``size`` is not positive.
    """

    def __init__(self, size: int) -> None:
        assert size > 0, f"InferenceSampler(size=) expects a positive number, got {size}."
        self._local_indices = self._get_local_indices(size, comm.get_world_size(), comm.get_rank())

    @staticmethod
    def _get_local_indices(total_size: int, world_size: int, rank: int) -> range:
        share, longer = divmod(total_size, world_size)  # the first `longer` processes get one more
        begin = rank * share + min(rank, longer)
        return range(begin, begin + share + (rank < longer))

    def __iter__(self) -> Iterator[int]:
        return iter(self._local_indices)

    def __len__(self) -> int:
        return len(self._local_indices)
