"""Where the curves of a run are written."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from detectron2.utils.events import EventStorage, EventWriter, JSONWriter, TensorboardXWriter, get_event_storage
from sam_d2.engine.wandb_writer import WandbWriter
from sam_d2.errors import UserError


class FiniteJSONWriter(JSONWriter):
    """Detectron2's, without the values that are not finite: NaN and Infinity are not JSON."""

    def write(self) -> None:
        """Write the finite scalars of iterations later than the last written one."""
        storage = get_event_storage()
        with EventStorage(storage.iter) as finite:
            finite.iter = storage.iter
            for name, (value, iteration) in storage.latest_with_smoothing_hint(self._window_size).items():
                if math.isfinite(value):
                    finite.iter = iteration
                    finite.put_scalar(name, value, smoothing_hint=False)
            finite.iter = storage.iter
            super().write()


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
    return [FiniteJSONWriter(str(output / "metrics.json")), TensorboardXWriter(str(output)), *writers]
