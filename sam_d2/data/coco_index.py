"""Open a COCO file of any size: the places of its annotations, checked, without keeping what they hold.

A sound file is read by this; of one that is not, :func:`index_coco` returns None, and reading it whole says what is
wrong with it. So the messages are written in one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Raw, Struct

from sam_d2.data.decode import ANNOTATION_DECODERS, place_in
from sam_d2.data.findings import Finding
from sam_d2.data.geometry import SOUND, AnnotationTable, Repair, check_geometry
from sam_d2.data.lazy_dicts import AnnotationStore
from sam_d2.data.quick_checks import suspicious_rows
from sam_d2.data.records import XYWH_ABS, CocoAnnotation, CocoCategory, CocoFile, CocoImage, Id
from sam_d2.data.references import check_references

_CHUNK = 16384  # annotations that are decoded at a time
_MAX_GAP = 256  # bytes of white space between two annotations


class _Frame(Struct, gc=False):
    images: list[CocoImage]
    annotations: list[Raw]
    categories: list[CocoCategory]


class _Reference(Struct, gc=False):
    id: Id
    image_id: Id
    category_id: Id


_FRAME = msgspec.json.Decoder(_Frame)
_REFERENCE = msgspec.json.Decoder(_Reference)


@dataclass
class CocoIndex:
    """A COCO file without errors.

    Attributes:
        images: in ascending order of their ids.
        categories: in ascending order of their ids.
        begins: where each annotation's record begins in the file's content, int64 (N,), in the file's order.
        ends: the byte after each, int64 (N,).
        owners: place in ``images`` of each annotation's, int64 (N,).
        classes: place in ``categories`` of each annotation's, int64 (N,).
        repairs: by row, what the checks conclude where they have found something.
        findings: warnings; without those on masks and boxes where they are not checked.
    """

    images: list[CocoImage]
    categories: list[CocoCategory]
    begins: np.ndarray
    ends: np.ndarray
    owners: np.ndarray
    classes: np.ndarray
    repairs: dict[int, Repair]
    findings: list[Finding]

    def store(
        self, content: np.ndarray, *, require_masks: bool, pending: tuple[Path, list[CocoImage]] | None
    ) -> AnnotationStore:
        """Return the annotations by image, as :class:`AnnotationStore` describes its attributes.

        Args:
            content: of the file.
            require_masks: whether annotations without a mask are left out.
            pending: set where they are not checked.
        """
        kept = np.ones(len(self.owners), dtype=bool)
        if require_masks:
            kept[[row for row, repair in self.repairs.items() if not repair.has_mask]] = False
        rows = np.flatnonzero(kept)
        rows = rows[np.argsort(self.owners[rows], kind="stable")]
        places = {row: place for place, row in enumerate(rows.tolist()) if row in self.repairs} if self.repairs else {}
        return AnnotationStore(
            content=content,
            begins=self.begins[rows],
            ends=self.ends[rows],
            categories=self.classes[rows],
            firsts=np.searchsorted(self.owners[rows], np.arange(len(self.images) + 1)),
            repairs={place: self.repairs[row] for row, place in places.items()},
            require_masks=require_masks,
            pending=pending,
        )


def index_coco(
    file: Path, content: np.ndarray, *, require_masks: bool = True, check_annotations: bool = True
) -> CocoIndex | None:
    """Return what a COCO file holds, or None where it has an error, or no instance with a mask.

    Args:
        file: for the findings.
        content: its bytes, uint8 (n,).
        require_masks: as for :func:`sam_d2.data.inspect_dataset_file`.
        check_annotations: False to look at the ids of annotations alone.
    """
    try:
        frame = _FRAME.decode(content.data)
        findings = check_references(CocoFile(images=frame.images, annotations=[], categories=frame.categories), file)
        if any(finding.severity == "error" for finding in findings):
            return None
        images = sorted(frame.images, key=attrgetter("id"))
        categories = sorted(frame.categories, key=attrgetter("id"))
        begins, ends = _places(content, frame.annotations)
        decode = (ANNOTATION_DECODERS[require_masks] if check_annotations else _REFERENCE).decode
        suspects: list[tuple[int, CocoAnnotation]] = []
        owners, classes = np.empty_like(begins), np.empty_like(begins)
        ids = np.empty_like(begins)
        image_ids, category_ids = _column(images, "id"), _column(categories, "id")
        sizes = np.stack((_column(images, "width"), _column(images, "height")), axis=1)
        has_mask = not (check_annotations and require_masks)
        for first in range(0, len(ids), _CHUNK):
            items = list(map(decode, frame.annotations[first : first + _CHUNK]))
            rows = slice(first, first + len(items))
            ids[rows] = _column(items, "id")
            owners[rows] = _rows_of(_column(items, "image_id"), image_ids)
            classes[rows] = _rows_of(_column(items, "category_id"), category_ids)
            if check_annotations:
                has_mask = has_mask or any(item.segmentation and not item.iscrowd for item in items)
                found = suspicious_rows(items, sizes[owners[rows]])
                suspects += [(first + row, items[row]) for row in found.tolist()]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, _UnknownIdError):
        return None
    ids.sort()
    if not has_mask or (ids[1:] == ids[:-1]).any():
        return None
    table = AnnotationTable(
        file=file,
        annotations=[item for _, item in suspects],
        owners=[images[owners[row]] for row, _ in suspects],
        image_ids=[item.image_id for _, item in suspects],
        labels=[item.id for _, item in suspects],
        modes=np.full(len(suspects), XYWH_ABS),
        require_masks=require_masks,
    )
    check_geometry(table)
    if table.error_rows:
        return None
    repairs = {row: table.repair(place) for place, (row, _) in enumerate(suspects)}
    repairs = {row: repair for row, repair in repairs.items() if repair != SOUND}
    return CocoIndex(images, categories, begins, ends, owners, classes, repairs, findings + table.findings)


def _column(items: Sequence[Any], key: str) -> np.ndarray:
    """Return a whole-number field of records, int64 (N,)."""
    return np.fromiter(map(attrgetter(key), items), dtype=np.int64, count=len(items))


def _rows_of(values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the place of each value (N,) among the ascending ids (M,)."""
    rows = np.minimum(np.searchsorted(ids, values), len(ids) - 1)
    if (ids[rows] != values).any():
        raise _UnknownIdError
    return rows


class _UnknownIdError(ValueError):
    """An annotation refers to nothing."""


def _places(content: np.ndarray, records: list[Raw]) -> tuple[np.ndarray, np.ndarray]:
    """Return where each record begins in the content, and the byte after it, int64 (N,).

    msgspec's Raw is a view of the content that does not tell its place, and asking for its address takes longer than
    decoding it. But most files have the same bytes between all records: then lengths give the places.

    They are certain where the bytes between them are the same and the last record lies where they say. Between two
    records there are white space and a comma only. A longer gap makes all later places too early, until shorter gaps
    have made up for it; but before the place that is right again lie fewer such bytes than asked for, so that there is
    a bracket among them.
    """
    lengths = np.fromiter(map(len, map(memoryview, records)), dtype=np.int64, count=len(records))  # type: ignore[arg-type]
    begins = np.empty_like(lengths)
    if len(records):
        begins[0] = place_in(content, records[0])
    if len(records) > 1:
        gap = place_in(content, records[1]) - int(begins[0] + lengths[0])
        begins[1:] = begins[0] + np.cumsum(lengths[:-1] + gap)
        ends = begins + lengths
        uniform = begins[-1] == place_in(content, records[-1]) and gap <= _MAX_GAP
        if not uniform or any(_differ(content[ends[:-1] + offset]) for offset in range(gap)):
            begins = np.fromiter((place_in(content, record) for record in records), dtype=np.int64, count=len(records))
    return begins, begins + lengths


def _differ(values: np.ndarray) -> bool:
    return bool((values != values[0]).any())
