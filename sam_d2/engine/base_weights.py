"""Small checkpoints: only what differs from a base file, and the name and sha256 of that file for the rest."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sam_d2.engine.checkpoint_file import load_checkpoint_file, weights_in
from sam_d2.engine.weights import PUBLISHED, checkpoint_folders, sha256_of
from sam_d2.errors import UserError

ENTRY = "base"
"""Key of a checkpoint that names the base: ``{"file", "sha256", "size", "weights"}``, the last the names left out."""


@dataclass(frozen=True)
class BaseWeights:
    """A file of weights that a fine-tuning began with, and that its checkpoints need not repeat.

    Attributes:
        path: of the file.
        sha256: of its content.
        state: its weights; their values stay in the file until they are looked at.
        seen: device, inode, size and time of the file when it was hashed.
    """

    path: Path
    sha256: str
    state: dict[str, Tensor]
    seen: tuple[int, int, int, int]

    @property
    def intact(self) -> bool:
        """Whether the file is still the one that was hashed."""
        return self.path.is_file() and _identity(self.path) == self.seen

    def leave_out(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Divide a model's weights.

        Args:
            state: the whole of the model, on any device.

        Returns:
            What differs from the base in a single bit, on the CPU; and the checkpoint's entry for the rest.
        """
        changed, same = {}, []
        for name, value in state.items():
            value = value.detach().cpu()
            if name in self.state and _same_bits(value, self.state[name]):
                same.append(name)
            else:
                changed[name] = value
        return changed, {"file": self.path.name, "sha256": self.sha256, "size": self.seen[2], "weights": same}


def base_to_begin_with(path: Path, state: dict[str, Tensor]) -> BaseWeights | None:
    """Return a file as base if the checkpoints that name it can be loaded later; None otherwise.

    That is so for a file in a checkpoints folder, and for a published one wherever it lies.

    Args:
        path: of the file.
        state: the weights in it.
    """
    path = path.resolve()
    in_folder = path.parent in checkpoint_folders()
    if not in_folder and path.stat().st_size not in {
        published.size for published in PUBLISHED.values() if published.sha256
    }:
        return None
    seen, sha256 = _identity(path), sha256_of(path)
    if not in_folder and _published_name(sha256) is None:
        return None
    return BaseWeights(path, sha256, state, seen)


def whole_weights(data: dict[str, Any], checkpoint: Path) -> tuple[dict[str, Tensor], BaseWeights]:
    """Return the whole model of a small checkpoint, and its base.

    Args:
        data: content of the checkpoint, with an entry :data:`ENTRY`.
        checkpoint: the file that it is of.

    Raises:
        UserError: the base is not found, is another file, or lacks what the checkpoint left to it.
    """
    entry = data[ENTRY]
    kinds = {"file": str, "sha256": str, "size": int, "weights": list}
    sound = isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in kinds.items())
    if not sound or not all(isinstance(name, str) for name in entry["weights"]):
        raise UserError(f"{checkpoint}: its '{ENTRY}' does not name a file of weights; take another checkpoint.")
    path = _find_base(entry, checkpoint)
    base = BaseWeights(path, entry["sha256"], weights_in(load_checkpoint_file(path, mmap=True), path), _identity(path))
    missing = [name for name in entry["weights"] if name not in base.state]
    if missing:
        raise UserError(f"{checkpoint}: its base {path} lacks {len(missing)} of the weights left to it ({missing[0]}).")
    return {**{name: base.state[name] for name in entry["weights"]}, **weights_in(data, checkpoint)}, base


def _find_base(entry: dict[str, Any], checkpoint: Path) -> Path:
    """Look beside the checkpoint and in the checkpoints folders: by name, and under another name by size."""
    name, sha256 = Path(entry["file"]).name, entry["sha256"]
    folders = list(dict.fromkeys([checkpoint.resolve().parent, *checkpoint_folders()]))
    others = [file for file in _files(folders) if file.name != name and file.stat().st_size == entry["size"]]
    wrong = []
    for file in [*(folder / name for folder in folders), *others]:
        if not os.path.isfile(file):  # noqa: PTH113  False too of a name that no file can have
            continue
        found = sha256_of(file)
        if found == sha256:
            return file
        if file.name == name:
            wrong.append(f"{file} is another file (sha256 {found})")
    short = _published_name(sha256)
    remedy = f"python tools/download_checkpoint.py {short} downloads it" if short else "Copy it there"
    raise UserError(
        f"{checkpoint} holds only what differs from {name} (sha256 {sha256}). "
        f"{'; '.join(wrong) or 'That file is not found'} (looked in {', '.join(map(str, folders))}). {remedy}."
    )


def _identity(path: Path) -> tuple[int, int, int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _files(folders: Iterable[Path]) -> list[Path]:
    return [Path(file.path) for folder in folders if folder.is_dir() for file in os.scandir(folder) if file.is_file()]


def _published_name(sha256: str) -> str | None:
    return next((published.name for published in PUBLISHED.values() if published.sha256 == sha256), None)


def _same_bits(first: Tensor, second: Tensor) -> bool:
    """Compare bits rather than numbers: -0 is not 0, and one NaN is itself."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (first, second)))
