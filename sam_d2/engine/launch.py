"""The processes of a run: ``torchrun``'s or Detectron2's launcher's, with one message where one of them fails."""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from detectron2.engine import DEFAULT_TIMEOUT, launch
from detectron2.utils import comm
from sam_d2.cli import default_dist_url, tell
from sam_d2.engine.distributed import is_lost_connection
from sam_d2.errors import BadImageError, UserError
from sam_d2.interruption import SIGNALS, Interrupted, stop_requests

SECONDS_FOR_THE_CULPRIT = 20.0
"""How long a process waits with the message that another one is gone."""
SECONDS_TO_END = 10.0
"""How long the processes of a run have to end after a second request."""
_LOST = (
    "The connection to another process of this run was lost: it has ended or cannot be reached. Its own message, on "
    "the terminal or in the log of its machine, says why; there is none where it was ended for want of memory."
)

Main = Callable[[argparse.Namespace], int | None]


def launch_main(main: Main, args: argparse.Namespace) -> int | None:
    """Run ``main(args)`` in as many processes as asked for, joined by NCCL where there are GPUs, by gloo elsewhere.

    Under ``torchrun`` this process is one of them already. Otherwise Detectron2's launcher starts ``args.num_gpus`` of
    them, each with a GPU of its own, or with a share of the CPU's threads on a machine without a GPU.

    Args:
        main: importable, because the processes are spawned.
        args: with ``num_gpus, num_machines, machine_rank, dist_url``; given to ``main`` as it is.

    Returns:
        What ``main`` returned, in the process that called it; None where others did.

    Raises:
        UserError: more GPUs are asked for than the machine has, the processes cannot meet at ``dist_url``, or one of
            them ended with such an error, or without a word.
        SystemExit: one of them ended so, with its code.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return _run_under_torchrun(main, args)
    available, processes = torch.cuda.device_count(), max(args.num_gpus, 1)
    if available and processes > available:
        raise UserError(f"--num-gpus {processes}: this machine has {available}.")
    if processes * args.num_machines == 1:
        return main(args)
    _check_meeting_point(args)
    if not available:
        print(f"No GPU is found, so the CPU is used; processes on this machine: {processes}", file=sys.stderr)
    if args.num_machines > 1:
        print(f"Machine {args.machine_rank} of {args.num_machines}, meeting at {args.dist_url}", file=sys.stderr)
    # The processes import torch's before any code of ours runs in them, and which of them torch ends is no news.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:`torch.jit.script`:FutureWarning")
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    try:
        launch(
            _run_in_started_process,
            processes,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(main, args),
        )
    except KeyboardInterrupt as request:
        _end_processes(request)
        raise
    except ProcessExitedException as error:
        if error.signal_name is None:
            raise SystemExit(error.exit_code) from error
        raise _killed(error.error_index, error.signal_name) from error
    except ProcessRaisedException as error:
        message = _message_of(error, args.dist_url)
        if message is None:
            raise
        raise UserError(message) from error
    return None


def _killed(index: int, signal_name: str) -> UserError:
    return UserError(
        f"Process {index} of the run was ended by {signal_name}: for want of memory, if nobody did it. Take fewer "
        "processes, images (dataloader.train.total_batch_size) or dataloader.train.num_workers."
    )


def _check_meeting_point(args: argparse.Namespace) -> None:
    """Refuse an address at which the processes would wait for each other in vain, or meet those of another run."""
    several, url = args.num_machines > 1, args.dist_url
    if several and url in ("auto", default_dist_url()):
        raise UserError(
            f"--num-machines {args.num_machines}: where do they meet? Give each the same --dist-url tcp://HOST:PORT, "
            "the address of machine 0 as the others reach it, and a free port there."
        )
    if url == "auto" or url.startswith(("file://", "env://")):
        return
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not url.startswith("tcp://") or not host or not port:
        raise UserError(f"--dist-url {url}: expected tcp://HOST:PORT, such as tcp://127.0.0.1:29500, or auto.")
    try:
        socket.getaddrinfo(host, port)
    except OSError as error:
        raise UserError(f"--dist-url {url}: {host} cannot be found ({error.strerror}).") from error
    if args.machine_rank == 0:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError as error:
                raise UserError(
                    f"--dist-url {url}: the processes cannot meet there ({error.strerror or error}). Another run, or "
                    "one that was left behind, may use the port. Take another port"
                    + ("." if several else ", or --dist-url auto.")
                ) from error


def _run_in_started_process(main: Main, args: argparse.Namespace) -> None:
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // comm.get_local_size()))
    stop_requests.several = True
    try:
        with stop_requests.handled():
            try:
                _run_and_wait_for_the_culprit(main, args)
            except Exception as error:
                if stop_requests.received is None:
                    raise
                # The launcher, which was asked to end as well, waits for this end alone and takes no message.
                is_said = isinstance(error, UserError) and error.of_all and not comm.is_main_process()
                raise SystemExit(2 if is_said else tell(error)) from None
    except KeyboardInterrupt as request:
        raise SystemExit(_exit_code(request)) from None  # torch would report a fault


def _run_and_wait_for_the_culprit(main: Main, args: argparse.Namespace) -> None:
    try:
        main(args)
    except Exception as error:
        if not is_lost_connection(error):
            raise
        # The launcher says what the first process to end has raised, and ends this one meanwhile.
        with stop_requests.at_once():
            time.sleep(SECONDS_FOR_THE_CULPRIT)
        raise UserError(_LOST) from error


def _exit_code(request: KeyboardInterrupt) -> int:
    return request.exit_code if isinstance(request, Interrupted) else 130


def _run_under_torchrun(main: Main, args: argparse.Namespace) -> int | None:
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    gpus = torch.cuda.device_count()
    if gpus:
        if local_size > gpus:
            raise UserError(f"torchrun --nproc-per-node {local_size}: this machine has {gpus} GPU(s).")
        torch.cuda.set_device(local_rank)
    try:
        store, rank, size = next(torch.distributed.rendezvous("env://"))
    except (ValueError, torch.distributed.DistError) as error:
        raise UserError(
            f"RANK and WORLD_SIZE are set, as torchrun sets them, but the processes cannot be joined ({error}). Start "
            "them with torchrun, or unset the two for a run of one process."
        ) from error
    backend = "nccl" if gpus else "gloo"
    # Its timeout for NCCL is shorter than the first process may need to score a large test set.
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(local_size)
    stop_requests.several = True
    try:
        code = main(args)
    # Nothing is destroyed after an error: that can mean to wait for processes that are busy with something else.
    except KeyboardInterrupt as request:
        if rank > 0:  # the first process says it
            raise SystemExit(_exit_code(request)) from None
        raise
    except Exception as error:
        # Of the same mistake in all processes, and of what follows from one of them, the user is told once.
        if not _is_first_to_fail(store):
            raise SystemExit(2) from None
        if is_lost_connection(error):
            _tell_torchrun(_LOST)
            raise UserError(_LOST) from error
        if isinstance(error, UserError):
            _tell_torchrun(str(error))
        raise
    torch.distributed.destroy_process_group()
    return code


def _is_first_to_fail(store: torch.distributed.Store) -> bool:
    try:
        return store.add("failed processes", 1) == 1
    except RuntimeError:  # the process that keeps it has ended
        return False


def _tell_torchrun(message: str) -> None:
    """Let the report that torchrun ends with name the reason, in the form of its own error files."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        details = {"py_callstack": message, "timestamp": str(int(time.time()))}
        Path(file).write_text(json.dumps({"message": {"message": message, "extraInfo": details}}))


def _message_of(error: ProcessRaisedException, dist_url: str) -> str | None:
    """Return the message of a UserError that a process raised, None where it raised a fault of ours.

    torch hands on an error as text alone: the process's traceback, whose last lines are the message.
    """
    for kind in (UserError, BadImageError):
        _, found, message = str(error).rpartition(f"\n{kind.__module__}.{kind.__qualname__}: ")
        if found:
            return message.strip()
    last = str(error).strip().splitlines()[-1]
    if last.startswith("torch.distributed.Dist"):
        return f"The processes could not meet at --dist-url {dist_url}: {last.partition(': ')[2]}"
    return None


def _end_processes(request: KeyboardInterrupt) -> None:
    """Hand the request on to the processes of a run and wait for their end: they finish a step and write a checkpoint.

    They may know already: Ctrl-C reaches them as well, but a scheduler's signal may be to this process alone. At a
    second request, and where one has failed, for which others may wait in vain, they have some seconds left.

    Raises:
        SystemExit: with the code of one that could not: its checkpoint found no space, for one, and it has said so.
        UserError: one of them was killed.
    """
    processes = sorted(multiprocessing.active_children(), key=lambda process: process.pid or 0)  # as they were started
    _send(processes, request)
    as_asked = (None, 0, *(128 + signum for signum in SIGNALS))
    failed: dict[int, int] = {}
    try:
        while running := [process.sentinel for process in processes if process.is_alive()]:
            multiprocessing.connection.wait(running)
            codes = [process.exitcode for process in processes]
            failed = {index: code for index, code in enumerate(codes) if code is not None and code not in as_asked}
            if failed:
                _give_seconds_to_end(processes)
    except KeyboardInterrupt as second:
        _send(processes, second)
        _give_seconds_to_end(processes)
        raise
    said = [code for code in failed.values() if code > 0]
    if said:
        raise SystemExit(max(said))
    for index, code in failed.items():
        raise _killed(index, signal.Signals(-code).name)


def _give_seconds_to_end(processes: list[multiprocessing.process.BaseProcess]) -> None:
    deadline = time.monotonic() + SECONDS_TO_END
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        process.kill()
        process.join()


def _send(processes: list[multiprocessing.process.BaseProcess], request: KeyboardInterrupt) -> None:
    for process in processes:
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, _exit_code(request) - 128)
