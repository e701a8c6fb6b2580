"""Where the curves of a run are written."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter
from sam_d2.engine.wandb_writer import WandbWriter
from sam_d2.errors import UserError


def curve_writers(cfg: DictConfig, output: Path) -> list[EventWriter]:
    """Return the writers of ``metrics.json`` and TensorBoard, and of W&B where ``train.wandb.enabled`` says so.

    Args:
        cfg: of the run.
        output: run folder, with the run's ``config.yaml``, which W&B shows.

    Raises:
        UserError: W&B is asked for and is not installed or cannot begin, or is given what it does not take.
    """
    writers: list[EventWriter] = []
    options = dict(cfg.train.get("wandb") or {})  # a config.yaml of before has none
    taken = {"enabled", *inspect.signature(WandbWriter).parameters} - {"output_dir", "config"}
    unknown = set(options) - taken
    if unknown:
        raise UserError(f"train.wandb.{min(unknown)}: there is no such key. Set WANDB_{min(unknown).upper()} instead.")
    # First: where it cannot begin, no file of another makes the folder look like a run's.
    if options.pop("enabled", False):
        saved = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(output / "config.yaml")))
        writers.append(WandbWriter(output, config=saved, **options))
    return [JSONWriter(str(output / "metrics.json")), TensorboardXWriter(str(output)), *writers]
