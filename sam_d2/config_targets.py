"""What a ``_target_`` may name: import paths of callables, and the list of those that plain data may call."""

import enum
import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from omegaconf import ListConfig
from omegaconf.errors import OmegaConfBaseException

from sam_d2.errors import UserError

PARTIAL = "_partial_"
BIND = "sam_d2.config_targets.bind"

# A config.yaml may come from a stranger, and calling any function of these packages would be as good as
# running his program: torch.load, torch.hub and detectron2.config.LazyConfig.load read code, torchvision.io
# and fvcore.common.file_io write files, and `torch.os.system` is the shell. So the parts that build models,
# data, optimizers and evaluators are listed, and the rest is refused. Making an object of a class there does
# nothing else; functions are listed on their own, because many do (a download, a file that is written), and
# methods are refused, because they may be called with any object as their own: torchvision's
# `WeightsEnum.get_state_dict` reads a pickle from whatever address that object has.
CLASSES = (
    "sam_d2.data.augmentations",
    "sam_d2.data.detection_mapper",
    "sam_d2.data.loader",
    "sam_d2.data.mapper",
    "sam_d2.engine.validation",
    "sam_d2.evaluation.coco_evaluator",
    "sam_d2.modeling",
    "detectron2.data",
    "detectron2.engine.hooks",
    "detectron2.evaluation",
    "detectron2.layers",
    "detectron2.modeling",
    "detectron2.solver",
    "detectron2.structures",
    "torch.amp",
    "torch.nn",
    "torch.optim",
    "torchvision.models",
    "torchvision.ops",
    "torchvision.transforms",
    "segment_anything.modeling",
    "fvcore.common.param_scheduler",
    "fvcore.nn",
    "fvcore.transforms",
)
"""Where classes may be named, by the module that defines them."""

FUNCTIONS = (
    BIND,
    "sam_d2.engine.optim.parameter_groups",
    "sam_d2.engine.torchvision_weights.torchvision_mask_rcnn",
    "sam_d2.modeling",
    "detectron2.data.build_batch_data_loader",
    "detectron2.data.build_detection_test_loader",
    "detectron2.data.build_detection_train_loader",
    "detectron2.data.get_detection_dataset_dicts",
    "detectron2.layers",
    "detectron2.modeling",
    "detectron2.solver",
    "torch.nn.functional",
    "torch.nn.init",
    "torchvision.models",
    "torchvision.ops",
    "fvcore.nn",
)
"""Functions that may be named, and where others may be, likewise; of a class in ``detectron2.modeling`` its static
methods too."""

REFUSED = (
    "detectron2.data.datasets",  # writes COCO files
    "sam_d2.modeling.embedding_cache",  # these two make folders and files
    "sam_d2.modeling.embedding_store",
    "torch.nn.cpp",  # takes attributes of any object by their names
    "torchvision.models.feature_extraction",  # makes a program of the names of a model's parts
)
_STATIC_METHODS = "detectron2.modeling"  # ResNet.make_default_stages
_PACKAGES = tuple(dict.fromkeys(".".join(prefix.split(".")[:2]) for prefix in (*CLASSES, *FUNCTIONS)))
"""Of which something may be named: no other module is even imported."""


def bind(_partial_: Callable | str, **arguments: Any) -> Callable:
    """Return a callable with some arguments fixed: the config's form of an argument that is a function.

    ``L(bind)(_partial_=nn.LayerNorm, eps=1e-6)`` is the form of ``functools.partial(nn.LayerNorm, eps=1e-6)``
    that can be saved as YAML and overridden (``norm_layer.eps=1e-5``). It is a node like any other for
    Detectron2's ``instantiate``, which knows no partial calls.

    Args:
        _partial_: the callable or its import path.
        **arguments: the keyword arguments to fix; with none the callable itself is returned.

    Raises:
        UserError: nothing can be imported under that path.
    """
    function = locate(_partial_) if isinstance(_partial_, str) else _partial_
    return functools.partial(function, **arguments) if arguments else function


def import_path(target: Any) -> str:
    """Return the dotted path of a class or function, ``torch.nn.Linear``: the shortest that YAML may name.

    Raises:
        UserError: there is none, as for a lambda or a function written inside a config file.
    """
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    if module and name:
        parts = module.split(".")
        paths = [".".join([*parts[:count], name]) for count in range(1, len(parts) + 1)]
        importable = [path for path in paths if _find(path) is target]
        if importable:
            return next(filter(_is_listed, importable), importable[0])
    raise UserError(
        f"the config calls {target!r}, which cannot be imported by name and so cannot be saved. "
        "Move it out of the config file into a module."
    )


def locate(path: str) -> Any:
    """Import what a dotted path names.

    Raises:
        UserError: nothing can be imported under that path.
    """
    found = _find(path)
    if found is None:
        raise UserError(f"_target_ {path!r} cannot be imported. Check its spelling, or install its package.")
    return found


def parameter_names(target: Any) -> list[str]:
    """Return the keyword parameters of a callable or of the one under an import path; none for None."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, parameter in (_signature(target) or {}).items() if parameter.kind in kinds]


def takes_any_name(target: Any) -> bool:
    """Tell whether a callable, or the one under an import path, may take keywords that its signature does not list."""
    parameters = _signature(target)
    return parameters is None or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def _signature(target: Any) -> Mapping[str, inspect.Parameter] | None:
    """Return the parameters by name; None where there is no callable, or a builtin that does not tell them."""
    if target is None:
        return None
    try:
        return inspect.signature(locate(target) if isinstance(target, str) else target).parameters
    except (TypeError, ValueError):
        return None


def find_targets(cfg: Any, where: str = "", _ancestors: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield (key, target) of every call in a config as ``instantiate`` sees it, interpolations resolved.

    Args:
        cfg: a config, a part of one, or a value.
        where: the dotted key of ``cfg``.

    Raises:
        UserError: an interpolation points at a group of keys that contains it.
    """
    if any(cfg is ancestor for ancestor in _ancestors):
        raise UserError(f"config key {where} contains itself by interpolation.")
    for key, value in _children(cfg, where):
        if key.rpartition(".")[2] in ("_target_", PARTIAL):
            yield key, value
        yield from find_targets(value, key, (*_ancestors, cfg))


def check_target(key: str, target: Any, source: str) -> None:
    """Refuse a call that plain data must not make.

    Args:
        key: dotted key of the target in the config, for the message.
        target: the target, with interpolations resolved.
        source: where it comes from: a file, or the override.

    Raises:
        UserError: it is not the name of a listed class or function.
    """
    if not isinstance(target, str):
        raise UserError(f"{source}: {key} must be the import path of a class or function, not {target!r}.")
    packages = dict.fromkeys(prefix.partition(".")[0] for prefix in CLASSES)
    if not _in(target, _PACKAGES) or any(part.startswith("_") for part in target.split(".")):
        raise UserError(
            f"{source}: {key} calls {target!r}, which YAML files and overrides may not: they may name the "
            f"parts of {', '.join(packages)} that build models, data, optimizers and evaluators. If you trust it, "
            "name it in a .py config."
        )
    if not _is_listed(target):
        raise UserError(
            f"{source}: {key} calls {target!r}, which is no class or function of that package that builds a part of a "
            "model, of data, an optimizer or an evaluator. If you trust it, name it in a .py config."
        )


def _is_listed(path: str) -> bool:
    """Tell whether plain data may call what a path names."""
    found = _find(path) if _in(path, _PACKAGES) else None
    # By where it is defined: a module also holds what it imported, as in `torch.nn.modules.module.torch.load`.
    name = getattr(found, "__qualname__", "")
    home = f"{getattr(found, '__module__', None)}.{name}"
    if _in(home, REFUSED):
        return False
    if inspect.isclass(found):  # calling an Enum may make new classes
        return _in(home, CLASSES) and not issubclass(found, enum.Enum)
    if not inspect.isfunction(found) or not (path in FUNCTIONS or _in(home, FUNCTIONS)):
        return False
    return "." not in name or (_in(home, (_STATIC_METHODS,)) and _is_static(path))


def _is_static(path: str) -> bool:
    """Tell whether a path names a static method of a class."""
    owner, _, name = path.rpartition(".")
    return isinstance(inspect.getattr_static(_find(owner), name, None), staticmethod)


def _in(path: str, prefixes: Iterable[str]) -> bool:
    return any(path == prefix or path.startswith(prefix + ".") for prefix in prefixes)


def _children(cfg: Any, where: str) -> Iterator[tuple[str, Any]]:
    keys: Sequence[Any] = ()
    if isinstance(cfg, Mapping):
        keys = list(cfg)
    elif isinstance(cfg, list | tuple | ListConfig):
        keys = range(len(cfg))
    for name in keys:
        key = f"{where}.{name}" if where else str(name)
        try:
            yield key, cfg[name]
        except OmegaConfBaseException:
            continue  # `???` and dangling interpolations: what has no value calls nothing


def _find(path: str) -> Any:
    """Return the object under a dotted path, None where there is none."""
    parts = path.split(".")
    for count in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for part in parts[count:]:
            found = getattr(found, part, None)
        return found
    return None
