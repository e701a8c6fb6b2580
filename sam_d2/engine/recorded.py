"""What a checkpoint says of the run that wrote it, which a file from anywhere may say otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sam_d2.engine.checkpoint import RECORD
from sam_d2.errors import UserError
from sam_d2.yaml_limits import check_yaml


def recorded_config(file: str | Path, saved: dict[str, Any]) -> DictConfig:
    """Return the config of the run, empty where the file does not say.

    Args:
        file: name or path of the checkpoint, for the message.
        saved: its content.

    Raises:
        UserError: what it says is no config.
    """
    if RECORD not in saved:
        return OmegaConf.create()
    try:
        text = saved[RECORD]["config"]
        check_yaml(text, f"{file}: the config in it")
        config = OmegaConf.create(text)
        if isinstance(config, DictConfig) and isinstance(text, str):
            return config
        reason = "it is no group of keys"
    except UserError:
        raise
    except Exception as error:  # what is no text makes both libraries stumble over anything
        reason = " ".join(str(error).split())[:200]
    raise UserError(f"{file}: the config of its run cannot be read ({reason}); take another checkpoint.")


def recorded_steps(file: str | Path, saved: dict[str, Any], config: DictConfig) -> tuple[int, int]:
    """Return how many steps the weights have taken, 0 where the file does not say, and how many were planned.

    Args:
        file: name or path of the checkpoint, for the message.
        saved: its content.
        config: of its run.

    Raises:
        UserError: it does not say numbers.
    """
    try:
        taken = saved["iteration"] + 1 if "iteration" in saved else 0
        return taken, int(OmegaConf.select(config, "train.max_iter", default=0))
    except (TypeError, ValueError, OmegaConfBaseException) as error:
        raise UserError(f"{file}: its number of steps cannot be read; take another checkpoint.") from error
