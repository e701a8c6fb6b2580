"""Communication between the processes of one training; every function also works in a single process."""

import functools
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

_local_group: Any = None

_NO_LOCAL_GROUP = (
    "There is no process group of this machine yet. Start the processes with detectron2's launch(), or call "
    "comm.create_local_process_group(processes_per_machine) after torch.distributed.init_process_group()."
)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Return the number of processes of the training, 1 where it is not distributed."""
    return dist.get_world_size() if _is_distributed() else 1


def get_rank() -> int:
    """Return the index of this process among all processes, 0 where the training is not distributed."""
    return dist.get_rank() if _is_distributed() else 0


def is_main_process() -> bool:
    """Tell whether this is the process of rank 0, the one that writes files."""
    return get_rank() == 0


@functools.cache
def create_local_process_group(num_workers_per_machine: int) -> None:
    """Form the group of the processes that run on the same machine as this one.

    All processes must call it together. A second call with the same number does nothing.

    Args:
        num_workers_per_machine: processes per machine, usually its number of GPUs.
    """
    global _local_group
    assert _local_group is None, "the process group of this machine has been created with another size"
    world_size, rank = get_world_size(), get_rank()
    assert world_size % num_workers_per_machine == 0, (world_size, num_workers_per_machine)
    for first in range(0, world_size, num_workers_per_machine):
        # every process takes part in making every group, also those that it will not be in
        members = list(range(first, first + num_workers_per_machine))
        group = dist.new_group(members)
        if rank in members:
            _local_group = group


def get_local_process_group() -> Any:
    """Return the group of the processes on this machine.

    Raises:
        AssertionError: :func:`create_local_process_group` has not been called.
    """
    assert _local_group is not None, _NO_LOCAL_GROUP
    return _local_group


def get_local_rank() -> int:
    """Return the index of this process among those of its machine, which is also the index of its GPU."""
    return dist.get_rank(group=get_local_process_group()) if _is_distributed() else 0


def get_local_size() -> int:
    """Return the number of processes on this machine."""
    return dist.get_world_size(group=get_local_process_group()) if _is_distributed() else 1


def synchronize() -> None:
    """Wait until all processes have come to this call."""
    if get_world_size() == 1:
        return
    if dist.get_backend() == dist.Backend.NCCL:
        dist.barrier(device_ids=[torch.cuda.current_device()])  # NCCL guesses a device otherwise, and warns
    else:
        dist.barrier()


@functools.cache
def _cpu_group() -> Any:
    """Return a group of all processes that passes objects through CPU memory, whatever the main backend."""
    return dist.new_group(backend="gloo") if dist.get_backend() == "nccl" else dist.group.WORLD


def all_gather(data: Any, group: Any = None) -> list[Any]:
    """Collect one picklable object from every process, on every process.

    Args:
        data: what this process contributes.
        group: the processes that take part; all of them, over gloo, where none is given.

    Returns:
        the objects in the order of ranks.
    """
    group, size = _group_and_size(group)
    if size == 1:
        return [data]
    received: list[Any] = [None] * size
    dist.all_gather_object(received, data, group=group)
    return received


def gather(data: Any, dst: int = 0, group: Any = None) -> list[Any]:
    """Collect one picklable object from every process on the process ``dst``.

    Args:
        data: what this process contributes.
        dst: the rank that receives.
        group: the processes that take part; all of them, over gloo, where none is given.

    Returns:
        on ``dst`` the objects in the order of ranks, elsewhere an empty list.
    """
    group, size = _group_and_size(group)
    if size == 1:
        return [data]
    received: list[Any] | None = [None] * size if dist.get_rank(group=group) == dst else None
    dist.gather_object(data, received, dst=dst, group=group)
    return received or []


def _group_and_size(group: Any) -> tuple[Any, int]:
    if get_world_size() == 1:
        return None, 1
    chosen = _cpu_group() if group is None else group
    return chosen, dist.get_world_size(group=chosen)


def shared_random_seed() -> int:
    """Return a random number in [0, 2**31) that is the same on all processes; all of them must call it.

    It is drawn from numpy's global state of rank 0.
    """
    return all_gather(np.random.randint(2**31))[0]


def reduce_dict(input_dict: dict[str, torch.Tensor], average: bool = True) -> dict[str, torch.Tensor]:
    """Sum or average the scalar tensors of a dict over all processes; only rank 0 has the result.

    Args:
        input_dict: scalars, the same names on every process.
        average: divide the sum by the number of processes.

    Returns:
        a dict with the same names; in a single process the input itself.
    """
    world_size = get_world_size()
    if world_size < 2:
        return input_dict
    names = sorted(input_dict)  # dicts may have been filled in another order elsewhere
    with torch.no_grad():
        stacked = torch.stack([input_dict[name] for name in names])
        dist.reduce(stacked, dst=0)
        if average and dist.get_rank() == 0:
            stacked /= world_size
    return dict(zip(names, stacked, strict=True))
