"""Boxes from a COCO results list of any other system, checked against the dataset that they are to prompt SAM on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import sam_d2  # noqa: F401  (makes detectron2 importable)
from detectron2.data import DatasetCatalog, MetadataCatalog
from sam_d2.data.prompt_boxes import PromptBox, PromptBoxes, same_file
from sam_d2.errors import UserError
from sam_d2.evaluation.detections import ImageDetections
from sam_d2.evaluation.detector_prompts import image_id_of
from sam_d2.evaluation.ground_truth import ImageId, to_rle


def read_prompt_file(path: str | Path, dataset_name: str) -> list[ImageDetections]:
    """Read the boxes of a file for the images of a dataset.

    Args:
        path: A JSON list of ``{"image_id", "category_id", "bbox": [x, y, width, height], "score"}``, pixels of the
            original images, ids those of the dataset's annotation file. ``file_name`` finds an image too, where there
            is no ``image_id``.
        dataset_name: Registered name.

    Returns:
        One entry for each image that the file has boxes of, in the file's order, as they stand there (they may reach
        out of the image or be empty). Masks too, where every row has a ``segmentation``.

    Raises:
        UserError: The file is missing or is no such list, a row names an image or category that the dataset does not
            have, or has a score that is not finite or a mask that cannot be read. The message says how many rows
            are of unknown images.
    """
    rows = PromptBoxes(path).rows
    images = _Images(DatasetCatalog.get(dataset_name))
    found = [images.of(row) for row in rows]
    if None in found:
        first = rows[found.index(None)]
        raise UserError(
            f"--prompt-boxes {path}: {found.count(None)} of {len(rows)} rows are of images that {dataset_name} does "
            f"not have; the first has {_image_text(first)}. Leave these out, or take this dataset's results."
        )
    # from_catalog's classes: their order, and the file's id of each
    metadata = MetadataCatalog.get(dataset_name)
    ids: Mapping[int, int] = metadata.get("thing_dataset_id_to_contiguous_id") or {
        index: index for index in range(len(metadata.thing_classes))
    }
    masked = bool(rows) and all(row.segmentation for row in rows)
    grouped: dict[ImageId, list[int]] = {}
    for number, row in enumerate(rows):
        where = f"--prompt-boxes {path}: row {number} ({_image_text(row)})"
        if row.category_id not in ids:
            raise UserError(f"{where}: category {row.category_id} is not one of {sorted(ids)} of {dataset_name}.")
        if not math.isfinite(row.score):
            raise UserError(f"{where}: its score is {row.score}; correct or drop it.")
        record = found[number]
        assert record is not None  # refused above
        grouped.setdefault(image_id_of(record), []).append(number)
    return [
        _detections(image_id, [rows[number] for number in numbers], ids, images.size(image_id), masked, path)
        for image_id, numbers in grouped.items()
    ]


def _detections(
    image_id: ImageId,
    rows: Sequence[PromptBox],
    ids: Mapping[int, int],
    size: tuple[int, int],
    masked: bool,
    path: str | Path,
) -> ImageDetections:
    try:
        rles = [to_rle(row.segmentation, size) for row in rows] if masked else None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"--prompt-boxes {path}: image {image_id!r}: a segmentation cannot be read: {error}") from error
    return ImageDetections(
        image_id,
        np.array([row.score for row in rows], dtype=np.float64),
        np.array([ids[row.category_id] for row in rows], dtype=np.int64),
        np.array([row.xyxy for row in rows], dtype=np.float64),
        rles,
    )


class _Images:
    """The images of a dataset, found by what a row of results says of them."""

    def __init__(self, records: Sequence[Mapping[str, Any]]) -> None:
        self._by_id = {image_id_of(record): record for record in records}
        self._by_name: dict[str, list[Mapping[str, Any]]] = {}
        for record in records:
            self._by_name.setdefault(Path(record.get("file_name", "")).name, []).append(record)

    def of(self, row: PromptBox) -> Mapping[str, Any] | None:
        """The dataset dict that a row is of; None where there is none, or the file's name fits several."""
        if row.image_id is not None and row.file_name is None:
            return self._by_id.get(row.image_id)
        named = Path(str(row.file_name))
        fitting = [one for one in self._by_name.get(named.name, []) if same_file(named, Path(one["file_name"]))]
        return fitting[0] if len(fitting) == 1 else None

    def size(self, image_id: ImageId) -> tuple[int, int]:
        """(H0, W0)."""
        record = self._by_id[image_id]
        return int(record["height"]), int(record["width"])


def _image_text(row: PromptBox) -> str:
    return f"image_id {row.image_id!r}" if row.file_name is None else f"file_name {row.file_name!r}"
