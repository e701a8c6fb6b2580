"""Load registered datasets and prepare their records for training."""

import itertools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch.utils.data as torchdata
from tabulate import tabulate
from termcolor import colored

from detectron2.utils.logger import log_first_n

from .catalog import DatasetCatalog, MetadataCatalog
from .detection_utils import check_metadata_consistency

logger = logging.getLogger(__name__)

_LONGEST_NAME = 13
_COLUMN_PAIRS = 3


def filter_images_with_only_crowd_annotations(dataset_dicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records that have an annotation other than crowd, and log how many were removed."""
    kept = [
        record
        for record in dataset_dicts
        if not all(annotation.get("iscrowd", 0) for annotation in record["annotations"])
    ]
    removed = len(dataset_dicts) - len(kept)
    logger.info(f"Removed {removed} images with no usable annotations. {len(kept)} images left.")
    return kept


def print_instances_class_histogram(dataset_dicts: list[dict[str, Any]], class_names: Sequence[str]) -> None:
    """Log how many instances each class has, crowd not counted.

    Args:
        dataset_dicts: records with "annotations".
        class_names: one name for each category id.

    Raises:
        AssertionError: a category id has no name.
    """
    ids = [
        annotation["category_id"]
        for record in dataset_dicts
        for annotation in record["annotations"]
        if not annotation.get("iscrowd", 0)
    ]
    wrong = [i for i in ids if not 0 <= i < len(class_names)]
    assert not wrong, f"Got an invalid category_id={wrong[0]} for a dataset of {len(class_names)} classes"
    counts = np.bincount(np.asarray(ids, dtype=int), minlength=len(class_names)).tolist()

    cells: list[Any] = []
    for name, count in zip(class_names, counts, strict=True):
        cells += [name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 2]}..", count]
    pairs = min(_COLUMN_PAIRS, len(class_names))
    width = 2 * pairs
    cells += [None] * (width - len(cells) % width)  # the total stands on a line of its own
    if len(class_names) > 1:
        cells += ["total", sum(counts)]
    rows = [cells[start : start + width] for start in range(0, len(cells), width)]
    table = tabulate(
        rows, headers=["category", "#instances"] * pairs, tablefmt="pipe", numalign="left", stralign="center"
    )
    title = f"Distribution of instances among all {len(class_names)} categories:\n"
    log_first_n(logging.INFO, title + colored(table, "cyan"), key="message")


def get_detection_dataset_dicts(
    names: str | Sequence[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: Sequence[str] | None = None,
    check_consistency: bool = True,
) -> Any:
    """Load one or several registered datasets as one list of records.

    Args:
        names: one name, or several.
        filter_empty: leave out images without annotations, or with nothing but crowd.
        min_keypoints: must be 0 in the embedded core.
        proposal_files: must be None in the embedded core.
        check_consistency: the datasets must have the same "thing_classes", and their histogram is logged.

    Returns:
        A list of records. Of datasets registered as torch's, the dataset or the concatenation of several.

    Raises:
        KeyError: a name is not registered.
        AssertionError: no name, or a dataset or the result is empty.
        ValueError: the classes differ.
        NotImplementedError: keypoints or proposals are asked for.
    """
    if min_keypoints > 0 or proposal_files is not None:
        raise NotImplementedError(
            "The embedded Detectron2 core has no keypoints and no stored proposals: install Detectron2."
        )
    names = [names] if isinstance(names, str) else names
    assert len(names), names
    unknown = set(names) - set(DatasetCatalog)
    if unknown:
        logger.warning(
            f"The following dataset names are not registered in the DatasetCatalog: {unknown}. "
            f"Available datasets are {DatasetCatalog.list()}"
        )
    datasets = [DatasetCatalog.get(name) for name in names]
    if isinstance(datasets[0], torchdata.Dataset):
        return torchdata.ConcatDataset(datasets) if len(datasets) > 1 else datasets[0]
    for name, records in zip(names, datasets, strict=True):
        assert len(records), f"Dataset '{name}' is empty!"

    merged = list(itertools.chain.from_iterable(datasets))
    if "annotations" in merged[0]:
        if filter_empty:
            merged = filter_images_with_only_crowd_annotations(merged)
        if check_consistency and all(hasattr(MetadataCatalog.get(name), "thing_classes") for name in names):
            check_metadata_consistency("thing_classes", names)
            print_instances_class_histogram(merged, MetadataCatalog.get(names[0]).thing_classes)
    assert len(merged), f"No valid data found in {','.join(names)}."
    return merged
