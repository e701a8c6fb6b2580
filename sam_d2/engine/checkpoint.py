"""Checkpoints that are written whole or not at all, and loaded strictly and without running code."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.engine import hooks
from sam_d2.engine.array_pickle import check_array_pickle
from sam_d2.engine.base_weights import ENTRY, BaseWeights, base_to_begin_with, whole_weights
from sam_d2.engine.checkpoint_file import load_checkpoint_file, save_checkpoint_file, weights_in, write_whole
from sam_d2.engine.distributed import in_main_process
from sam_d2.engine.fit_weights import fit_weights
from sam_d2.engine.saved_state import load_state
from sam_d2.engine.whole_checkpoint import (
    TAG,
    has_checkpoint,
    last_checkpoint,
    step_of,
    tagged_checkpoint,
    whole_checkpoint,
)
from sam_d2.errors import UserError
from sam_d2.modeling.canvas import resample_positions
from sam_d2.modeling.lora import lora_keys
from sam_d2.modeling.weights_record import WeightsRecord

__all__ = ["BEST", "FINAL", "RECORD", "Checkpointer", "PeriodicCheckpoint", "load_checkpoint_file"]

FINAL = "model_final"
BEST = "model_best"
RECORD = "run"
"""Name of what the run was started with, among a checkpoint's content."""
_FROZEN = (
    "*** Its norms are frozen and never learned: they change nothing, and a training with them from random weights "
    "seldom gets anywhere. Begin with weights (train.init_checkpoint=FILE), or let the norms learn: model.norm=BN for "
    "torchvision's models, norm='BN' of the backbone's stem and stages for Detectron2's ***"
)


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with atomic writes, safe reads and strict loading.

    Detectron2 warns about missing keys and drops those of another shape; a model evaluated that way is partly
    random. Here either is an error, except for what is made from the config (the pixel statistics), for position
    embeddings of another canvas, which are resampled (:mod:`sam_d2.modeling.canvas`), and for what a training may
    begin with (:mod:`sam_d2.engine.fit_weights`): an ImageNet backbone, or a detector of other classes.

    Files are ``.pth``, and Detectron2's ``.pkl`` and pycls' ``.pyth`` with the names matched as Detectron2 does.

    Where a training begins with a base file, checkpoints hold what differs from it
    (:mod:`sam_d2.engine.base_weights`). The final and the best one are weights to use: what a training needs to go on
    (``checkpointables``) is in those with a number alone, and one of them is tagged as the last one.
    """

    base: BaseWeights | None = None
    record: dict[str, Any] | None = None
    """What the run was started with, kept in every file (:mod:`sam_d2.engine.resume`)."""
    _begins = False
    """Whether what is being loaded begins a training."""
    _file = ""

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name.pth`` with model, checkpointables and ``kwargs`` to a temporary file and rename it.

        Before the final checkpoint, which holds no checkpointables, comes one with a number that does, unless the
        last step has been saved already.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        weights_only = name in (FINAL, BEST) and bool(self.checkpointables)
        if name == FINAL and weights_only and "iteration" in kwargs:
            numbered = f"model_{kwargs['iteration']:07d}"
            tagged = tagged_checkpoint(Path(self.save_dir))
            if tagged is None or tagged.stem != numbered:
                self.save(numbered, **kwargs)
        data = self._model_data()
        if self.record is not None:
            data[RECORD] = self.record
        if not weights_only:
            data.update({key: checkpointable.state_dict() for key, checkpointable in self.checkpointables.items()})
        data.update(kwargs)
        target = Path(self.save_dir) / f"{name}.pth"
        save_checkpoint_file(data, target)
        self.logger.info(f"Saved {target}")
        if name != BEST and not weights_only:
            self.tag_last_checkpoint(target.name)

    def _model_data(self) -> dict[str, Any]:
        state = self.model.state_dict()
        if self.base is not None and not self.base.intact:
            self.logger.warning(f"{self.base.path} has changed or is gone: from now on checkpoints hold all weights")
            self.base = None
        record = {} if self._weights_record is None else self._weights_record.entries()
        if self.base is None:
            return {"model": state, **record}
        changed, entry = self.base.leave_out(state)
        return {"model": changed, ENTRY: entry, **record}

    @property
    def _weights_record(self) -> WeightsRecord | None:
        return getattr(self.model, "weights_record", None)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the newest checkpoint in ``last_checkpoint``, atomically."""
        write_whole(Path(self.save_dir) / TAG, lambda file: file.write(last_filename_basename.encode()))

    def has_checkpoint(self) -> bool:
        """Tell whether the folder has a checkpoint, as :func:`~sam_d2.engine.whole_checkpoint.has_checkpoint`."""
        return bool(self.save_dir) and has_checkpoint(Path(self.save_dir))

    def get_checkpoint_file(self) -> str:
        """Return the newest checkpoint of the folder, as :func:`last_checkpoint`; empty where there is none."""
        return str(last_checkpoint(Path(self.save_dir)) or "")

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Go on from the newest whole checkpoint of the folder, or load the weights of ``path`` alone.

        All processes take part, and load what the first one has found; ``last_checkpoint`` names it from then on.

        Raises:
            UserError: no checkpoint is whole, or it does not hold what a training needs to go on.
        """
        file = self._file_to_go_on_from() if resume else ""
        missing = set(self.checkpointables) - set(load_checkpoint_file(file, mmap=True)) if file else set()
        if missing:
            raise UserError(
                f"{file} holds weights, but no state of the {', '.join(sorted(missing))} to go on from. Write the name "
                f"of a model_*.pth with a number into {Path(self.save_dir) / TAG}."
            )
        self._begins = not file
        try:
            return self.load(file) if file else self.load(path, checkpointables=[])
        finally:
            self._begins = False

    def _file_to_go_on_from(self) -> str:
        return str(in_main_process(self._whole_and_tagged) or "")

    def _whole_and_tagged(self) -> Path | None:
        if not self.has_checkpoint():
            return None
        folder = Path(self.save_dir)
        file, _ = whole_checkpoint(folder)
        # Where one was passed over, its step is still to be saved, and who asks for the last checkpoint means this one.
        if file is not None and file != tagged_checkpoint(folder) and self.save_to_disk:
            try:
                self.tag_last_checkpoint(file.name)
            except OSError as error:
                raise UserError(
                    f"{folder / TAG}: the checkpoint to go on from cannot be named in it ({error})."
                ) from error
        return file

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load as Detectron2 does; the model learns what the file says of its weights.

        Raises:
            UserError: the weights do not fit the model, or were trained to be asked otherwise than it asks; or what
                else is to be loaded is no state to go on from.
        """
        if not path:
            self.logger.info("The model begins with random weights: train.init_checkpoint is empty")
            if any(type(module).__name__ == "FrozenBatchNorm2d" for module in self.model.modules()):
                self.logger.warning(_FROZEN)
        try:
            rest = super().load(path, [])
        finally:
            self._parsed_url_during_load = None  # Detectron2's own would refuse any later file after a bad one
        for name in self.checkpointables if checkpointables is None else checkpointables:
            if name in rest:
                load_state(path, name, self.checkpointables[name], rest.pop(name))
        if path and self._weights_record is not None:
            self._weights_record.came_from(str(path), rest, begins=self._begins)
        return rest

    def _load_file(self, filename: str) -> dict[str, Any]:
        self._file = filename
        if Path(filename).suffix in (".pkl", ".pyth"):
            self.base = None  # their names may be others than the model's
            return self._load_zoo_file(filename)
        data = load_checkpoint_file(filename)
        start = time.perf_counter()
        if ENTRY in data:
            data["model"], self.base = whole_weights(data, Path(filename))
            del data[ENTRY]
        else:
            state = weights_in(data, filename)
            data = {**data, "model": state} if "model" in data else {"model": state}
            # Reading again, because loading drops what it has read, and values left in the file cost no memory.
            saves = bool(self.save_dir) and self.save_to_disk
            mapped = weights_in(load_checkpoint_file(filename, mmap=True), filename) if saves else {}
            self.base = base_to_begin_with(Path(filename), mapped) if saves else None
        if self.base is not None:
            self.logger.info(
                f"Base of the checkpoints: {self.base.path}, sha256 {self.base.sha256} "
                f"({time.perf_counter() - start:.1f} s)"
            )
        return data

    def _load_zoo_file(self, filename: str) -> dict[str, Any]:
        """Read a file of Detectron2's model zoo, or of Caffe2's or pycls' backbones, after a look at what it holds.

        An installed Detectron2 reads ``.pkl`` by bare pickle, which runs what the file says.
        """
        if filename.endswith(".pkl"):
            check_array_pickle(filename)
        else:
            load_checkpoint_file(filename)
        try:
            data = super()._load_file(filename)
            self._convert_ndarray_to_tensor(data["model"])
        except Exception as error:  # what a file holds in place of weights may fail anywhere
            raise UserError(f"{filename}: not a file of weights as Detectron2's zoo has them ({error}).") from error
        return {**data, "model": weights_in(data, filename)}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if hasattr(self.model, "convert_state"):  # the model knows other names of its weights
            checkpoint["model"] = self.model.convert_state(checkpoint["model"])
        state, own = checkpoint["model"], self.model.state_dict()
        matched = checkpoint.pop("matching_heuristics", False)
        if matched:
            state = align_and_update_state_dicts(own, state, checkpoint.get("__author__") == "Caffe2")
        adapters = lora_keys(own)
        if not adapters & state.keys():  # weights from before LoRA: its matrices stay as they begin, without effect
            state.update({key: own[key] for key in adapters})
        state.update(resample_positions(state, self.model))
        checkpoint["model"] = fit_weights(state, own, begins=self._begins, matched=matched, file=self._file)
        return super()._load_model(checkpoint)


class PeriodicCheckpoint(hooks.PeriodicCheckpointer):
    """Detectron2's periodic checkpoints; ``max_to_keep`` counts those of the run before a resume too."""

    def before_train(self) -> None:
        """Find the checkpoints that the run has written up to where it goes on."""
        super().before_train()
        files = sorted(Path(self.checkpointer.save_dir).glob(f"{self.file_prefix}_[0-9]*.pth"))
        steps = {str(file): step_of(file) for file in files}
        self.recent_checkpoints = [
            file for file, step in steps.items() if step is not None and step < self.trainer.start_iter
        ]
