"""Which model a config file, a run's folder or a config and a file of weights mean."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from sam_d2.config import load_config
from sam_d2.engine.checkpoint import FINAL
from sam_d2.engine.weights import find_weights
from sam_d2.errors import UserError
from sam_d2.run_folders import require_config, require_run

_CHECKOUT = Path(__file__).resolve().parents[1]


def find_model(
    config: str | Path | DictConfig, weights: str | Path | None = None, *, option: str = "weights", named: str = ""
) -> tuple[DictConfig, Path]:
    """Return the config and the file of weights of a model.

    Args:
        config: a config, a config file, or the folder of a run, which means its ``config.yaml``; a relative path may
            also be of the checkout, such as ``configs/mask_rcnn_R_50_FPN_3x.py``.
        weights: a path, or a file name in a checkpoints folder. By default the ``model_final.pth`` beside a run's
            ``config.yaml``, else what ``train.init_checkpoint`` names.
        option: what names the weights, for the message.
        named: what stands before the config in a message, such as ``--detector ``.

    Raises:
        UserError: config or weights do not exist, or the config names none.
    """
    where = ""
    if not isinstance(config, DictConfig):
        where = f"{named}{config}: " if named else ""
        path = Path(config)
        if not path.exists() and not path.is_absolute() and (_CHECKOUT / path).exists():
            path = _CHECKOUT / path
        run = path.is_dir()
        if run:
            require_config(path, named)
        elif named or not path.suffix:
            require_run(path, named, others="config file")
        path = path / "config.yaml" if run else path
        final = path.with_name(f"{FINAL}.pth")
        if not weights and (run or (path.suffix != ".py" and final.is_file())):
            weights = final
        config = load_config(path)
    file = str(weights or config.train.init_checkpoint)
    if not file:
        raise UserError(f"The config names no weights to begin with. Name a checkpoint: {option}=FILE.")
    try:
        return config, find_weights(file)
    except UserError as error:
        raise UserError(f"{where}{error}") from error
