"""Calls that are described now and made later, and the files that hold such descriptions."""

import contextlib
import copy
import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import cloudpickle
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf, SCMode

from detectron2.config.config_import import as_config, run_config_file
from detectron2.utils.file_io import PathManager
from detectron2.utils.registry import _convert_target_to_string

__all__ = ["LazyCall", "LazyConfig"]


class LazyCall:
    """A callable whose call gives a config node instead of a result.

    ``LazyCall(nn.Linear)(in_features=4, out_features=2)`` is a DictConfig with these two keys and
    ``_target_``. It can be changed, saved and loaded; ``instantiate`` makes the call.
    """

    def __init__(self, target: Any) -> None:
        """Take what shall be called.

        Args:
            target: a callable, its dotted name, or a config node that gives a callable.

        Raises:
            TypeError: it is none of these.
        """
        if not (callable(target) or isinstance(target, (str, Mapping))):
            raise TypeError(f"the target of LazyCall must be a callable, its name, or a config; got {target!r}")
        self._target = target

    def __call__(self, **kwargs: Any) -> DictConfig:
        """Return the node; only keyword arguments can be described."""
        target = self._target
        if dataclasses.is_dataclass(target):
            # omegaconf would take the class for a schema (its issue 784)
            target = _convert_target_to_string(target)
        call: dict[Any, Any] = {**kwargs, "_target_": target}
        return DictConfig(call, flags={"allow_objects": True})


class LazyConfig:
    """Loading, changing and saving of configs."""

    @staticmethod
    def load_rel(filename: str, keys: str | tuple[str, ...] | None = None) -> Any:
        """Load a config by its path relative to the file in which this call stands.

        Args:
            filename: path of the config.
            keys: as for :meth:`load`.
        """
        caller = sys._getframe(1).f_code.co_filename
        assert caller != "<string>", "load_rel needs a caller that stands in a file"
        # may be a URL, in which Path would drop a slash
        return LazyConfig.load(os.path.join(os.path.dirname(caller), filename), keys)  # noqa: PTH118, PTH120

    @staticmethod
    def load(filename: str, keys: str | tuple[str, ...] | None = None) -> Any:
        """Load a config.

        Args:
            filename: a ``.py`` file, which is run, or a ``.yaml`` or ``.yml`` file, which may name any Python
                object: load only files that you trust.
            keys: name or names in the file that are wanted.

        Returns:
            the value, or the tuple of values, of ``keys``. Without keys a DictConfig of all names that hold a
            config, a dict among them, and do not begin with an underscore. Dicts become DictConfigs.

        Raises:
            ValueError: the name has another ending.
            KeyError: a key is not in the file.
        """
        filename = filename.replace("/./", "/")
        suffix = PurePath(filename).suffix
        if suffix == ".py":
            names: Any = run_config_file(filename)
        elif suffix in (".yaml", ".yml"):
            with PathManager.open(filename) as file:
                names = OmegaConf.create(yaml.unsafe_load(file), flags={"allow_objects": True})
        else:
            raise ValueError(f"Config file {filename} is neither a .py nor a .yaml file.")

        if isinstance(keys, str):
            return as_config(names[keys])
        if keys is not None:
            return tuple(as_config(names[key]) for key in keys)
        if suffix != ".py":
            return names
        configs = {
            name: as_config(value)
            for name, value in names.items()
            if isinstance(value, (DictConfig, ListConfig, dict)) and not name.startswith("_")
        }
        return as_config(configs)

    @staticmethod
    def save(cfg: Any, filename: str) -> None:
        """Save a config as YAML that :meth:`load` reads; interpolations stay as they are.

        Where it holds an object that YAML cannot, the file is only for reading, and the config is written by
        cloudpickle to ``filename + ".pkl"`` as well. Neither failure is raised; the log tells.

        Args:
            cfg: the config.
            filename: the file.

        Raises:
            omegaconf.errors.OmegaConfBaseException: a value is missing ("???"), or an interpolation has no end.
        """
        logger = logging.getLogger(__name__)
        cfg = _with_named_targets(cfg)
        try:
            content = OmegaConf.to_container(cfg, resolve=False, structured_config_mode=SCMode.INSTANTIATE)
            text = yaml.dump(content, default_flow_style=None, allow_unicode=True, width=9999)
            with PathManager.open(filename, "w") as file:
                file.write(text)
        except Exception:
            logger.exception(f"The config could not be written as YAML to {filename}:")
        else:
            try:
                yaml.unsafe_load(text)
                return
            except Exception:
                logger.warning(f"{filename} is for reading only: the config holds objects that YAML cannot.")
        _save_pickle(cfg, filename + ".pkl", logger)

    @staticmethod
    def apply_overrides(cfg: Any, overrides: Sequence[str]) -> Any:
        """Change a config in place.

        Args:
            cfg: the config.
            overrides: ``key=value`` each, in the grammar of hydra's overrides.

        Returns:
            the config.

        Raises:
            KeyError: a key goes through a value that is not a config.
            NotImplementedError: a deletion (``~key``).
        """
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            if override.is_delete():
                raise NotImplementedError(f"{override.input_line}: an override cannot delete a key.")
            _update(cfg, override.key_or_group, override.value())
        return cfg


def _update(cfg: Any, key: str, value: Any) -> None:
    parts = key.split(".")
    for length in range(1, len(parts)):
        prefix = ".".join(parts[:length])
        node = OmegaConf.select(cfg, prefix, default=None)
        if node is None:
            break
        if not OmegaConf.is_config(node):
            raise KeyError(f"{key} cannot be set: {prefix} is {type(node)}, not a config.")
    OmegaConf.update(cfg, key, value, merge=True)


def _with_named_targets(cfg: Any) -> Any:
    """Return a copy in which targets are dotted names, or the config itself where it cannot be copied."""
    try:
        copied = copy.deepcopy(cfg)
    except Exception:
        return cfg
    _visit_nodes(copied, _name_target)
    return copied


def _visit_nodes(cfg: Any, visit: Callable[[DictConfig], None]) -> None:
    if isinstance(cfg, DictConfig):
        visit(cfg)
        # values() resolves them: an interpolation without its end is an error, as in Detectron2
        children = list(cfg.values())
    elif isinstance(cfg, ListConfig):
        children = list(cfg)
    else:
        return
    for child in children:
        _visit_nodes(child, visit)


def _name_target(node: DictConfig) -> None:
    if "_target_" in node and callable(node._target_):
        # an object without a name, such as a partial, stays
        with contextlib.suppress(AttributeError):
            node._target_ = _convert_target_to_string(node._target_)


def _save_pickle(cfg: Any, filename: str, logger: logging.Logger) -> None:
    try:
        with PathManager.open(filename, "wb") as file:
            cloudpickle.dump(cfg, file)
    except Exception:
        logger.exception(f"The config could not be pickled to {filename}:")
    else:
        logger.warning(f"The config is saved by cloudpickle at {filename}.")
