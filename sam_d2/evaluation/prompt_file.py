"""Boxes from a COCO results list of any other system, checked against the dataset that they are to prompt SAM on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import sam_d2  # noqa: F401  (makes detectron2 importable)
from detectron2.data import DatasetCatalog, MetadataCatalog
from sam_d2.data.findings import raise_findings
from sam_d2.data.prompt_boxes import PromptBox, PromptBoxes, same_file
from sam_d2.evaluation.detections import ImageDetections
from sam_d2.evaluation.ground_truth import RLE, ImageId, image_id_of, to_rle

_MOST_IDS = 10


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
        UserError: The file is missing or is no such list, or rows name an image or category that the dataset does not
            have, or hold a mask that cannot be read. The message lists the first of these rows.
    """
    boxes = PromptBoxes(path)
    images = _Images(DatasetCatalog.get(dataset_name))
    # from_catalog's classes: their order, and the file's id of each
    metadata = MetadataCatalog.get(dataset_name)
    ids: Mapping[int, int] = metadata.get("thing_dataset_id_to_contiguous_id") or {
        index: index for index in range(len(metadata.thing_classes))
    }
    masked = bool(boxes.rows) and all(row.segmentation for row in boxes.rows)
    grouped: dict[ImageId, list[int]] = {}
    rles: dict[int, RLE] = {}
    findings = []
    for number, row in enumerate(boxes.rows):
        record = images.of(row)
        if record is None:
            fix = f"{dataset_name} has no such image; leave the row out, or take results on this dataset"
            named, found = ("file_name", row.file_name) if row.file_name is not None else ("image_id", row.image_id)
            findings.append(boxes.finding(number, named, repr(found), fix))
            continue
        if row.category_id not in ids:
            fix = f"expected a category id of {dataset_name}: {_listed(sorted(ids))}"
            findings.append(boxes.finding(number, "category_id", str(row.category_id), fix))
        image_id = image_id_of(record)
        grouped.setdefault(image_id, []).append(number)
        if masked:
            try:
                rles[number] = to_rle(row.segmentation, images.size(image_id))
            except (ValueError, TypeError, KeyError) as error:
                fix = "write polygons or an RLE of the image's size, or leave the segmentation of all rows out"
                findings.append(boxes.finding(number, "segmentation", f"cannot be read ({error})", fix))
    raise_findings(findings)
    return [
        _detections(image_id, [boxes.rows[number] for number in numbers], ids,
                    [rles[number] for number in numbers] if masked else None)
        for image_id, numbers in grouped.items()
    ]  # fmt: skip


def _detections(
    image_id: ImageId, rows: Sequence[PromptBox], ids: Mapping[int, int], rles: list[RLE] | None
) -> ImageDetections:
    return ImageDetections(
        image_id,
        np.array([row.score for row in rows], dtype=np.float64),
        np.array([ids[row.category_id] for row in rows], dtype=np.int64),
        np.array([row.xyxy for row in rows], dtype=np.float64),
        rles,
    )


def _listed(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:_MOST_IDS])) + (", ..." if len(ids) > _MOST_IDS else "")


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
