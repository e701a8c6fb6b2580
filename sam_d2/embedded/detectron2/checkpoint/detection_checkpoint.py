"""The checkpointer of Detectron2's trainers."""

import logging
from typing import Any
from urllib.parse import parse_qs, urlparse

from fvcore.common.checkpoint import Checkpointer
from torch import nn

from detectron2.checkpoint.array_pickle import load_array_pickle
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

_BUFFERS_FROM_CONFIG = ("pixel_mean", "pixel_std")
_FORMER_BUFFERS = "anchor_generator.cell_anchors"


class DetectionCheckpointer(Checkpointer):
    """fvcore's checkpointer that writes on rank 0 only and also reads the files of Detectron2's model zoo.

    These are ``.pkl`` files of arrays, under Detectron2's names or Caffe2's, and pycls' ``.pyth`` files. Where names
    are not the model's, or the path ends with ``?matching_heuristics=True``, they are matched
    (:func:`detectron2.checkpoint.c2_model_loading.align_and_update_state_dicts`).
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ) -> None:
        """Set what is saved and where.

        Args:
            model: the model, or its wrapper for distributed training.
            save_dir: folder of the checkpoints.
            save_to_disk: whether this process writes; by default the process of rank 0 does.
            checkpointables: further objects with ``state_dict`` and ``load_state_dict``.
        """
        on_disk = comm.is_main_process() if save_to_disk is None else save_to_disk
        super().__init__(model, save_dir, save_to_disk=on_disk, **checkpointables)
        self.path_manager = PathManager
        self._query = ""

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint into the model and the other objects.

        Args:
            path: file or URL; a falsy one loads nothing.
            checkpointables: names of the objects to load; all by default.

        Returns:
            what else the file holds.

        Raises:
            pickle.UnpicklingError: a file holds other objects than tensors, arrays and plain values.
            ValueError: one weight fits two of the model's.
        """
        logging.getLogger(__name__).info(f"[DetectionCheckpointer] Loading from {path} ...")
        if path:
            url = urlparse(path)
            self._query = url.query
            path = PathManager.get_local_path(url._replace(query="").geturl())
        try:
            return super().load(path, checkpointables)
        finally:
            self._query = ""

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            return self._load_pickle(filename)
        if filename.endswith(".pyth"):
            state = self._torch_load(filename)["model_state"]
            kept = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
            return {"model": kept, "__author__": "pycls", "matching_heuristics": True}
        loaded = self._torch_load(filename)
        if "model" not in loaded:
            loaded = {"model": loaded}
        query = parse_qs(self._query)
        if query.pop("matching_heuristics", None) == ["True"]:
            loaded["matching_heuristics"] = True
        if query:
            raise ValueError(f"{filename}: unknown query {sorted(query)}; only matching_heuristics is known")
        return loaded

    def _load_pickle(self, filename: str) -> dict[str, Any]:
        with PathManager.open(filename, "rb") as file:
            loaded = load_array_pickle(file, filename)
        if "model" not in loaded or "__author__" not in loaded:
            blobs = loaded.get(
                "blobs", loaded
            )  # detectors have them in "blobs", ImageNet's backbones have nothing else
            weights = {name: value for name, value in blobs.items() if not name.endswith("_momentum")}
            return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
        self.logger.info(f"Reading a file from '{loaded['__author__']}'")
        return loaded

    def _torch_load(self, f: str) -> dict[str, Any]:
        """Read a file of ``torch.save``; subclasses may read it otherwise."""
        return super()._load_file(f)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if checkpoint.get("matching_heuristics", False):
            state = checkpoint["model"]
            self._convert_ndarray_to_tensor(state)
            of_caffe2 = checkpoint.get("__author__") == "Caffe2"
            checkpoint["model"] = align_and_update_state_dicts(self.model.state_dict(), state, of_caffe2)
        incompatible = super()._load_model(checkpoint)
        own_buffers = dict(self.model.named_buffers(recurse=False))
        for name in _BUFFERS_FROM_CONFIG:  # the config sets them, and old files lack them
            if name in own_buffers and name in incompatible.missing_keys:
                incompatible.missing_keys.remove(name)
        # old files hold them, models compute them now
        incompatible.unexpected_keys[:] = [name for name in incompatible.unexpected_keys if _FORMER_BUFFERS not in name]
        return incompatible
