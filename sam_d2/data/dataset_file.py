"""Load a dataset file: COCO's JSON or Detectron2's list of dicts, checked, as Detectron2's dataset dicts."""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from msgspec import UNSET

from sam_d2.data.coco_index import CocoIndex, index_coco
from sam_d2.data.dataset_dicts import build_dataset_dicts, number_of_classes
from sam_d2.data.decode import is_coco, read_content
from sam_d2.data.findings import Finding, RecordId, raise_findings
from sam_d2.data.full_check import BOXES_ALONE, check_records
from sam_d2.data.image_root import find_image_root
from sam_d2.data.lazy_dicts import LazyDatasetDicts, count_annotations
from sam_d2.data.records import CocoFile
from sam_d2.errors import UserError
from sam_d2.memory import collection_paused

logger = logging.getLogger(__name__)

ImageRoot = str | Path | Sequence[str | Path] | None


@dataclass(frozen=True)
class DatasetFile:
    """A dataset file in Detectron2's standard form.

    Attributes:
        json_file: absolute path.
        image_root: the folder that the file names are relative to; None where there are missing images.
        format: ``coco`` or ``detectron2``.
        classes: names in the order of the contiguous class index; ``class_0``, ... where the file names none.
        category_ids: the file's own category ids in the same order (ascending, as Detectron2 sorts them).
        dataset_dicts: one dict per image: `file_name` (absolute), `height`, `width`, `image_id`, and
            `annotations`, each with `bbox` (px, original frame), `bbox_mode`, `category_id` (class index),
            `segmentation` (polygons, or a compressed RLE), `iscrowd`, and `id` and `area` where the file has
            them. COCO's images are in order of their ids, as Detectron2 has them; a list of dicts keeps its
            order. Shared between all who read the file: never change them in place.
        findings: the problems; warnings only, if it comes from :func:`load_dataset_file`.
    """

    json_file: Path
    image_root: Path | None
    format: Literal["coco", "detectron2"]
    classes: list[str]
    category_ids: list[int]
    dataset_dicts: Sequence[dict[str, Any]]
    findings: list[Finding]


def load_dataset_file(
    json_file: str | Path,
    image_root: ImageRoot = None,
    classes: Sequence[str] | None = None,
    *,
    boxes_alone: bool = False,
    check_annotations: bool = True,
) -> DatasetFile:
    """Read and check a dataset file, so that nothing is left to go wrong during training.

    Differs from Detectron2's `load_coco_json` only for records that it would keep without use: an annotation
    with an empty segmentation is left out and counted, a box without area is replaced by the bounds of its
    mask.

    Args:
        json_file: COCO JSON, or Detectron2's list of dicts.
        image_root: folder of the images, or several to try in turn; then the JSON's folder, the working
            directory and the parents of the JSON's folder are tried.
        classes: class names. They name the classes of Detectron2's form; for COCO's they must be the file's
            own.
        boxes_alone: whether a file in which no annotation has a mask may be read, for an evaluation of boxes.
        check_annotations: False to look at the ids of a COCO file's annotations alone, and at the rest of each
            when it is read: then one that is in error raises the UserError.

    Returns:
        The dataset; its findings are the warnings, which are logged as counts.

    Raises:
        UserError: the file has errors: the first 20 of them, and their number.

    Example:
        >>> dataset = load_dataset_file("cells/annotations.json", "cells/images")  # doctest: +SKIP
        >>> len(dataset.dataset_dicts), dataset.classes  # doctest: +SKIP
        (120, ['cell'])
    """
    dataset = inspect_dataset_file(json_file, image_root, classes, check_annotations=check_annotations)
    if boxes_alone and any(BOXES_ALONE in finding.found for finding in dataset.findings):
        dataset = inspect_dataset_file(
            json_file, image_root, classes, require_masks=False, check_annotations=check_annotations
        )
    raise_findings(dataset.findings, logger, doctor=True)
    instances = count_annotations(dataset.dataset_dicts)
    logger.info(
        f"{dataset.json_file}: {len(dataset.dataset_dicts)} images and {instances} instances of "
        f"{len(dataset.classes)} classes; images under {dataset.image_root}"
    )
    return dataset


def inspect_dataset_file(
    json_file: str | Path,
    image_root: ImageRoot = None,
    classes: Sequence[str] | None = None,
    *,
    require_masks: bool = True,
    check_annotations: bool = True,
) -> DatasetFile:
    """Read and check a dataset file, and return every problem instead of raising.

    Args:
        json_file: as for :func:`load_dataset_file`.
        image_root: the same.
        classes: the same.
        require_masks: whether annotations without a mask are left out, and a file of boxes alone is an error;
            otherwise they stay, without `segmentation`, for :mod:`sam_d2.labelling`.
        check_annotations: as for :func:`load_dataset_file`.

    Returns:
        The dataset with all findings. Where one of them is an error, `dataset_dicts` is empty.
    """
    with collection_paused():
        dataset = _inspect(Path(json_file).absolute(), image_root, require_masks, check_annotations)
    return dataset if classes is None else with_classes(dataset, classes)


def _inspect(file: Path, image_root: ImageRoot, require_masks: bool, check_annotations: bool) -> DatasetFile:
    content, problem = read_content(file)
    if problem is None and is_coco(content):
        index = index_coco(file, content, require_masks=require_masks, check_annotations=check_annotations)
        if index is not None:
            return _indexed(file, content, index, image_root, require_masks, check_annotations)
    checked = check_records(file, content, problem, require_masks=require_masks)
    records, images, table, findings = checked.records, checked.images, checked.table, checked.findings
    root, image_findings = find_root(file, images, image_root)
    findings += image_findings
    if isinstance(records, CocoFile):
        categories = sorted((item for item in records.categories if item.id is not UNSET), key=lambda item: item.id)
        names, category_ids = [item.name for item in categories], [item.id for item in categories]
    else:
        count = number_of_classes(table)
        names, category_ids = [f"class_{index}" for index in range(count)], list(range(count))
    sound = not any(finding.severity == "error" for finding in findings)
    return DatasetFile(
        json_file=file,
        image_root=root,
        format="coco" if isinstance(records, CocoFile) else "detectron2",
        classes=names,
        category_ids=category_ids,
        dataset_dicts=build_dataset_dicts(images, table, category_ids, root) if sound and root else [],
        findings=findings,
    )


def _indexed(
    file: Path,
    content: np.ndarray,
    index: CocoIndex,
    image_root: ImageRoot,
    require_masks: bool,
    check_annotations: bool,
) -> DatasetFile:
    """Return the dataset of a COCO file without errors, whose annotations are decoded when they are read."""
    root, image_findings = find_root(file, index.images, image_root)
    pending = None if check_annotations else (file, index.images)
    store = index.store(content, require_masks=require_masks, pending=pending)
    return DatasetFile(
        json_file=file,
        image_root=root,
        format="coco",
        classes=[category.name for category in index.categories],
        category_ids=[category.id for category in index.categories],
        dataset_dicts=LazyDatasetDicts(index.images, root, store) if root else [],
        findings=index.findings + image_findings,
    )


def with_classes(dataset: DatasetFile, classes: Sequence[str]) -> DatasetFile:
    """Return a dataset with these class names, and one finding more where they do not fit.

    Args:
        dataset: an inspected file; its dicts are shared with the result.
        classes: at least one per class index in use for a file in Detectron2's form, which names none; for
            a COCO file its own names, in order.
    """
    names = list(classes)
    problem = None
    if dataset.format == "coco":
        if names != dataset.classes:
            problem = f"the file has {dataset.classes}, but {names} are asked for"
    elif len(names) < len(dataset.classes):
        used = len(dataset.classes)
        problem = f"category_id {used - 1} is in use, which needs {used} names, but {names} are given"
    if problem is None:
        ids = dataset.category_ids if dataset.format == "coco" else list(range(len(names)))
        return dataclasses.replace(dataset, classes=names, category_ids=ids)
    finding = Finding("error", dataset.json_file, None, None, "classes", problem, "name the classes of this file",
                      kind="classes-differ")  # fmt: skip
    return dataclasses.replace(dataset, dataset_dicts=[], findings=[*dataset.findings, finding])


def common_classes(files: Sequence[DatasetFile]) -> list[str]:
    """Return the class names that files share.

    A file in Detectron2's form has none of its own: it takes those of a COCO file, or as many as the files
    need.

    Args:
        files: the training and the test file.

    Raises:
        UserError: two COCO files have different names, or another order.
    """
    named = [file for file in files if file.format == "coco"]
    if not named:
        return max((file.classes for file in files), key=len)
    if any(file.classes != named[0].classes for file in named):
        lines = "\n".join(f"  {file.json_file}: {file.classes}" for file in named)
        raise UserError(
            f"The training and the test file have different classes:\n{lines}\n"
            "Write the same categories, in the same order of ids, into both."
        )
    return named[0].classes


def find_root(file: Path, images: list[Any], image_root: ImageRoot) -> tuple[Path | None, list[Finding]]:
    """Return the folder of the images of a file and the problems, as :func:`find_image_root` does for their names."""
    given = [image_root] if isinstance(image_root, str | Path) else image_root or []
    named = [image for image in images if image.file_name is not UNSET]
    names: list[str] = [image.file_name for image in named]
    ids: list[RecordId] = [None if image.id is UNSET else image.id for image in named]
    return find_image_root(file, names, ids, [Path(root) for root in given])
