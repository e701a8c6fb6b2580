"""What nearly every training script does the same way."""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.config import LazyConfig
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

__all__ = ["create_ddp_model", "default_argument_parser", "default_setup", "default_writers"]


def create_ddp_model(model: nn.Module, *, fp16_compression: bool = False, **kwargs: Any) -> nn.Module:
    """Wrap a model in DistributedDataParallel where there is more than one process.

    Args:
        model: returned as it is in a single process.
        fp16_compression: send gradients as half precision.
        kwargs: further arguments of DistributedDataParallel; ``device_ids`` defaults to the local rank.
    """
    if comm.get_world_size() == 1:
        return model
    kwargs.setdefault("device_ids", [comm.get_local_rank()])
    ddp = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        ddp.register_comm_hook(state=None, hook=default_hooks.fp16_compress_hook)
    return ddp


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """Return a parser of the options that training scripts share.

    Args:
        epilog: ends the help text; a few example calls where None.
    """
    script = sys.argv[0]
    examples = f"""
examples:
  {script} --config-file config.py --num-gpus 8
  {script} --config-file config.py train.max_iter=1000 optimizer.lr=0.001
  {script} --config-file config.py --num-machines 2 --machine-rank 0 --dist-url URL
"""
    parser = argparse.ArgumentParser(epilog=epilog or examples, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--config-file", metavar="FILE", default="", help="config file to load")
    option("--resume", action="store_true", help="go on from the last checkpoint of the output directory")
    option("--eval-only", action="store_true", help="evaluate and do not train")
    option("--num-gpus", type=int, default=1, help="processes per machine, one per GPU")
    option("--num-machines", type=int, default=1, help="machines that take part")
    option("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    # The same port for the same user each time: processes left over from an earlier run are noticed at once,
    # because they hold it.
    user = os.getuid() if sys.platform != "win32" else 1
    port = 2**15 + 2**14 + hash(user) % 2**14
    option("--dist-url", default=f"tcp://127.0.0.1:{port}", help="where the processes meet")
    option("opts", nargs=argparse.REMAINDER, default=None, help="changes to the config: key.subkey=value ...")
    return parser


def default_setup(cfg: DictConfig, args: argparse.Namespace) -> None:
    """Start a job: logs, environment report, copy of the config, seed, cuDNN and float32 settings.

    Keys read: ``train.output_dir`` (or ``output_dir``; ``log.txt`` and ``config.yaml`` are written there),
    ``train.seed`` (negative draws one; otherwise each rank gets seed + rank), ``train.cudnn_benchmark`` (not
    when only evaluating), ``train.float32_precision`` (as ``torch.set_float32_matmul_precision`` takes it).

    Args:
        cfg: a lazy config.
        args: the command line, as :func:`default_argument_parser` reads it.
    """
    rank = comm.get_rank()
    output_dir = _first_key(cfg, "OUTPUT_DIR", "output_dir", "train.output_dir")
    writes = bool(output_dir) and comm.is_main_process()
    if writes:
        PathManager.mkdirs(output_dir)
    setup_logger(output_dir, distributed_rank=rank, name="fvcore")
    logger = setup_logger(output_dir, distributed_rank=rank)

    logger.info(f"Rank of current process: {rank}. World size: {comm.get_world_size()}")
    logger.info("Environment info:\n" + collect_env_info())
    logger.info(f"Command line arguments: {args}")
    config_file = getattr(args, "config_file", "")
    if config_file:
        with PathManager.open(config_file, "r") as stream:
            logger.info(f"Contents of args.config_file={config_file}:\n{stream.read()}")
    if writes:
        copy = str(Path(output_dir) / "config.yaml")
        LazyConfig.save(cfg, copy)
        logger.info(f"Full config saved to {copy}")

    seed = _first_key(cfg, "SEED", "train.seed", default=-1)
    seed_all_rng(None if seed < 0 else seed + rank)
    if not getattr(args, "eval_only", False):
        # Choosing kernels anew for every size costs more than it saves on the few batches of an evaluation.
        torch.backends.cudnn.benchmark = _first_key(cfg, "CUDNN_BENCHMARK", "train.cudnn_benchmark", default=False)
    precision = _first_key(cfg, "FLOAT32_PRECISION", "train.float32_precision", default="")
    if precision != "":
        _set_float32_precision(precision, logger)


def _first_key(cfg: DictConfig, *keys: str, default: Any = None) -> Any:
    """Return the value of the first of the dotted keys that the config has."""
    absent = object()
    for key in keys:
        value = OmegaConf.select(cfg, key, default=absent)
        if value is not absent:
            return value
    return default


def _set_float32_precision(precision: str, logger: logging.Logger) -> None:
    """Set how exactly CUDA multiplies float32; nothing to set on a CPU."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = precision != "highest"
    logger.info(
        f"float32 precision {precision} asked for; torch now has {torch.get_float32_matmul_precision()}, "
        f"TF32 in convolutions: {torch.backends.cudnn.allow_tf32}"
    )


def default_writers(output_dir: str, max_iter: int | None = None) -> list[EventWriter]:
    """Return the usual writers: progress line in the log, ``metrics.json``, TensorBoard events.

    Args:
        output_dir: made where it is missing; the files are written here.
        max_iter: last iteration, for the time left in the progress line.
    """
    PathManager.mkdirs(output_dir)
    return [
        CommonMetricPrinter(max_iter),
        JSONWriter(str(Path(output_dir) / "metrics.json")),
        TensorboardXWriter(output_dir),
    ]
