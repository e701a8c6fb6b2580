"""Boxes from a COCO results list of any other system, checked against the dataset that they are to prompt SAM on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import UNSET

import sam_d2  # noqa: F401  (makes detectron2 importable)
from detectron2.data import DatasetCatalog, MetadataCatalog
from sam_d2.data.findings import Finding, grouped_rows, raise_findings
from sam_d2.data.geometry import MIN_POLYGON, AnnotationTable, check_geometry, compressed_rle
from sam_d2.data.prompt_boxes import PromptBox, PromptBoxes, same_file
from sam_d2.data.records import XYWH_ABS, Annotation, Image, Rle
from sam_d2.evaluation.detections import ImageDetections
from sam_d2.evaluation.ground_truth import RLE, ImageId, image_id_of, to_rle

_MOST_IDS = 10


def read_prompt_file(path: str | Path, dataset_name: str) -> list[ImageDetections]:
    """Read the boxes of a file for the images of a dataset.

    Args:
        path: A JSON list of ``{"image_id", "category_id", "bbox": [x, y, width, height], "score"}``, pixels of the
            original images, ids those of the dataset's annotation file, scores 0-1. ``file_name`` finds an image too,
            where there is no ``image_id``.
        dataset_name: Registered name.

    Returns:
        One entry for each image that the file has boxes of, in the file's order, as they stand there (they may reach
        out of the image or be empty). Masks too, where every row has a ``segmentation``.

    Raises:
        UserError: The file is missing or is no such list, or rows name an image or category that the dataset does not
            have, have an ``image_id`` and a ``file_name`` of two images, no score, or a mask that cannot be read. The
            message lists the first of these rows.
    """
    boxes = PromptBoxes(path)
    images = _Images(DatasetCatalog.get(dataset_name), dataset_name)
    # from_catalog's classes: their order, and the file's id of each
    metadata = MetadataCatalog.get(dataset_name)
    ids: Mapping[int, int] = metadata.get("thing_dataset_id_to_contiguous_id") or {
        index: index for index in range(len(metadata.thing_classes))
    }
    masked = bool(boxes.rows) and all(row.segmentation for row in boxes.rows)
    grouped: dict[ImageId, list[int]] = {}
    owners: dict[int, Mapping[str, Any]] = {}
    findings = _check_scores(boxes)
    for number, row in enumerate(boxes.rows):
        record, problem = images.of(row)
        if row.category_id is UNSET or row.category_id not in ids:
            fix = f"expected a category id of {dataset_name}: {_listed(sorted(ids))}"
            found = "missing" if row.category_id is UNSET else str(row.category_id)
            findings.append(boxes.finding(number, "category_id", found, fix))
        if record is None:
            findings.append(boxes.finding(number, *problem))
            continue
        grouped.setdefault(image_id_of(record), []).append(number)
        owners[number] = record
    rles, wrong_masks = _masks(boxes, owners) if masked else ({}, [])
    raise_findings(grouped_rows(findings + wrong_masks))
    return [
        detections_of(image_id, [boxes.rows[number] for number in numbers],
                      [ids[boxes.rows[number].category] for number in numbers],
                      [rles[number] for number in numbers] if masked else None)
        for image_id, numbers in grouped.items()
    ]  # fmt: skip


def detections_of(
    image_id: ImageId, rows: Sequence[PromptBox], classes: Sequence[int], rles: list[RLE] | None = None
) -> ImageDetections:
    """Return the boxes of an image as a detector's.

    Args:
        image_id: Of the image.
        rows: N of its boxes; one without a score counts as certain.
        classes: N, for each box.
        rles: N masks of the boxes' maker; None where it made none.
    """
    return ImageDetections(
        image_id,
        np.array([1.0 if row.score is UNSET else row.score for row in rows], dtype=np.float64),
        np.array(classes, dtype=np.int64),
        np.array([row.xyxy for row in rows], dtype=np.float64).reshape(-1, 4),
        rles,
    )


def _check_scores(boxes: PromptBoxes) -> list[Finding]:
    """A box without a score would be surer than every other."""
    without = [number for number, row in enumerate(boxes.rows) if row.score is UNSET]
    if not without:
        return []
    found = f"missing key, as in {len(without)} of {len(boxes.rows)} rows"
    return [boxes.finding(without[0], "score", found, "add it, 0 to 1; the same in all rows where nothing is surer")]


def _masks(boxes: PromptBoxes, owners: Mapping[int, Mapping[str, Any]]) -> tuple[dict[int, RLE], list[Finding]]:
    """The masks of rows, whose images are known, by number, and what is wrong with them: a dataset's own checks."""
    numbers = list(owners)
    rows = [boxes.rows[number] for number in numbers]
    sizes = [(int(owners[number]["height"]), int(owners[number]["width"])) for number in numbers]
    table = AnnotationTable(
        file=boxes.path,
        annotations=[
            Annotation(category_id=row.category, bbox=list(row.bbox), segmentation=row.segmentation) for row in rows
        ],
        owners=[Image(file_name="", height=height, width=width) for height, width in sizes],
        image_ids=[None] * len(rows),
        labels=numbers,
        modes=np.full(len(rows), XYWH_ABS),
    )
    check_geometry(table)
    findings = [
        boxes.finding(int(one.annotation_id or 0), one.field, one.found, one.fix)
        for one in table.findings
        if one.severity == "error"
    ]
    fix = "write polygons of 3 points or more or an RLE, or leave the segmentation of all rows out"
    findings += [
        boxes.finding(numbers[place], "segmentation", "no polygon has 3 points", fix)
        for place in sorted(table.without_mask - table.error_rows)
    ]
    if findings:
        return {}, findings
    return {
        number: to_rle(
            compressed_rle(row.segmentation)
            if isinstance(row.segmentation, Rle)
            else [polygon for polygon in row.segmentation or [] if len(polygon) >= MIN_POLYGON],
            size,
        )
        for number, row, size in zip(numbers, rows, sizes, strict=True)
    }, []


def _listed(ids: Sequence[ImageId]) -> str:
    return ", ".join(map(str, ids[:_MOST_IDS])) + (", ..." if len(ids) > _MOST_IDS else "")


class _Images:
    """The images of a dataset, found by what a row of results says of them.

    Args:
        records: Of the dataset.
        name: Of the dataset, for messages.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]], name: str) -> None:
        self._by_id = {image_id_of(record): record for record in records}
        self._by_name: dict[str, list[Mapping[str, Any]]] = {}
        for record in records:
            self._by_name.setdefault(Path(record.get("file_name", "")).name, []).append(record)
        has = f", it has {_listed([*self._by_id])}" if self._by_id else ""
        self._unknown = f"{name} has no such image{has}; leave the row out, or take results on this dataset"

    def of(self, row: PromptBox) -> tuple[Mapping[str, Any] | None, tuple[str, str, str]]:
        """The dataset dict that a row is of, or None and what is wrong: field, what was found, remedy.

        An id decides. A name beside it must be that of the image's file; its folders may have been others.
        """
        if row.image_id is None:
            named = Path(str(row.file_name))
            fitting = [one for one in self._by_name.get(named.name, []) if same_file(named, Path(one["file_name"]))]
            if len(fitting) > 1:
                fix = "name more of its folders, or the image_id"
                return None, ("file_name", f"{row.file_name!r} fits {len(fitting)} images", fix)
            return (fitting[0] if fitting else None), ("file_name", repr(row.file_name), self._unknown)
        record = self._by_id.get(row.image_id)
        unknown = self._unknown if row.file_name is None else f"{self._unknown}, or leave the id out: the name decides"
        problem = ("image_id", repr(row.image_id), unknown)
        if record is not None and row.file_name is not None:
            own = Path(record.get("file_name", row.file_name)).name
            if own != Path(row.file_name).name:
                found = f"{row.file_name!r}, but image {row.image_id!r} is {own!r}"
                return None, ("file_name", found, "correct one of the two, or leave it out")
        return record, problem
