"""Devices, and the models of a training in several processes; :mod:`sam_d2.engine.launch` starts them."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.utils import comm
from sam_d2.errors import UserError
from sam_d2.faults import told

T = TypeVar("T")

logger = logging.getLogger(__name__)


def choose_device(name: str) -> torch.device:
    """Return the device of this process; ``auto`` is its GPU where there is one and the CPU elsewhere.

    Raises:
        UserError: the device is unknown to torch or not on this machine, or one device is named for several processes.
    """
    if name == "auto":
        name = f"cuda:{comm.get_local_rank()}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.index is not None and comm.get_world_size() > 1 and device.index != comm.get_local_rank():
            raise UserError(f"train.device={name}: each of several processes has a device of its own. Take 'auto'.")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"train.device={name!r} cannot be used ({reason}). Take 'auto' or 'cpu'.") from error
    return device


def choose_amp_dtype(enabled: bool, name: str, device: torch.device) -> torch.dtype | None:
    """Return the autocast dtype that ``train.amp`` asks for; None trains in full precision.

    Raises:
        UserError: ``name`` is not auto, bfloat16 or float16.
    """
    if not enabled:
        return None
    if name == "auto":
        # Before Ampere (sm_80) bfloat16 is emulated: slower than full precision.
        emulated = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.float16 if emulated else torch.bfloat16
    if name not in ("bfloat16", "float16"):
        raise UserError(f"train.amp.dtype={name!r}: expected auto, bfloat16 or float16.")
    if name == "bfloat16":
        return torch.bfloat16
    if device.type == "cpu":
        logger.warning("train.amp.dtype=float16: on a CPU far slower than full precision; bfloat16 is not")
    return torch.float16


def distribute(model: nn.Module, **options: Any) -> nn.Module:
    """Wrap a model for DDP where there are several processes.

    Detectron2's ``create_ddp_model`` always passes ``device_ids``, which a model on the CPU refuses.

    Args:
        model: with the same parameters and buffers by name in every process; those of the first become everyone's.
        **options: of ``DistributedDataParallel``; ``broadcast_buffers`` is taken under this name by every torch.

    Raises:
        UserError: the model is on the CPU, where the processes were joined for GPUs or it synchronises its batch
            normalisation by a layer that is for GPUs only.
    """
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).is_cuda
    if not on_gpu:
        _check_on_cpu(model)
    share_buffers(model)
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters:  # torch 2.15 and later
        options = {{"broadcast_buffers": "forward_sync_buffers"}.get(name, name): v for name, v in options.items()}
    return DistributedDataParallel(model, device_ids=[comm.get_local_rank()] if on_gpu else None, **options)


def _check_on_cpu(model: nn.Module) -> None:
    if torch.distributed.get_backend() == "nccl":
        raise UserError(
            "train.device=cpu: the processes were joined for this machine's GPUs. To train on the CPU in several "
            "processes hide them: begin the command with CUDA_VISIBLE_DEVICES= (and nothing after it)."
        )
    synchronised = [name for name, module in model.named_modules() if isinstance(module, nn.SyncBatchNorm)]
    if synchronised:
        raise UserError(
            f"norm=SyncBN ({synchronised[0]} and {len(synchronised) - 1} more): torch synchronises batch normalisation "
            "on GPUs only. On the CPU take norm=naiveSyncBN, GN or FrozenBN, or one process."
        )


def share_buffers(model: nn.Module) -> None:
    """Give every process the first one's buffers, which are the ones that it saves; nothing where it is alone.

    DDP copies them only with ``broadcast_buffers``, and then before a step and not after it. But SAM's random position
    encoding is a buffer, of which each process would train with one of its own, and so are the running statistics of
    batch normalisation, with which a test would score another model in each process, none of them the saved one.
    """
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


def in_main_process(work: Callable[[], T], folder: Path | None = None) -> T:
    """Let the main process work for all: what it returns is the result of all, its error is raised in all of them.

    One that ended alone would leave the others waiting for it, over NCCL until the timeout.

    Args:
        work: called in the main process; its result can be pickled.
        folder: that the work writes to, for the message of a fault of the machine.

    Raises:
        UserError: the work raised one, or met a fault of the machine that :mod:`sam_d2.faults` knows. Any other
            error is the main process's own, and the others lose their connection to it.
    """
    result: Any = None
    problem = ""
    if comm.is_main_process():
        try:
            with told(folder):
                result = work()
        except UserError as error:
            problem = str(error)
    result, problem = comm.all_gather((result, problem))[0]
    if problem:
        raise UserError(problem, of_all=True)
    return result


def is_lost_connection(error: BaseException | None) -> bool:
    """Tell whether an error says no more than that another process of the run is gone, or out of reach."""
    # gloo's errors are plain RuntimeErrors that begin with the place in its source.
    return isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo/" in str(error))
