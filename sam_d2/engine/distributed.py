"""Processes and devices: ``torchrun``, Detectron2's launcher, a GPU or none."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.engine import launch
from detectron2.utils import comm
from sam_d2.errors import UserError


def launch_main(main: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int | None:
    """Run ``main(args)`` in as many processes as asked for.

    Under ``torchrun`` this process is one of them already: NCCL joins them where there are GPUs, gloo elsewhere.
    Otherwise Detectron2's launcher starts one process per GPU. On a machine without a GPU there is one process.

    Raises:
        UserError: more GPUs are asked for than the machine has.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return _run_under_torchrun(main, args)
    available = torch.cuda.device_count()
    if available == 0 and args.num_machines > 1:
        raise UserError("--num-machines: no GPU is found. For several machines without GPUs use torchrun on each.")
    if available == 0 and args.num_gpus > 1:
        raise UserError(
            f"--num-gpus {args.num_gpus}: no GPU is found. For several processes on the CPU use "
            f"torchrun --nproc-per-node {args.num_gpus} experiments/train_net.py ..."
        )
    if args.num_gpus > max(available, 1):
        raise UserError(f"--num-gpus {args.num_gpus}: this machine has {available}.")
    if available == 0 or args.num_gpus * args.num_machines <= 1:
        return main(args)
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
    return None


def _run_under_torchrun(main: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int | None:
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        comm.create_local_process_group(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        return main(args)
    finally:
        torch.distributed.destroy_process_group()


def choose_device(name: str) -> torch.device:
    """Return the device of this process; ``auto`` is its GPU where there is one and the CPU elsewhere.

    Raises:
        UserError: the device is unknown to torch or not on this machine.
    """
    if name == "auto":
        name = f"cuda:{comm.get_local_rank()}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
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
        return torch.float16 if device.type == "cuda" and not torch.cuda.is_bf16_supported() else torch.bfloat16
    if name not in ("bfloat16", "float16"):
        raise UserError(f"train.amp.dtype={name!r}: expected auto, bfloat16 or float16.")
    return torch.bfloat16 if name == "bfloat16" else torch.float16


def distribute(model: nn.Module, **options: Any) -> nn.Module:
    """Wrap a model for DDP where there are several processes.

    Detectron2's ``create_ddp_model`` always passes ``device_ids``, which a model on the CPU refuses.
    """
    if comm.get_world_size() == 1:
        return model
    # DDP copies the first process's parameters to the others, but its buffers only with broadcast_buffers, at every
    # step. SAM's random position encoding is a buffer: each process would train with one of its own.
    for buffer in model.buffers():
        torch.distributed.broadcast(buffer, src=0)
    on_gpu = next(model.parameters()).is_cuda
    return DistributedDataParallel(model, device_ids=[comm.get_local_rank()] if on_gpu else None, **options)
