"""From the description of a call to its result."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from detectron2.utils.registry import _convert_target_to_string, locate

__all__ = ["dump_dataclass", "instantiate"]


def dump_dataclass(obj: Any) -> dict[str, Any]:
    """Describe a dataclass object as a dict from which :func:`instantiate` makes it again.

    Args:
        obj: an object of a dataclass. Dataclass objects in its fields, and in lists and tuples there, are
            described too; lists and tuples become lists.
    """
    assert dataclasses.is_dataclass(obj) and not isinstance(obj, type), f"{obj} is no object of a dataclass"
    description: dict[str, Any] = {"_target_": _convert_target_to_string(type(obj))}
    for field in dataclasses.fields(obj):
        value = getattr(obj, field.name)
        description[field.name] = (
            [_describe(one) for one in value] if isinstance(value, (list, tuple)) else _describe(value)
        )
    return description


def _describe(value: Any) -> Any:
    return dump_dataclass(value) if dataclasses.is_dataclass(value) else value


def instantiate(cfg: Any) -> Any:
    """Call what a config describes, the inner calls first.

    Args:
        cfg: a mapping with ``_target_`` (a callable, its dotted name, or the description of a call that
            returns one) and the keyword arguments; or a list of such; or anything else.

    Returns:
        the result of the call, or the list of results. A mapping without ``_target_`` is returned as it is,
        what it holds included; so is anything else. A config made from a dataclass gives its object.

    Raises:
        TypeError: the callable does not take these arguments. The log names the callable.
    """
    if isinstance(cfg, ListConfig):
        return ListConfig([instantiate(one) for one in cfg], flags={"allow_objects": True})
    if isinstance(cfg, list):
        return [instantiate(one) for one in cfg]
    if isinstance(cfg, DictConfig) and dataclasses.is_dataclass(cfg._metadata.object_type):
        return OmegaConf.to_object(cfg)
    if not isinstance(cfg, Mapping) or "_target_" not in cfg:
        return cfg

    arguments = {name: instantiate(value) for name, value in cfg.items()}
    target = arguments.pop("_target_")
    function = locate(target) if isinstance(target, str) else target
    assert callable(function), f"_target_ {target} is not callable"
    try:
        return function(**arguments)
    except TypeError:
        logging.getLogger(__name__).error(f"Error when instantiating {_name(target)}!")
        raise


def _name(target: Any) -> str:
    if isinstance(target, str) or not hasattr(target, "__qualname__"):
        return str(target)
    return f"{target.__module__}.{target.__qualname__}"
