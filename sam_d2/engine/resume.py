"""What a training was started with, kept in its checkpoints, so that ``--resume`` goes on with the same training.

A resume is exact as long as everything that decides the weights stays. What would break that is refused before a file
of the run is touched; what a user may well want to change on the way, the optimizer's settings and the length, is
allowed and said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from detectron2.config import instantiate
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from sam_d2.config import config_text
from sam_d2.data.dataset_digest import dataset_digest
from sam_d2.engine.checkpoint import FINAL, RECORD
from sam_d2.engine.checkpoint_file import load_checkpoint_file
from sam_d2.engine.distributed import choose_device, in_main_process
from sam_d2.engine.recorded import recorded_config, recorded_steps
from sam_d2.engine.whole_checkpoint import whole_checkpoint
from sam_d2.errors import UserError

_WORLD_SIZE, _IMAGES, _DATA = "world size", "training images", "sha256 of the training annotations"
_DEVICE, _TORCH = "device", "torch"
_FACTS = (_WORLD_SIZE, _IMAGES, _DATA, _DEVICE, _TORCH)
_GROUPS = ("model", "dataloader.train", "optimizer", "lr_multiplier", "train")
_REFUSED = (
    _WORLD_SIZE,
    _IMAGES,
    _DATA,
    "model.",
    "dataloader.train.",
    "optimizer._target_",
    "optimizer.params.",
    "train.seed",
    "train.accumulate",
    "train.ema.decay",
)
_FREE = ("dataloader.train.num_workers", "dataloader.train.on_bad_image", "model.score", "model.calibrate")
"""Of these groups what changes no weight, or only in a training that would have ended."""
_MEMORY = ("model.instances_per_chunk", "model.activation_checkpointing")
"""And what a run that ended for want of memory needs to go on; sums are rounded otherwise."""
_WARNED = (
    _DEVICE,
    _TORCH,
    *_MEMORY,
    "optimizer.",
    "lr_multiplier.",
    "train.amp.",
    "train.cache_embeddings",
    "train.compile",
    "train.embedding_cache.dtype",
    "train.clip_gradient_norm",
    "train.max_iter",
)
_MOST_CHARACTERS = 60
_Setting = tuple[Any, Any]
_ABSENT: _Setting = ("absent", "absent")


def run_record(cfg: DictConfig, dataset: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what a training is started with: processes, data, device and torch, and the config as YAML.

    Args:
        cfg: of the run, before a model is put into ``optimizer.params``.
        dataset: its training dataset dicts.
    """
    device = choose_device(cfg.train.device)
    return {
        _WORLD_SIZE: comm.get_world_size(),
        _IMAGES: len(dataset),
        _DATA: dataset_digest(dataset),
        _DEVICE: torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        _TORCH: str(torch.__version__),
        "config": config_text(cfg),
    }


def check_resume(cfg: DictConfig) -> list[str]:
    """Compare a training that goes on with the record in its last checkpoint; all processes take part.

    Args:
        cfg: of the run, whose folder holds a checkpoint.

    Returns:
        Warnings about changes that are allowed, and about damaged checkpoints that are passed over.

    Raises:
        UserError: the training would be another one, or the checkpoint cannot be read. Every process raises the same,
            because one that ended alone would leave the others waiting.
    """
    folder = Path(cfg.train.output_dir)
    return in_main_process(lambda: _compare(cfg, folder))


def _compare(cfg: DictConfig, folder: Path) -> list[str]:
    file, damaged = whole_checkpoint(folder)
    if file is None:
        return []
    saved = load_checkpoint_file(file, mmap=True)
    record = saved.get(RECORD)
    if record is None:
        return [
            *damaged,
            f"{file} does not say what the run was started with: it is of an earlier sam_d2 or another program. The "
            "resume is exact only if processes, dataset, seed and config are the same.",
        ]
    current = run_record(cfg, instantiate(cfg.dataloader.train.dataset))
    # An earlier sam_d2 recorded less.
    before = _recorded_settings(file, saved)
    now = _settings(
        {name: value for name, value in current.items() if name in record}, OmegaConf.create(current["config"])
    )
    pairs = {key: (before.get(key, _ABSENT), now.get(key, _ABSENT)) for key in {**before, **now}}
    changed = [key for key, (old, new) in pairs.items() if old[0] != new[0] and old[1] != new[1]]
    prompt = str(OmegaConf.select(cfg, "model.prompt"))
    if refused := [key for key in changed if _decides(key, prompt)]:
        same = not any(key.startswith("dataloader.train.dataset") for key in refused)
        edited = " The annotations have been edited; put the run's back." if _DATA in refused and same else ""
        raise UserError(
            f"--resume: {folder} cannot go on as the same training with other settings: "
            f"{_listed(refused, before, now)}.{edited} Repeat the command line of the run with as many processes (or "
            f"take --config-file {folder / 'config.yaml'}), or begin another run with --output-dir DIR; "
            f"train.init_checkpoint={file} lets it begin with these weights."
        )
    step = saved.get("iteration")
    if isinstance(step, int) and step + 1 >= cfg.train.max_iter:
        return damaged  # nothing is trained any more, which is said when it begins
    return damaged + [
        f"--resume: {_listed([key], before, now)}: from here on the run differs from one that was not interrupted."
        + (" The learning rate follows its schedule over the new number of steps." if key == "train.max_iter" else "")
        for key in changed
        if key.startswith(_WARNED)
    ]


def _decides(key: str, prompt: str) -> bool:
    """Tell whether a changed setting makes another training; of the recipes only what trains with ``prompt`` does."""
    if key.startswith("model.prompts."):
        recipe, _, part = key.removeprefix("model.prompts.").partition(".")
        return recipe == prompt and part.startswith("train")
    return key.startswith(_REFUSED) and not key.startswith((*_FREE, *_MEMORY))


def _recorded_settings(file: Path, saved: dict[str, Any]) -> dict[str, _Setting]:
    """Return the settings in a checkpoint, which may be one from anywhere.

    Raises:
        UserError: it records something else.
    """
    config = recorded_config(file, saved)
    record = saved[RECORD]
    if wrong := [name for name in _FACTS if not isinstance(record.get(name, ""), int | str)]:
        raise UserError(f"{file}: what it says of its run cannot be read ({wrong[0]}); take another checkpoint.")
    try:
        return _settings(record, config)
    except (OmegaConfBaseException, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file}: the config of its run cannot be read ({reason}); take another checkpoint.") from error


def _settings(record: dict[str, Any], cfg: DictConfig) -> dict[str, _Setting]:
    """Return facts and config values of a record by dotted key; a list is one value.

    Each stands as written and as it comes out: a value that is taken from another one, such as the loader's seed from
    the run's, changes only with that one, and written out it is the same.
    """

    def walk(written: Any, value: Any, key: str) -> Iterator[tuple[str, _Setting]]:
        if isinstance(written, dict) and written:
            for name in written:
                yield from walk(written[name], value[name], f"{key}.{name}")
        else:
            yield key, (written, value)

    settings = {name: (record[name], record[name]) for name in _FACTS if name in record}
    for group in _GROUPS:
        written, value = (OmegaConf.to_container(OmegaConf.select(cfg, group), resolve=r) for r in (False, True))
        settings.update(walk(written, value, group))
    return settings


def _listed(keys: list[str], before: dict[str, _Setting], now: dict[str, _Setting]) -> str:
    return "; ".join(f"{key} {_shown(before, key)} -> {_shown(now, key)}" for key in keys)


def _shown(settings: dict[str, _Setting], key: str) -> str:
    text = str(settings.get(key, _ABSENT)[1])
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."


def optimizer_options(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return the settings of each group of parameters; take them before a checkpoint is loaded."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def apply_options(optimizer: torch.optim.Optimizer, schedule: LRMultiplier, options: list[dict[str, Any]]) -> None:
    """Let the config's settings hold after a checkpoint has brought those of its time.

    Detectron2 goes on with the checkpoint's, so that a learning rate changed on the way has no effect. Where nothing
    was changed this changes no bit.

    Args:
        optimizer: with its state loaded.
        schedule: of this optimizer, at the step to go on from.
        options: as :func:`optimizer_options` returned them.
    """
    schedule.base_lrs = [group["initial_lr"] for group in options]
    for group, own, rate in zip(optimizer.param_groups, options, schedule.get_lr(), strict=True):
        group.update({**own, "lr": rate})


def weights_text(file: str | Path, saved: dict[str, Any]) -> str:
    """Say what the weights in a file of a run are, for a report.

    Args:
        file: its name or path.
        saved: its content beside the weights; of a file that no run wrote there is nothing to say.

    Returns:
        Such as ``model_final.pth, step 400 of 1300 (stopped early), average of the weights (EMA)``.
    """
    text = str(file)
    config = recorded_config(file, saved)
    steps, planned = recorded_steps(file, saved, config)
    if steps:
        text += f", step {steps}"
        if steps < planned:
            text += f" of {planned}" + (" (stopped early)" if Path(file).stem == FINAL else "")
    averaged = OmegaConf.select(config, "train.ema.decay") is not None
    return text + (", average of the weights (EMA)" if averaged else "")
