"""``.pth`` files: read as tensors and plain values, never as code, and written whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import is_zipfile

import torch
from torch import Tensor

from sam_d2.errors import UserError
from sam_d2.faults import told
from sam_d2.visible_text import clean
from sam_d2.zip_limits import check_unpacked

PARTIAL = ".partial"
"""Ends the name of a file that is being written."""
_WEIGHTS = ("model", "state_dict", "model_state_dict")
"""Under one of these a file holds its weights, if it holds other things beside them."""
_WRAPPED = "module."
_MOST_NAMES = 10


def load_checkpoint_file(filename: str | Path, *, mmap: bool = False) -> dict[str, Any]:
    """Read a ``.pth`` with ``weights_only=True``: tensors and plain values, never code.

    Args:
        filename: of the file.
        mmap: leave the tensors' values in the file until they are looked at; a file of torch before 1.6 is read whole.

    Raises:
        UserError: the file is damaged, is no checkpoint, or holds objects that only code could rebuild.
    """
    try:
        zipped = is_zipfile(filename)
        if zipped:
            check_unpacked(filename, Path(filename).stat().st_size)  # torch compresses nothing
        data = torch.load(filename, map_location="cpu", weights_only=True, mmap=mmap and zipped)
    except UserError:
        raise
    except Exception as error:  # noise in the file makes the unpickler stumble over anything: an index, a type, a name
        # torch's own first line would have the user load it unsafely; what it could not read comes further below.
        unpickler = re.search(r"(?:WeightsUnpickler error:\s*|Trying to load )(.+?)(?:\.? Please |\n|$)", str(error))
        reason = (unpickler[1] if unpickler else str(error).strip().split("\n")[0] or type(error).__name__)[:200]
        raise UserError(
            f"{filename}: not a checkpoint that can be loaded safely ({reason}). It is damaged, truncated, or holds "
            "Python objects; take another file."
        ) from error
    if not isinstance(data, dict):
        raise UserError(f"{filename}: expected a dict of weights, found {type(data).__name__}.")
    return data


def save_checkpoint_file(data: dict[str, Any], target: Path) -> None:
    """Write tensors and plain values to a temporary file beside ``target`` and rename it.

    Raises:
        UserError: the disk is full or fails; what was at ``target`` is still there.
    """
    with told(target):
        write_whole(target, lambda file: torch.save(data, file))


def write_whole(target: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file that is there whole or not at all, also where the power fails.

    Args:
        target: of the file.
        write: is given a file beside it, which is flushed to the disk and renamed.
    """
    partial = target.with_name(f".{target.name}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Delete what a kill within a write has left in the folder of a run that nobody else is at work on."""
    for file in folder.glob(f".*{PARTIAL}"):
        file.unlink()


def weights_in(data: dict[str, Any], filename: str | Path) -> dict[str, Tensor]:
    """Return the weights in a file's content: its ``model``, or all of it, as published files have it.

    Of other programs also its ``state_dict`` or ``model_state_dict``, and the names without the ``module.`` that the
    wrappers for several GPUs put before all of them.

    Args:
        data: as :func:`load_checkpoint_file` returns it.
        filename: for the message.

    Raises:
        UserError: they are not dense tensors by name, or a tensor is larger than the file.
    """
    key = next((key for key in _WEIGHTS if key in data), None)
    state = data if key is None else data[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        if key is not None:
            raise UserError(f"{filename}: its '{key}' is not a dict of tensors; take another file.")
        found = ", ".join(clean(name)[:40] for name in list(data)[:_MOST_NAMES])
        raise UserError(
            f"{filename}: it is not a dict of tensors, and has none as {', '.join(_WEIGHTS)} (it has {found}). Take "
            "another file, or save the weights in it alone."
        )
    size = Path(filename).stat().st_size
    for name, value in state.items():
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        # One number in a file can be seen as a tensor of any size, which the first copy of it would make.
        if not isinstance(name, str) or not plain or value.numel() * value.element_size() > size:
            raise UserError(
                f"{filename}: its {str(name)[:80]!r} is no weight that the file holds whole, as a dense tensor of "
                "numbers; take another file."
            )
    if state and all(name.startswith(_WRAPPED) for name in state):
        return {name.removeprefix(_WRAPPED): value for name, value in state.items()}
    return state
