"""Training the tiny SAM on the ice-wedge tiles with the loader, and on the same batches in memory.

The tiles (128 px on the canvas, 47 instances on average, up to 313) are read, augmented and mapped by two workers, as
the config has it, or in the training process; in the other case all batches are there before the clock starts. Model,
batches and losses are the same. The folder that SAM_D2_REAL_DATA names holds the tiles, as ``iwp``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import sam_d2  # noqa: F401  makes detectron2 importable
from benchmarks import Benchmark, Measured, Ratio, measure
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage
from sam_d2.config import apply_overrides, load_config
from sam_d2.data import resolve_dataset
from sam_d2.engine.trainer import Trainer
from sam_d2.errors import UserError

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "sam_tiny.py"
DATA = "SAM_D2_REAL_DATA"
STEPS = 24
WARM_UP = 2


def peer() -> None:
    """Explain what is missing where the tiles are not there."""
    folder = os.environ.get(DATA, "")
    if not (Path(folder) / "iwp" / "dataset_train.json").is_file() or not folder:
        raise UserError(f"{DATA}={folder!r}: name the folder that has iwp/dataset_train.json and its images.")


def training(workers: int, in_memory: bool) -> Measured:
    cfg = apply_overrides(load_config(CONFIG), [f"dataloader.train.num_workers={workers}"])
    cfg.dataloader.train.dataset.names = resolve_dataset(str(Path(os.environ[DATA]) / "iwp")).train
    batches: Iterable[list[dict[str, Any]]] = instantiate(cfg.dataloader.train)
    if in_memory:
        batches = list(islice(batches, WARM_UP + STEPS))
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    trainer = Trainer(model, batches, instantiate(cfg.optimizer))
    with EventStorage() as trainer.storage:
        trainer.iter = 0
        trainer.before_train()
        _run(trainer, WARM_UP)
        _, figures = measure(partial(_run, trainer, STEPS))
        losses = [value for value, _ in trainer.storage.history("total_loss").values()]
    figures["images_per_second"] = STEPS * cfg.dataloader.train.total_batch_size / figures["seconds"]
    return Measured(figures, losses)


def _run(trainer: Trainer, steps: int) -> None:
    for _ in range(steps):
        trainer.run_step()
        trainer.after_step()
        trainer.iter += 1


IN_MEMORY, WORKERS, NO_WORKERS = "batches in memory", "loader, 2 workers", "loader, no worker"
BENCHMARK = Benchmark(
    cases={
        IN_MEMORY: partial(training, 0, True),
        WORKERS: partial(training, 2, False),
        NO_WORKERS: partial(training, 0, False),
    },
    ratios=(
        Ratio("seconds", WORKERS, IN_MEMORY, at_least=0.8),
        Ratio("seconds", NO_WORKERS, IN_MEMORY),
        Ratio("cpu_seconds", NO_WORKERS, IN_MEMORY),
    ),
    same_answers=((IN_MEMORY, WORKERS, NO_WORKERS),),
    tolerance=1e-6,
    peer=peer,
)
