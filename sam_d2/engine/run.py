"""What happens around a training: the run folder, its log, its checkpoints to go on with or to evaluate."""

from __future__ import annotations

import argparse
import inspect
import logging
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from sam_d2.cli import check_output
from sam_d2.detectron2_source import describe_detectron2
from sam_d2.engine.checkpoint import FINAL
from sam_d2.engine.checkpoint_file import remove_partial
from sam_d2.engine.console import quiet_console
from sam_d2.engine.distributed import in_main_process
from sam_d2.engine.resume import check_resume
from sam_d2.engine.test_checks import check_tests
from sam_d2.engine.weights import find_weights
from sam_d2.engine.whole_checkpoint import has_checkpoint as has_checkpoint_in
from sam_d2.engine.whole_checkpoint import whole_checkpoint
from sam_d2.errors import UserError
from sam_d2.file_lock import FileLock

logger = logging.getLogger(__name__)

LOCK = ".lock"
_PACKAGES = ("sam_d2", "detectron2", "fvcore")


def begin_run(cfg: DictConfig, args: argparse.Namespace) -> ExitStack:
    """Make the run folder, start its log and seed this process.

    Returns:
        What keeps other processes out of the folder and the log open, to be closed when the run has ended: another
        run of this process then has a log of its own.

    Raises:
        UserError: another process is at work in the folder, it holds another run and neither ``--resume`` nor
            ``--eval-only`` is given, the weights to begin with or to evaluate do not exist, ``--resume`` would go on
            with another training, a training is to be calibrated, an evaluation would end on what
            :func:`~sam_d2.engine.test_checks.check_tests` finds, or nothing can be written where the folder is to be.
    """
    folder = Path(cfg.train.output_dir)
    check_output(folder / "config.yaml", "train.output_dir")
    lock = FileLock(folder / LOCK, ", or take another folder with --output-dir DIR")
    with ExitStack() as ends:
        ends.callback(lock.release)
        _begin(cfg, args, folder, lock, ends)
        return ends.pop_all()


def _begin(cfg: DictConfig, args: argparse.Namespace, folder: Path, lock: FileLock, ends: ExitStack) -> None:
    if comm.all_gather(folder.is_dir())[0]:
        in_main_process(lock.acquire)
    # What cannot begin must not leave a folder behind, which the next attempt would then be told to keep out of.
    if args.eval_only:
        check_tests(cfg, checkpoint_to_evaluate(cfg, args), training=False)
    else:
        weights = initial_weights(cfg, args)
        if OmegaConf.select(cfg, "model.calibrate"):
            raise UserError(
                "model.calibrate=true: a training changes the weights, and a calibration belongs to finished ones. "
                "Train without it, fit it with tools/calibrate_scores.py, then evaluate with model.calibrate=true."
            )
        if not has_checkpoint(cfg, args):  # what goes on has begun, and so was checked
            check_tests(cfg, weights, training=True)
    fresh = not (args.resume or args.eval_only)
    # The main process looks, and all of them end with the same message: another would only see its peer gone.
    if comm.all_gather(fresh and _holds_a_run(folder))[0]:
        raise UserError(
            f"{folder} holds an earlier run. Add --resume to go on with it, --eval-only to score it, or "
            "--output-dir DIR to begin another."
        )
    found = comm.all_gather(has_checkpoint(cfg, args))
    if len(set(found)) > 1:
        raise UserError(
            f"--resume: {folder} is not the same folder for all processes. Take a disk that all machines share."
        )
    goes_on = found[0] and not args.eval_only
    changes = check_resume(cfg) if goes_on else []
    if comm.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
    in_main_process(lock.acquire)
    if comm.is_main_process():
        remove_partial(folder)
    ends.enter_context(_log_in(folder))
    quiet_console()
    logger.info(describe_detectron2())
    logger.info("python %s, torch %s, %s", platform.python_version(), torch.__version__, _hardware())
    if args.resume and not found[0]:
        # As in Detectron2, so that a scheduler can always give --resume.
        logger.warning("--resume: %s holds no checkpoint, so the run begins at step 0", folder)
    for change in changes:
        logger.warning(change)
    seed_all_rng(cfg.train.seed + comm.get_rank())
    # The same step gives the same bits: what makes a resumed run equal an uninterrupted one.
    ends.callback(setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    torch.backends.cudnn.benchmark = False


@contextmanager
def _log_in(folder: Path) -> Iterator[None]:
    """Let the packages log to the terminal and to the folder inside the block."""
    loggers = [logging.getLogger(name) for name in _PACKAGES]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    for name in _PACKAGES:
        # Detectron2 remembers the arguments of a call, and then adds nothing in a second run in this folder.
        inspect.unwrap(setup_logger)(str(folder), distributed_rank=comm.get_rank(), name=name)
    added = [[h for h in own.handlers if h not in had] for own, (*_, had) in zip(loggers, before, strict=True)]
    try:
        yield
    finally:
        for own, handlers, (level, propagate, _) in zip(loggers, added, before, strict=True):
            for handler in handlers:
                own.removeHandler(handler)
            own.setLevel(level)
            own.propagate = propagate


def _holds_a_run(folder: Path) -> bool:
    """Tell whether there is anything to lose: a start that failed leaves a log, a config and W&B's notes at most."""
    return folder.is_dir() and any(
        file.name not in ("config.yaml", "wandb", LOCK) and not file.name.startswith("log.txt")
        for file in folder.iterdir()
    )


def _hardware() -> str:
    processes = comm.get_world_size()
    if torch.cuda.is_available():
        hardware = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    else:
        hardware = f"no GPU, {torch.get_num_threads()} CPU threads"
    return f"{hardware}, {processes} processes" if processes > 1 else hardware


def has_checkpoint(cfg: DictConfig, args: argparse.Namespace) -> bool:
    """Tell whether ``--resume`` is given and the run folder holds a checkpoint to go on from."""
    return args.resume and has_checkpoint_in(Path(cfg.train.output_dir))


def initial_weights(cfg: DictConfig, args: argparse.Namespace) -> Path | None:
    """Return the file that a training begins with; None for random weights and for a run that goes on.

    Raises:
        UserError: ``train.init_checkpoint`` names a file that does not exist.
    """
    if has_checkpoint(cfg, args) or not cfg.train.init_checkpoint:
        return None
    return find_weights(cfg.train.init_checkpoint)


def checkpoint_to_evaluate(cfg: DictConfig, args: argparse.Namespace) -> Path:
    """Return the checkpoint that ``--eval-only`` means, and log which it is.

    What the command line names wins; then comes the run's own ``model_final.pth``; then what the config begins
    with, which is the model before training, where none was.

    Raises:
        UserError: there is none of the three, the file does not exist, or the run has not ended.
    """
    final = Path(cfg.train.output_dir) / f"{FINAL}.pth"
    named = any(option.lstrip("+").startswith("train.init_checkpoint=") for option in args.opts)
    if named and cfg.train.init_checkpoint:
        found, why = find_weights(cfg.train.init_checkpoint), "named on the command line"
    elif final.is_file():
        found, why = final, "the run's final checkpoint"
    elif newest := whole_checkpoint(final.parent)[0]:
        raise UserError(
            f"--eval-only: {final} does not exist: the run has not ended. Add train.init_checkpoint={newest} to score "
            "that, or go on with --resume."
        )
    elif cfg.train.init_checkpoint:
        found, why = find_weights(cfg.train.init_checkpoint), f"the config's; {final} does not exist"
    else:
        raise UserError(
            f"--eval-only: {final} does not exist. Train first, or name a checkpoint with train.init_checkpoint=FILE."
        )
    logger.info("Evaluating %s (%s)", found, why)
    return found
