"""Start one process per device and connect them."""

import logging
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detectron2.utils import comm

__all__ = ["DEFAULT_TIMEOUT", "launch"]

DEFAULT_TIMEOUT = timedelta(minutes=30)

_logger = logging.getLogger(__name__)


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Call ``main_func(*args)``, in connected processes where more than one is asked for.

    To be called on every machine that takes part. A single process is not started but called in place.
    Several use NCCL where there is CUDA and gloo elsewhere.

    Args:
        main_func: importable function (a lambda cannot be sent to another process); its result is dropped.
        num_gpus_per_machine: processes on each machine; with CUDA, at most its number of GPUs.
        num_machines: machines that take part.
        machine_rank: number of this machine from 0.
        dist_url: where the processes meet, such as ``tcp://127.0.0.1:8686``; ``auto`` is a free local port.
        args: arguments of ``main_func``.
        timeout: of collective operations.

    Raises:
        torch.multiprocessing.ProcessRaisedException: a process failed; its traceback is in the message.
    """
    world_size = num_machines * num_gpus_per_machine
    if world_size <= 1:
        main_func(*args)
        return
    if dist_url == "auto":
        assert num_machines == 1, "dist_url=auto not supported in multi-machine jobs."
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    elif num_machines > 1 and dist_url is not None and dist_url.startswith("file://"):
        _logger.warning("dist_url file:// may fail between machines: tcp:// is safer.")
    mp.start_processes(
        _connected,
        args=(main_func, world_size, num_gpus_per_machine, machine_rank, dist_url, args, timeout),
        nprocs=num_gpus_per_machine,
        daemon=False,
    )


def _free_port() -> int:
    """Return a local port that is free now; another process may still be quicker to take it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _connected(
    local_rank: int,
    main_func: Callable[..., Any],
    world_size: int,
    processes_per_machine: int,
    machine_rank: int,
    dist_url: str | None,
    args: tuple,
    timeout: timedelta,
) -> None:
    """Join the process group, then call ``main_func``; runs in a process of its own."""
    cuda = torch.cuda.is_available()
    if cuda:
        assert processes_per_machine <= torch.cuda.device_count()
    try:
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            rank=machine_rank * processes_per_machine + local_rank,
            world_size=world_size,
            init_method=dist_url,
            timeout=timeout,
        )
    except Exception:
        _logger.error("The process group could not be made; its URL is %s", dist_url)
        raise
    comm.create_local_process_group(processes_per_machine)
    if cuda:
        torch.cuda.set_device(local_rank)
    # Without a barrier a slow rank could make another one's first collective operation time out.
    comm.synchronize()
    main_func(*args)
