"""Relative imports between config files."""

import builtins
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from types import CodeType, ModuleType
from typing import Any

from omegaconf import DictConfig

from detectron2.utils.file_io import PathManager

_PACKAGE = "detectron2._cfg_loader"


def as_config(value: Any) -> Any:
    """Return a dict as a DictConfig that may hold any object, anything else as it is."""
    return DictConfig(value, flags={"allow_objects": True}) if isinstance(value, dict) else value


def run_config_file(filename: str) -> dict[str, Any]:
    """Run a config file and return its names.

    Between config files a relative import means a file next to this one, with or without ``__init__.py``. The
    file is run anew for each import, so that changing what was imported has no effect on other configs.

    Raises:
        SyntaxError: the file, or one that it imports, is not Python; the message names it.
        ImportError: an imported file does not exist, or a folder is imported.
        KeyError: an imported file does not have the name, or all its names are asked for by ``*``.
    """
    code = _compile(filename)
    # the package marks a module as a config file, for the import function below
    names = {"__file__": filename, "__package__": _package_of(filename)}
    with _relative_imports_from_files():
        exec(code, names)
    return names


def _compile(filename: str) -> CodeType:
    with PathManager.open(filename) as file:
        source = file.read()
    try:
        return compile(source, filename, "exec")
    except SyntaxError as error:
        raise SyntaxError(f"Config file {filename} has a syntax error: {error}") from error


def _package_of(filename: str) -> str:
    return f"{_PACKAGE}{uuid.uuid4().hex[:4]}.{PurePath(filename).name}"


@contextmanager
def _relative_imports_from_files() -> Iterator[None]:
    """Let ``from .x import y`` in config files read files; all other imports stay as they are."""
    ordinary_import = builtins.__import__

    def config_import(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        in_config = globals is not None and (globals.get("__package__") or "").startswith(_PACKAGE)
        if level == 0 or globals is None or not in_config:
            return ordinary_import(name, globals, locals, fromlist or (), level)
        return _import_file(_find_file(globals["__file__"], name, level), fromlist or ())

    builtins.__import__ = config_import
    try:
        yield
    finally:
        builtins.__import__ = ordinary_import


def _find_file(importer: str, name: str, level: int) -> str:
    """Return the file that ``from <level dots>name import ...`` means in the file ``importer``."""
    folder_error = "A relative import in a config file can only name another config file, not a folder."
    if not name:
        raise ImportError(f"{importer}: {folder_error}")
    folder = importer
    for _ in range(level):
        folder = os.path.dirname(folder)  # noqa: PTH120  may be a URL, in which Path would drop a slash
    stem = os.path.join(folder, *name.split("."))  # noqa: PTH118
    if PathManager.isfile(stem + ".py"):
        return stem + ".py"
    if PathManager.isdir(stem):
        raise ImportError(f"{importer}: cannot import from {stem}. {folder_error}")
    raise ImportError(f"{importer}: cannot import {name}, because {stem}.py does not exist.")


def _import_file(filename: str, wanted: Sequence[str]) -> ModuleType:
    module = ModuleType(_package_of(filename))
    module.__file__ = filename
    module.__package__ = module.__name__
    exec(_compile(filename), module.__dict__)
    for name in wanted:
        if name not in module.__dict__:
            raise KeyError(f"{filename} has no name {name!r}; config files import each name by itself, never *.")
        module.__dict__[name] = as_config(module.__dict__[name])
    return module
