"""A COCO file as tables on disk: where each record stands, and the box that each annotation's prompt is made of."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sam_d2.data.dataset_file import ImageRoot, inspect_dataset_file
from sam_d2.data.decode import NOT_STRICT
from sam_d2.data.findings import WarningCounts, raise_findings
from sam_d2.data.geometry import AnnotationTable, check_geometry
from sam_d2.data.image_root import find_image_root
from sam_d2.data.json_records import IrregularJsonError, JsonRecords
from sam_d2.data.records import XYWH_ABS, CocoBoxAnnotation, CocoCategory, CocoImage
from sam_d2.errors import UserError
from sam_d2.labelling.coco_form import is_list_of_dicts, write_coco_form

logger = logging.getLogger(__name__)

LISTS = ("images", "annotations", "categories")
BOX, CROWD, NO_AREA, OUTSIDE = "box", "crowd", "no_area", "outside"
"""Kinds of annotation: with a box to prompt with, crowd, with a box without area, with one outside of the image."""

_ROWS = 4096
_FILE_NAMES = 100_000
_SCHEMA = """
CREATE TABLE members (key TEXT, begin INTEGER, end INTEGER, value TEXT);
CREATE TABLE images (row INTEGER PRIMARY KEY, begin INTEGER, end INTEGER, id INTEGER UNIQUE, file_name TEXT,
                     height INTEGER, width INTEGER);
CREATE TABLE annotations (row INTEGER PRIMARY KEY, begin INTEGER, end INTEGER, id INTEGER UNIQUE, image INTEGER,
                          kind TEXT, has_mask INTEGER, x0 REAL, y0 REAL, x1 REAL, y1 REAL);
CREATE TABLE facts (image_root TEXT);
"""
_RAW = msgspec.json.Decoder(msgspec.Raw)
_DECODERS: dict[str, msgspec.json.Decoder] = {
    "images": msgspec.json.Decoder(CocoImage),
    "annotations": msgspec.json.Decoder(CocoBoxAnnotation),
    "categories": msgspec.json.Decoder(CocoCategory),
}


@dataclass(frozen=True)
class BoxedImage:
    """An image with boxes to make masks of.

    Attributes:
        row: its place among the file's images.
        id: of the file.
        file_name: absolute.
        size: (height, width) as the file has them.
        annotations: places of the boxes' annotations (N).
        boxes: XYXY edges in pixels of the image, clipped to it, float64 (N, 4).
    """

    row: int
    id: int
    file_name: Path
    size: tuple[int, int]
    annotations: list[int]
    boxes: np.ndarray


class DatasetIndex:
    """The tables of a file that :func:`build_index` has made.

    Args:
        path: of the tables.
        source: the dataset file.
    """

    def __init__(self, path: Path, source: Path) -> None:
        self.connection = sqlite3.connect(path)
        self._file = coco_form(source, path).open("rb")
        self.image_root = Path(self.connection.execute("SELECT image_root FROM facts").fetchone()[0])

    def close(self) -> None:
        """Close the tables and the file."""
        self.connection.close()
        self._file.close()

    def count(self, table: str) -> int:
        """Return the number of records of ``images`` or ``annotations``."""
        return self.connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]

    def images_with_boxes(self, keep_existing: bool) -> Iterator[int]:
        """Return the places of the images that have a box to prompt with, in order.

        Args:
            keep_existing: leave out annotations that have a mask.
        """
        rows = self.connection.execute(
            f"SELECT DISTINCT image FROM annotations WHERE {to_prompt(keep_existing)} ORDER BY image"
        )
        return (row for (row,) in rows)

    def image(self, row: int, keep_existing: bool) -> BoxedImage:
        """Return an image and its boxes, in the file's order."""
        id_, file_name, *size = self.connection.execute(
            "SELECT id, file_name, height, width FROM images WHERE row = ?", (row,)
        ).fetchone()
        found = self.connection.execute(
            f"SELECT row, x0, y0, x1, y1 FROM annotations WHERE image = ? AND {to_prompt(keep_existing)} ORDER BY row",
            (row,),
        ).fetchall()
        return BoxedImage(
            row=row,
            id=id_,
            file_name=self.image_root / file_name,
            size=(size[0], size[1]),
            annotations=[annotation for annotation, *_ in found],
            boxes=np.array([box for _, *box in found], dtype=np.float64).reshape(-1, 4),
        )

    def read(self, begin: int, end: int) -> bytes:
        """Return bytes of the file."""
        return os.pread(self._file.fileno(), end - begin, begin)


def to_prompt(keep_existing: bool) -> str:
    """Return the condition of SQL on annotations whose box becomes a mask."""
    return f"kind = '{BOX}'" + (" AND has_mask = 0" if keep_existing else "")


def build_index(source: Path, image_roots: ImageRoot, classes: Sequence[str], path: Path) -> None:
    """Check a dataset file record by record, as :func:`sam_d2.data.load_dataset_file` does, and write its tables.

    Masks need not be there. Warnings are logged as counts.

    Args:
        source: the dataset file. One in Detectron2's form is first written in COCO's, see :func:`coco_form`.
        image_roots: folders of the images to try first.
        classes: names by class index, for a file in Detectron2's form.
        path: of the tables; there whole or not at all.

    Raises:
        UserError: the file has errors, or images are missing.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        connection = sqlite3.connect(partial, isolation_level=None)
        try:
            connection.executescript(f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; BEGIN; {_SCHEMA}")
            _Builder(connection, source, coco_form(source, path)).fill(image_roots, classes)
            connection.execute("COMMIT")
        finally:
            connection.close()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def coco_form(source: Path, path: Path) -> Path:
    """Return where a dataset file is in COCO's form: itself, or a file beside its tables."""
    return path.with_name("dataset.json") if is_list_of_dicts(source) else source


class _Builder:
    def __init__(self, connection: sqlite3.Connection, source: Path, coco: Path) -> None:
        self.connection = connection
        self.source = source
        self.coco = coco

    def fill(self, image_roots: ImageRoot, classes: Sequence[str]) -> None:
        try:
            if self.coco != self.source:
                write_coco_form(self.source, self.coco, classes)
            with self.coco.open("rb") as file:
                self._file = file
                self._scan()
                self._check_annotations()
        except (IrregularJsonError, msgspec.DecodeError, UnicodeDecodeError, sqlite3.IntegrityError, OSError) as error:
            # All problems at once, each with its place: what reading the file whole is for.
            findings = inspect_dataset_file(self.source, image_roots, require_masks=False).findings
            # What is read there all the same, and not here, where records are copied as they stand.
            errors = [replace(one, severity="error") if one.kind == NOT_STRICT else one for one in findings]
            raise_findings(errors, doctor=True)
            raise UserError(f"{self.source}: cannot be read record by record ({error}).") from error
        self.connection.execute("INSERT INTO facts VALUES (?)", (str(self._image_root(image_roots)),))
        self.connection.execute("CREATE INDEX annotations_of_image ON annotations (image)")

    def _scan(self) -> None:
        """Fill the images, the categories' ids, and the places of annotations."""
        records = JsonRecords(self.coco, LISTS)
        counts = dict.fromkeys(LISTS, 0)
        self._categories: set[int] = set()
        for key, begin, end in records:
            row = counts[key]
            counts[key] += 1
            if key == "annotations":
                self.connection.execute("INSERT INTO annotations (row, begin, end) VALUES (?, ?, ?)", (row, begin, end))
                continue
            record = _DECODERS[key].decode(self._read(begin, end))
            if key == "images":
                values = (row, begin, end, record.id, record.file_name, record.height, record.width)
                self.connection.execute("INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, ?)", values)
            else:
                _require(record.id not in self._categories, f"category id {record.id} is used twice")
                self._categories.add(record.id)
        if isinstance(info := records.members.get("info"), list):
            _RAW.decode(self._read(*info))  # is written again
        _require(counts["images"] > 0 and counts["categories"] > 0, "no images or no categories")
        for key, value in records.members.items():
            place = value if isinstance(value, list) else [None, None]
            text = None if isinstance(value, list) else msgspec.json.encode(value).decode()
            self.connection.execute("INSERT INTO members VALUES (?, ?, ?, ?)", (key, *place, text))
        _require(set(LISTS) <= records.members.keys(), "a list is missing")

    def _check_annotations(self) -> None:
        warnings = WarningCounts()
        last = -1
        while rows := self.connection.execute(
            "SELECT row, begin, end FROM annotations WHERE row > ? ORDER BY row LIMIT ?", (last, _ROWS)
        ).fetchall():
            last = rows[-1][0]
            items = [_DECODERS["annotations"].decode(self._read(begin, end)) for _, begin, end in rows]
            self._check(items, [row for row, *_ in rows], warnings)
        for line in warnings.lines():
            logger.warning(line)

    def _check(self, items: list[CocoBoxAnnotation], rows: list[int], warnings: WarningCounts) -> None:
        images = self._images_of(items)
        table = AnnotationTable(
            file=self.source,
            annotations=items,
            owners=[images[item.image_id][1] for item in items],
            image_ids=[item.image_id for item in items],
            labels=[item.id for item in items],
            modes=np.full(len(items), XYWH_ABS),
            require_masks=False,
        )
        _require(all(item.category_id in self._categories for item in items), "an unknown category")
        check_geometry(table)
        _require(not table.error_rows, "an annotation that cannot be interpreted")
        warnings.add(table.findings)
        for number, (row, item) in enumerate(zip(rows, items, strict=True)):
            image_row, image = images[item.image_id]
            kind, box = _prompt_box(item, table.new_boxes.get(number), image)
            self.connection.execute(
                "UPDATE annotations SET id=?, image=?, kind=?, has_mask=?, x0=?, y0=?, x1=?, y1=? WHERE row=?",
                (item.id, image_row, kind, number not in table.without_mask, *box, row),
            )

    def _images_of(self, items: Sequence[CocoBoxAnnotation]) -> dict[int, tuple[int, CocoImage]]:
        found: dict[int, tuple[int, CocoImage]] = {}
        for id_ in {item.image_id for item in items}:
            query = "SELECT row, file_name, height, width FROM images WHERE id = ?"
            record = self.connection.execute(query, (id_,)).fetchone()
            _require(record is not None, f"annotations of an unknown image {id_}")
            row, name, height, width = record
            found[id_] = (row, CocoImage(id=id_, file_name=name, height=height, width=width))
        return found

    def _image_root(self, image_roots: ImageRoot) -> Path:
        """Return the folder of the images, looking at some at a time; all at once where one folder serves not all."""
        given: Any = [image_roots] if isinstance(image_roots, str | Path) else image_roots or []
        rows = self.connection.execute("SELECT file_name, id FROM images ORDER BY row")
        root: Path | None = None
        while some := rows.fetchmany(_FILE_NAMES):
            names, ids = zip(*some, strict=True)
            roots = [Path(folder) for folder in given] if root is None else [root]
            found, _ = find_image_root(self.source, names, ids, roots)
            if found is None or found != (root or found):
                everything = self.connection.execute("SELECT file_name, id FROM images ORDER BY row").fetchall()
                names, ids = zip(*everything, strict=True)
                found, findings = find_image_root(self.source, names, ids, [Path(folder) for folder in given])
                raise_findings(findings)
                assert found is not None  # without an error there is one
                return found
            root = found
        assert root is not None  # there is at least one image
        return root

    def _read(self, begin: int, end: int) -> bytes:
        return os.pread(self._file.fileno(), end - begin, begin)


def _prompt_box(
    item: CocoBoxAnnotation, box_of_mask: list[float] | None, image: CocoImage
) -> tuple[str, tuple[float | None, ...]]:
    """Return the kind of an annotation, and the edges of its prompt, clipped to the image.

    Args:
        item: checked.
        box_of_mask: XYXY, the bounds of its mask where its own box has no area.
        image: that it is of.
    """
    nothing = (None, None, None, None)
    if item.iscrowd:
        return CROWD, nothing
    x, y, width, height = item.bbox
    x0, y0, x1, y1 = box_of_mask or (x, y, x + width, y + height)
    if x1 <= x0 or y1 <= y0:
        return NO_AREA, nothing
    x0, y0, x1, y1 = max(x0, 0.0), max(y0, 0.0), min(x1, float(image.width)), min(y1, float(image.height))
    if x1 <= x0 or y1 <= y0:
        return OUTSIDE, nothing
    return BOX, (x0, y0, x1, y1)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise IrregularJsonError(what)
