"""Configs: load a .py or .yaml file, override it strictly, save it as pure data that can be loaded again."""

import builtins
import difflib
import functools
import io
import os
import traceback
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import sam_d2  # noqa: F401  makes detectron2 importable
from detectron2.config import LazyConfig
from sam_d2.config_overrides import apply_overrides
from sam_d2.config_targets import BIND, PARTIAL, bind, check_target, find_targets, import_path
from sam_d2.errors import UserError
from sam_d2.run_folders import require_config
from sam_d2.yaml_limits import check_yaml

__all__ = ["CONFIG_NAMES", "apply_overrides", "bind", "config_text", "load_config", "save_config"]

_CHECKOUT = Path(__file__).resolve().parents[1]
CONFIG_NAMES = ("model", "dataloader", "optimizer", "lr_multiplier", "train")


def load_config(path: str | Path) -> DictConfig:
    """Load a config file as pure data: groups, lists, numbers, strings, and ``_target_`` as import paths.

    A ``.py`` file is a program and is trusted: Detectron2's LazyConfig runs it. Classes and functions in it
    become their import paths; ``functools.partial(nn.LayerNorm, eps=1e-6)`` or a bare ``nn.LayerNorm`` as an
    argument becomes a node that calls :func:`sam_d2.config_targets.bind`. A ``.yaml`` file is data: it is
    read without tags and may call only what :data:`sam_d2.config_targets.CLASSES` lists.

    Args:
        path: a LazyConfig ``.py`` file, a ``.yaml`` as written by :func:`save_config`, or the folder of a run, which
            means its ``config.yaml``.

    Returns:
        A config with at least the groups ``model, dataloader, optimizer, lr_multiplier, train``;
        interpolations such as ``${model.image_encoder.img_size}`` are kept.

    Raises:
        UserError: the file is missing, cannot be run or parsed, lacks one of the five names, or calls
            something that a YAML file may not call.
    """
    path = Path(path)
    if path.is_dir():
        require_config(path, "config file ")
        path = path / "config.yaml"
    if not path.is_file():
        raise UserError(f"config file {path} does not exist.{_near_files(path)}")
    if path.suffix == ".py":
        raw = _run(path)
    elif path.suffix in (".yaml", ".yml"):
        raw = _read_yaml(path)
    else:
        raise UserError(f"config file {path}: expected a .py or .yaml file.")
    missing = [name for name in CONFIG_NAMES if not isinstance(raw.get(name), dict)]
    if missing:
        raise UserError(
            f"config file {path} does not define {', '.join(missing)}: a config has the five groups "
            f"{', '.join(CONFIG_NAMES)}."
        )
    cfg = _create(_to_data(raw, ""), path)
    if path.suffix != ".py":
        for key, target in find_targets(cfg):
            check_target(key, target, str(path))
        _check_detector(cfg, path)
    return cfg


def config_text(cfg: DictConfig) -> str:
    """Return a config as YAML; interpolations stay.

    Raises:
        UserError: as :func:`save_config`.
    """
    return OmegaConf.to_yaml(_create(_to_data(OmegaConf.to_container(cfg, resolve=False), ""), "to save"))


def save_config(cfg: DictConfig, path: str | Path) -> None:
    """Write a config as YAML that :func:`load_config` reads back equal; interpolations stay.

    Args:
        cfg: the config.
        path: the file; its folder is made. It is replaced as a whole or not at all.

    Raises:
        UserError: the config holds a value that YAML cannot, such as a tensor or a lambda; the message names
            its key.
    """
    path = Path(path)
    text = config_text(cfg)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_detector(cfg: DictConfig, path: Path) -> None:
    """Refuse a detector whose config is a program, which a stranger could have put beside his YAML."""
    try:
        named = OmegaConf.select(cfg, "dataloader.detector.config")
    except OmegaConfBaseException:
        return  # there is none; what needs it will say so
    if not isinstance(named, str) or Path(named).suffix != ".py":
        return
    own = _CHECKOUT / "configs"
    file = Path(named) if Path(named).exists() else _CHECKOUT / named  # as sam_d2.model_source finds it
    if not file.resolve().is_relative_to(own):
        raise UserError(
            f"config file {path}: dataloader.detector.config={named} is a program, and a YAML file may name only those "
            f"in {own}. Name the folder of the detector's run there."
        )


def _run(path: Path) -> dict[str, Any]:
    """Run a LazyConfig file and return its groups as plain containers that may hold callables."""
    importer = builtins.__import__
    try:
        return OmegaConf.to_container(LazyConfig.load(str(path)), resolve=False)  # type: ignore[return-value]
    except UserError:
        raise
    except SyntaxError as error:
        # Detectron2 wraps the error that knows the line in one that knows the file.
        cause = error.__cause__ if isinstance(error.__cause__, SyntaxError) else error
        line = "" if f"line {cause.lineno}" in error.msg else f" Line {cause.lineno}: {cause.msg}."
        raise UserError(error.msg + line) from error
    except Exception as error:
        lines = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_config(frame, path)]
        place = f"{lines[-1].filename}:{lines[-1].lineno}" if lines else str(path)
        raise UserError(f"config file {place}: {type(error).__name__}: {error}") from error
    finally:
        builtins.__import__ = importer  # Detectron2 leaves its import hook behind when a config fails


def _is_config(frame: traceback.FrameSummary, path: Path) -> bool:
    """Tell whether a traceback's frame is a line of the config or of a file beside it that it imports."""
    file = Path(frame.filename).resolve()
    return path.resolve().parent.parent in file.parents and "site-packages" not in file.parts


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        check_yaml(text, f"config file {path}")
        # Loads with PyYAML's safe loader, and reads 1e-4 as the number that it is.
        loaded = OmegaConf.load(io.StringIO(text))
        return OmegaConf.to_container(loaded, resolve=False) if isinstance(loaded, DictConfig) else {}  # type: ignore[return-value]
    except UserError:
        raise
    except Exception as error:  # what a tag does not fit makes PyYAML stumble over anything
        raise UserError(f"config file {path}: {' '.join(str(error).split())}") from error


def _create(data: dict[str, Any], path: Path | str) -> DictConfig:
    try:
        return OmegaConf.create(data, flags={"allow_objects": True})
    except OmegaConfBaseException as error:
        raise UserError(f"config {path}: {str(error).splitlines()[0]}") from error


def _to_data(value: Any, key: str) -> Any:
    """Turn a container that may hold callables into one of plain data; ``key`` is its dotted name."""
    if isinstance(value, dict):
        # The target first, as a reader of the YAML wants it.
        names = sorted(value, key=lambda name: name not in ("_target_", PARTIAL))
        node = {name: _to_data(value[name], f"{key}.{name}" if key else str(name)) for name in names}
        for name in ("_target_", PARTIAL):
            if callable(value.get(name)):
                node[name] = import_path(value[name])
        if value.get(PARTIAL) is True:  # Hydra's spelling, which Detectron2's instantiate does not know
            node |= {"_target_": BIND, PARTIAL: node["_target_"]}
        return node
    if isinstance(value, list | tuple | ListConfig):
        return [_to_data(inner, f"{key}.{index}") for index, inner in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, functools.partial) and not value.args:
        return {"_target_": BIND, PARTIAL: import_path(value.func), **_to_data(value.keywords, key)}
    if callable(value):
        return {"_target_": BIND, PARTIAL: import_path(value)}
    raise UserError(f"config key {key} holds {value!r}, which cannot be saved: write it as L(...).")


def _near_files(path: Path) -> str:
    names = [file.name for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean {path.parent / near[0]}?" if near else ""
