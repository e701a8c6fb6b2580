"""Which split the weights in a file were chosen by: scores on it are better than on images that chose nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sam_d2.engine.checkpoint import FINAL, RECORD
from sam_d2.engine.recorded import recorded_config, recorded_steps


def selected_on(file: str | Path, saved: dict[str, Any]) -> str:
    """Return the test dataset of the run by whose scores the weights were chosen among those of other steps.

    So are those of ``model_best.pth``, and those of a final checkpoint that early stop has written.

    Args:
        file: name or path of the checkpoint.
        saved: its content beside the weights.

    Returns:
        Registered name; empty where the weights were not chosen, or the file does not say by what.
    """
    if RECORD not in saved:
        return ""
    config = recorded_config(file, saved)
    steps, planned = recorded_steps(file, saved, config)
    stopped = (
        Path(file).stem == FINAL
        and OmegaConf.select(config, "train.early_stop.patience") is not None
        and max(steps, 1) < planned
    )
    if not stopped and "best" not in saved:
        return ""
    return str(OmegaConf.select(config, "dataloader.test.dataset.names", default=""))
