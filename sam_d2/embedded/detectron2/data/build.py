"""Data loaders for training and evaluation, from explicit arguments."""

import logging
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.utils.data as torchdata

from detectron2.utils.comm import get_world_size
from detectron2.utils.env import seed_all_rng

from .common import AspectRatioGroupedDataset, DatasetFromList, MapDataset, ToIterableDataset
from .dataset_dicts import (
    filter_images_with_only_crowd_annotations,
    get_detection_dataset_dicts,
    print_instances_class_histogram,
)
from .samplers import InferenceSampler, TrainingSampler

__all__ = [
    "build_batch_data_loader",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "filter_images_with_only_crowd_annotations",
    "get_detection_dataset_dicts",
    "print_instances_class_histogram",
    "trivial_batch_collator",
    "worker_init_reset_seed",
]


def trivial_batch_collator(batch: list[Any]) -> list[Any]:
    """Return the batch as it is: images of different sizes have no common tensor."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Seed random, numpy and torch in a loader worker from torch's seed there."""
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)


def _mapped(dataset: Any, mapper: Callable[[Any], Any] | None) -> Any:
    """Return a list or dataset as a dataset, with the mapper applied if there is one."""
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    return dataset if mapper is None else MapDataset(dataset, mapper)


def _own_batch_size(total: int | None, single: int | None) -> int:
    """Return the batch size of this process from the one of all, or the one given for each."""
    if single:
        if total:
            raise ValueError("Give total_batch_size or single_gpu_batch_size, not both.")
        return single
    world_size = get_world_size()
    assert total is not None and total > 0 and total % world_size == 0, (
        f"Total batch size ({total}) must be divisible by the number of gpus ({world_size})."
    )
    return total // world_size


def build_batch_data_loader(
    dataset: torchdata.Dataset,
    sampler: torchdata.Sampler | None,
    total_batch_size: int | None,
    *,
    aspect_ratio_grouping: bool = False,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    drop_last: bool = True,
    single_gpu_batch_size: int | None = None,
    prefetch_factor: int = 2,
    persistent_workers: bool = False,
    pin_memory: bool = False,
    seed: int | None = None,
    **kwargs: Any,
) -> Any:
    """Build a loader of batches that are lists.

    Args:
        dataset: map-style with a sampler, or iterable without one.
        sampler: yields indices; it runs in every worker.
        total_batch_size: images per step over all processes.
        aspect_ratio_grouping: see :func:`build_detection_train_loader`.
        num_workers: loader processes; 0 loads in this one.
        collate_fn: makes something else of a list of elements.
        drop_last: leave out what does not fill a batch.
        single_gpu_batch_size: images per step in each process, in place of ``total_batch_size``.
        prefetch_factor: batches that each worker prepares ahead.
        persistent_workers: keep the workers between iterations.
        pin_memory: copy tensors into page-locked memory.
        seed: of the generator from which the workers' seeds are drawn.
        **kwargs: further arguments of torch's DataLoader.

    Raises:
        ValueError: both batch sizes are given.
        AssertionError: the processes cannot share the batch evenly, or dataset and sampler do not match.
    """
    batch_size = _own_batch_size(total_batch_size, single_gpu_batch_size)
    logging.getLogger(__name__).info(f"Making batched data loader with batch_size={batch_size}")
    if isinstance(dataset, torchdata.IterableDataset):
        assert sampler is None, "sampler must be None if dataset is IterableDataset"
    else:
        assert sampler is not None, "a map-style dataset needs a sampler"
        dataset = ToIterableDataset(dataset, sampler, shard_chunk_size=batch_size)
    options: dict[str, Any] = {
        "num_workers": num_workers,
        "worker_init_fn": worker_init_reset_seed,
        "prefetch_factor": prefetch_factor if num_workers > 0 else None,
        "persistent_workers": persistent_workers,
        "pin_memory": pin_memory,
        "generator": None if seed is None else torch.Generator().manual_seed(seed),
        **kwargs,
    }
    if not aspect_ratio_grouping:
        return torchdata.DataLoader(
            dataset,
            batch_size=batch_size,
            drop_last=drop_last,
            collate_fn=collate_fn or trivial_batch_collator,
            **options,
        )
    assert drop_last, "Aspect ratio grouping will drop incomplete batches."
    # Elements come out one by one and are grouped in this process, where all workers' elements meet.
    elements = torchdata.DataLoader(dataset, collate_fn=operator.itemgetter(0), **options)
    batches = AspectRatioGroupedDataset(elements, batch_size)
    return batches if collate_fn is None else MapDataset(batches, collate_fn)


def build_detection_train_loader(
    dataset: list[dict[str, Any]] | torchdata.Dataset,
    *,
    mapper: Callable[[dict[str, Any]], Any] | None,
    sampler: torchdata.Sampler | None = None,
    total_batch_size: int | None,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Build an endless loader of training batches.

    Args:
        dataset: records, or a dataset.
        mapper: makes of a record what the model takes.
        sampler: yields indices, a :class:`TrainingSampler` by default; must be None for an iterable dataset.
        total_batch_size: images per step over all processes.
        aspect_ratio_grouping: batches of images that are all wider than high, or all not. Elements must be
            dicts with "width" and "height".
        num_workers: loader processes; 0 loads in this one.
        collate_fn: makes something else of a list of elements.
        **kwargs: further arguments of :func:`build_batch_data_loader`.

    Returns:
        An iterable of lists of mapped elements.
    """
    mapped = _mapped(dataset, mapper)
    if not isinstance(mapped, torchdata.IterableDataset):
        sampler = TrainingSampler(len(mapped)) if sampler is None else sampler
        assert isinstance(sampler, torchdata.Sampler), f"Expect a Sampler but got {type(sampler)}"
    return build_batch_data_loader(
        mapped,
        sampler,
        total_batch_size,
        aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers,
        collate_fn=collate_fn,
        **kwargs,
    )


def build_detection_test_loader(
    dataset: list[dict[str, Any]] | torchdata.Dataset,
    *,
    mapper: Callable[[dict[str, Any]], Any] | None,
    sampler: torchdata.Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> torchdata.DataLoader:
    """Build a loader that gives each element once, over all processes.

    Args:
        dataset: records, or a dataset.
        mapper: makes of a record what the model takes.
        sampler: yields indices, by default an :class:`InferenceSampler`; None for an iterable dataset.
        batch_size: images per step in each process.
        num_workers: loader processes; 0 loads in this one.
        collate_fn: makes something else of a list of elements.

    Raises:
        AssertionError: an iterable dataset comes with a sampler.
    """
    mapped = _mapped(dataset, mapper)
    if isinstance(mapped, torchdata.IterableDataset):
        assert sampler is None, "sampler must be None if dataset is IterableDataset"
    elif sampler is None:
        sampler = InferenceSampler(len(mapped))
    return torchdata.DataLoader(
        mapped,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate_fn or trivial_batch_collator,
    )
