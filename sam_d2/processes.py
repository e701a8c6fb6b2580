"""The order of the processes of a machine, for packages that know nothing of a training."""

from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.utils import comm


@contextmanager
def first_process_first() -> Iterator[None]:
    """Let the first process of a machine through the block before its others, which find what it has made.

    Where it fails in there, the others go in nevertheless, and fail by themselves.
    """
    first = comm.get_local_rank() == 0
    if not first:
        comm.synchronize()
    try:
        yield
    finally:
        if first:
            comm.synchronize()
