"""Wrappers around datasets: a list in shared memory, a mapped dataset, a sampled stream, batches by shape."""

import contextlib
import logging
import pickle
import random
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import torch
import torch.utils.data as torchdata

from detectron2.utils.serialize import PicklableWrapper

__all__ = ["AspectRatioGroupedDataset", "DatasetFromList", "MapDataset", "ToIterableDataset"]

logger = logging.getLogger(__name__)


class _TorchSerializedList:
    """A list whose items are pickled into one byte tensor.

    Forked workers read the tensor without touching reference counts, so its pages stay shared; with spawn or
    forkserver torch moves the tensor to shared memory. Either way the list is in memory once.
    """

    def __init__(self, lst: list) -> None:
        logger.info(f"Serializing {len(lst)} elements to byte tensors and concatenating them all ...")
        chunks = [np.frombuffer(pickle.dumps(item, protocol=-1), dtype=np.uint8) for item in lst]
        self._ends = torch.from_numpy(np.cumsum([len(chunk) for chunk in chunks], dtype=np.int64))
        self._bytes = torch.from_numpy(np.concatenate(chunks))
        logger.info(f"Serialized dataset takes {len(self._bytes) / 1024**2:.2f} MiB")

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, idx: int) -> Any:
        end = int(self._ends[idx])
        start = 0 if idx == 0 else int(self._ends[idx - 1])
        return pickle.loads(self._bytes[start:end].numpy().data)


_default_serialize_method: Callable[[list], Any] = _TorchSerializedList


@contextlib.contextmanager
def set_default_dataset_from_list_serialize_method(new: Callable[[list], Any]) -> Iterator[None]:
    """Within the context, ``DatasetFromList(serialize=True)`` stores its list by calling ``new(list)``."""
    global _default_serialize_method
    old, _default_serialize_method = _default_serialize_method, new
    try:
        yield
    finally:
        _default_serialize_method = old


class DatasetFromList(torchdata.Dataset):
    """A list as a map-style dataset.

    Args:
        lst: the elements.
        copy: return a deep copy of each element, so that a reader may change it. A serialised list makes a
            new object at every access anyway.
        serialize: keep the list in shared memory; a callable is used in place of the default method.

    Raises:
        TypeError: ``serialize`` is neither a bool nor callable.
    """

    def __init__(self, lst: list, copy: bool = True, serialize: bool | Callable[[list], Any] = True) -> None:
        if not isinstance(serialize, bool) and not callable(serialize):
            raise TypeError(f"DatasetFromList(serialize=) expects a bool or a callable, got {serialize!r}.")
        self._lst: Any = lst
        self._copies = copy and serialize is False
        if serialize is not False:
            method = _default_serialize_method if serialize is True else serialize
            logger.info(f"Serializing the dataset using: {method}")
            self._lst = method(lst)

    def __len__(self) -> int:
        return len(self._lst)

    def __getitem__(self, idx: int) -> Any:
        item = self._lst[idx]
        return deepcopy(item) if self._copies else item


class _MapIterableDataset(torchdata.IterableDataset):
    """What :class:`MapDataset` is for an iterable dataset: elements mapped to None are left out."""

    def __init__(self, dataset: Any, map_func: Callable[[Any], Any]) -> None:
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)  # lambdas reach spawned workers too

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Any]:
        return (mapped for mapped in map(self._map_func, self._dataset) if mapped is not None)


class MapDataset(torchdata.Dataset):
    """A function applied to every element of a dataset; the result is map-style or iterable as that is.

    Where the function returns None, an iterable dataset skips the element; a map-style one tries another
    index, drawn from those that have not failed.
    """

    _MANY_FAILURES = 3

    def __new__(cls, dataset: Any, map_func: Callable[[Any], Any]) -> Any:
        """Choose the class that fits the dataset's kind."""
        if isinstance(dataset, torchdata.IterableDataset):
            return _MapIterableDataset(dataset, map_func)
        return super().__new__(cls)

    def __init__(self, dataset: Any, map_func: Callable[[Any], Any]) -> None:
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)
        self._rng = random.Random(42)
        self._usable = set(range(len(dataset)))

    def __getnewargs__(self) -> tuple[Any, Any]:
        return self._dataset, self._map_func

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, idx: int) -> Any:
        tried = int(idx)
        failures = 0
        while (mapped := self._map_func(self._dataset[tried])) is None:
            failures += 1
            self._usable.discard(tried)
            tried = self._rng.sample(list(self._usable), k=1)[0]
            if failures >= self._MANY_FAILURES:
                logger.warning(f"Failed to apply `_map_func` for idx: {idx}, retry count: {failures}")
        self._usable.add(tried)
        return mapped


def _worker_share(indices: Iterable[int], chunk_size: int) -> Iterator[int]:
    """Yield the chunks of ``indices`` that belong to this loader worker; outside of one, all of them."""
    worker = torchdata.get_worker_info()
    if worker is None:
        yield from indices
        return
    for position, index in enumerate(indices):
        if position // chunk_size % worker.num_workers == worker.id:
            yield index


class ToIterableDataset(torchdata.IterableDataset):
    """A map-style dataset with its sampler as one stream.

    Args:
        dataset: map-style.
        sampler: yields indices; it runs in every loader worker, so it must be cheap and give the same order
            in each.
        shard_sampler: leave to each worker its own share of the indices; False where the sampler does so.
        shard_chunk_size: the workers take turns with this many consecutive indices, the batch size as a rule.

    Raises:
        AssertionError: the dataset is iterable already, or the sampler is no ``Sampler``.
    """

    def __init__(
        self,
        dataset: torchdata.Dataset,
        sampler: torchdata.Sampler,
        shard_sampler: bool = True,
        shard_chunk_size: int = 1,
    ) -> None:
        assert not isinstance(dataset, torchdata.IterableDataset), dataset
        assert isinstance(sampler, torchdata.Sampler), sampler
        self.dataset, self.sampler = dataset, sampler
        self.shard_sampler, self.shard_chunk_size = shard_sampler, shard_chunk_size

    def __iter__(self) -> Iterator[Any]:
        indices = _worker_share(self.sampler, self.shard_chunk_size) if self.shard_sampler else self.sampler
        for index in indices:
            yield self.dataset[index]

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]  # TypeError for an endless sampler


class AspectRatioGroupedDataset(torchdata.IterableDataset):
    """Batches of images that are all wider than high, or all not, which need less padding.

    Args:
        dataset: an iterable of dicts with "width" and "height".
        batch_size: number of dicts in each list that comes out. What does not fill a batch waits for the
            next iteration.
    """

    def __init__(self, dataset: Iterable[dict[str, Any]], batch_size: int) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self._waiting: dict[bool, list[dict[str, Any]]] = {True: [], False: []}

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for item in self.dataset:
            group = item["width"] > item["height"]
            self._waiting[group].append(item)
            if len(self._waiting[group]) == self.batch_size:
                # Emptied before the yield: the consumer may never come back.
                batch, self._waiting[group] = self._waiting[group], []
                yield batch
