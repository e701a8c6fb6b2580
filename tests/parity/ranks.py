"""Run part of a case in several processes that form a group, as a training on several GPUs does."""

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch.distributed as dist
from answers import encode

PATIENCE = 120
"""Seconds to wait for a process: a case that hangs must end as a failure."""


def on_ranks(function: Callable[[], Any], count: int = 2) -> list[Any]:
    """Call a function in ``count`` processes joined by gloo and return their encoded answers by rank.

    The processes are forked, so the function may be any closure.

    Raises:
        RuntimeError: a process failed or gave no answer in time.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for rank in range(count):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(function, f"file://{folder}/group", rank, count, sender))
            process.start()
            started.append((process, receiver))
        try:
            return [_answer(receiver, rank) for rank, (_, receiver) in enumerate(started)]
        finally:
            for process, _ in started:
                process.join(1)
                process.kill()


def _run(function: Callable[[], Any], meeting_point: str, rank: int, count: int, sender: Connection) -> None:
    from detectron2.utils import comm

    try:
        dist.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=count)
        comm.create_local_process_group(count)
        message = {"answer": encode(function())}
        comm.synchronize()  # else the first to end would take the connection from the others
    except Exception:
        message = {"error": traceback.format_exc()}
    sender.send(message)
    os._exit(0)


def _answer(receiver: Connection, rank: int) -> Any:
    if not receiver.poll(PATIENCE):
        raise RuntimeError(f"the process of rank {rank} gave no answer in {PATIENCE} s")
    message = receiver.recv()
    if "error" in message:
        raise RuntimeError(f"the process of rank {rank} failed:\n{message['error']}")
    return message["answer"]
