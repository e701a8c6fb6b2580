"""Where the curves of a run are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter
from sam_d2.engine.wandb_writer import WandbWriter


def curve_writers(cfg: DictConfig, output: Path) -> list[EventWriter]:
    """Return the writers of ``metrics.json`` and TensorBoard, and of W&B where ``train.wandb.enabled`` says so.

    Args:
        cfg: of the run.
        output: run folder, with the run's ``config.yaml``, which W&B shows.

    Raises:
        UserError: W&B is asked for and is not installed or cannot begin.
    """
    writers: list[EventWriter] = []
    options = dict(cfg.train.wandb)
    if options.pop("enabled"):  # first: where it cannot begin, no file of another makes the folder look like a run's
        saved = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(output / "config.yaml")))
        writers.append(WandbWriter(output, config=saved, **options))
    return [JSONWriter(str(output / "metrics.json")), TensorboardXWriter(str(output)), *writers]
