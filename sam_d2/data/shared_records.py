"""Dataset dicts in memory that processes share, however many of them read it."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sam_d2.data.lazy_dicts import AnnotationStore, LazyAnnotations

_NO_STORE = -1
_ARRAYS = [field.name for field in dataclasses.fields(AnnotationStore) if field.type == "np.ndarray"]


class SharedRecords:
    """A list of dataset dicts for :class:`detectron2.data.DatasetFromList`, as its ``serialize``.

    The dicts are pickled into one byte tensor, as Detectron2 does, but for annotations that
    :class:`sam_d2.data.lazy_dicts.LazyAnnotations` has: those are in memory already, in the bytes of their file, and
    stay there. Forked workers read both without touching a reference count; for spawned ones torch moves the tensors
    to shared memory when the first is started. A dict is a new one each time, with a list of annotations.

    Args:
        records: dataset dicts, of one dataset or of several.
    """

    def __init__(self, records: Sequence[dict[str, Any]]) -> None:
        self._stores: list[AnnotationStore] = []
        numbers: dict[int, int] = {}
        chunks: list[bytes] = []
        places = np.full((len(records), 2), _NO_STORE, dtype=np.int64)  # of the annotations: store, and image in it
        for row, record in enumerate(records):
            annotations = record.get("annotations")
            if isinstance(annotations, LazyAnnotations):
                if id(annotations.store) not in numbers:
                    numbers[id(annotations.store)] = len(self._stores)
                    self._stores.append(annotations.store)
                places[row] = numbers[id(annotations.store)], annotations.image
                record = {**record, "annotations": None}
            chunks.append(pickle.dumps(record, protocol=-1))
        self._places = torch.from_numpy(places)
        self._ends = torch.from_numpy(np.cumsum([len(chunk) for chunk in chunks], dtype=np.int64))
        self._bytes = torch.from_numpy(np.frombuffer(b"".join(chunks), dtype=np.uint8).copy())
        # Made once: each worker is then given the same memory.
        self._tensors = [{name: _tensor(getattr(store, name)) for name in _ARRAYS} for store in self._stores]

    def __len__(self) -> int:
        return len(self._ends)

    def undecoded(self, index: int) -> dict[str, Any]:
        """Return a dict whose ``annotations`` are None where they would have to be decoded."""
        index = range(len(self))[index]
        begin = 0 if index == 0 else int(self._ends[index - 1])
        record: dict[str, Any] = pickle.loads(self._bytes[begin : int(self._ends[index])].numpy().data)
        return record

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.undecoded(index)
        number, image = self._places[index].tolist()
        if number != _NO_STORE:
            record["annotations"] = list(self._stores[number].of_image(image))
        return record

    def __getstate__(self) -> dict[str, Any]:
        bare: dict[str, Any] = dict.fromkeys(_ARRAYS)
        return {**self.__dict__, "_stores": [dataclasses.replace(store, **bare) for store in self._stores]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        arrays: list[dict[str, Any]] = [
            {name: tensor.numpy() for name, tensor in tensors.items()} for tensors in self._tensors
        ]
        self._stores = [dataclasses.replace(store, **own) for store, own in zip(self._stores, arrays, strict=True)]


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
