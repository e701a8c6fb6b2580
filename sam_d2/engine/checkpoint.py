"""Checkpoints that are written whole or not at all, and loaded strictly and without running code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import hooks
from sam_d2.errors import UserError

FINAL = "model_final"
BEST = "model_best"


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with atomic writes, safe reads and strict loading.

    Detectron2 warns about missing keys and drops those of another shape; a model evaluated that way is partly
    random. Here either is an error, except for what is made from the config (the pixel statistics).
    """

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name.pth`` with model, checkpointables and ``kwargs`` to a temporary file and rename it.

        The best checkpoint is not what a resumed run goes on with, so it is not tagged as the last one.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: checkpointable.state_dict() for key, checkpointable in self.checkpointables.items()})
        data.update(kwargs)
        target = Path(self.save_dir) / f"{name}.pth"
        partial = target.with_name(f".{target.name}.partial")
        try:
            with partial.open("wb") as file:
                torch.save(data, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        self.logger.info(f"Saved {target}")
        if name != BEST:
            self.tag_last_checkpoint(target.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the newest checkpoint in ``last_checkpoint``, atomically."""
        tag = Path(self.save_dir) / "last_checkpoint"
        partial = tag.with_name(".last_checkpoint.partial")
        partial.write_text(last_filename_basename)
        partial.replace(tag)

    def get_checkpoint_file(self) -> str:
        """Return the newest checkpoint of the folder, empty where none was ever written.

        Raises:
            UserError: the file that ``last_checkpoint`` names is gone.
        """
        file = super().get_checkpoint_file()
        if file and not Path(file).is_file():
            raise UserError(
                f"{file} does not exist, but {Path(self.save_dir) / 'last_checkpoint'} names it as the one to go on "
                "from. Write the name of another model_*.pth of that folder into it, or delete it to begin anew."
            )
        return file

    def _load_file(self, filename: str) -> dict[str, Any]:
        data = load_checkpoint_file(filename)
        data = data if "model" in data else {"model": data}
        state = data["model"]
        if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise UserError(f"{filename}: its 'model' is not a dict of tensors; take another file.")
        return data

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        state = checkpoint["model"]
        own = self.model.state_dict()
        problems = {
            "missing from the file": [key for key in own if key not in state],
            "in the file only": [key for key in state if key not in own],
            "of another shape": [
                f"{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}"
                for key, value in own.items()
                if key in state and state[key].shape != value.shape
            ],
        }
        found = [
            f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for kind, keys in problems.items()
            if keys
        ]
        if found:
            raise UserError(
                f"The checkpoint does not fit the model: keys {'; '.join(found)}. Take the config that it was "
                "trained with (config.yaml beside it), or another checkpoint."
            )
        return super()._load_model(checkpoint)


class PeriodicCheckpoint(hooks.PeriodicCheckpointer):
    """Detectron2's periodic checkpoints; ``max_to_keep`` counts those of the run before a resume too."""

    def before_train(self) -> None:
        """Find the checkpoints that the run has written up to where it goes on."""
        super().before_train()
        files = sorted(Path(self.checkpointer.save_dir).glob(f"{self.file_prefix}_[0-9]*.pth"))
        steps = {str(file): int(file.stem.rpartition("_")[2]) for file in files}
        self.recent_checkpoints = [file for file, step in steps.items() if step < self.trainer.start_iter]


def load_checkpoint_file(filename: str | Path, *, mmap: bool = False) -> dict[str, Any]:
    """Read a ``.pth`` with ``weights_only=True``: tensors and plain values, never code.

    Args:
        filename: of the file.
        mmap: leave the tensors' values in the file until they are looked at.

    Raises:
        UserError: the file is damaged, is no checkpoint, or holds objects that only code could rebuild.
    """
    try:
        data = torch.load(filename, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # noise in the file makes the unpickler stumble over anything: an index, a type, a name
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"{filename}: not a checkpoint that can be loaded safely ({reason}). It is damaged, truncated, or holds "
            "Python objects; take another file."
        ) from error
    if not isinstance(data, dict):
        raise UserError(f"{filename}: expected a dict of weights, found {type(data).__name__}.")
    return data
