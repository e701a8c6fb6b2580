"""The dataset file with its new masks: all that stood in it, and in each made annotation what is new."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from sam_d2.data.json_records import IrregularJsonError, first_member
from sam_d2.errors import UserError
from sam_d2.labelling.index import BOX, CROWD, DatasetIndex
from sam_d2.labelling.journal import MADE, Journal, MadeAnnotation, sync_folder

INFO = "masks_from_boxes"
"""Key of the file's ``info`` that says how the masks were made."""
KEPT, UNREAD = "kept", "image_not_read"

_MAX_LISTED = 20
_BLOCK = 1 << 20


@dataclass
class Counts:
    """What has become of the records of a file.

    Attributes:
        images: of the file.
        images_left_out: that could not be read: file name (of the file) and problem, the first of them.
        images_unread: how many those are.
        annotations: of the file.
        made: annotations with a new mask.
        crowd: passed on untouched.
        kept: passed on with the mask that they had.
        dropped: annotations left out, by reason.
    """

    images: int
    annotations: int
    images_unread: int = 0
    images_left_out: list[tuple[str, str]] = field(default_factory=list)
    made: int = 0
    crowd: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)


def write_output(
    path: Path, journal: Journal, index: DatasetIndex, info: dict[str, Any], keep_existing: bool
) -> Counts:
    """Write the dataset file with its masks; it is there whole or not at all.

    Records that get no mask are copied byte for byte, and so are all fields but those of the mask in those that do.

    Args:
        path: of the file to write.
        journal: of a run that has finished all images.
        index: of the dataset.
        info: how the masks were made; the counts are added to it.
        keep_existing: whether annotations that had a mask keep it.

    Raises:
        UserError: the journal lacks what has become of an annotation.
    """
    problems = journal.problems()
    counts = count(journal, index, problems, keep_existing)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            _Writer(file, journal, index, set(problems), keep_existing).write({**info, **_summary(counts)})
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)
    return counts


def count(journal: Journal, index: DatasetIndex, problems: dict[int, str], keep_existing: bool) -> Counts:
    """Return what has become of the records of a file, whose run has finished all images.

    Args:
        journal: of the run.
        index: of the dataset.
        problems: of the journal.
        keep_existing: whether annotations that had a mask keep it.
    """
    kinds: dict[str, int] = {}
    query = "SELECT kind, has_mask, COUNT(*) FROM annotations {} GROUP BY kind, has_mask"
    for kind, has_mask, number in index.connection.execute(query.format("")):
        kinds[_kind(kind, has_mask, keep_existing)] = kinds.get(_kind(kind, has_mask, keep_existing), 0) + number
    unread = 0
    for row in problems:
        for kind, has_mask, number in index.connection.execute(query.format("WHERE image = ?"), (row,)):
            kinds[_kind(kind, has_mask, keep_existing)] -= number
            unread += number
    outcomes = journal.outcomes()
    dropped = {**{kind: number for kind, number in kinds.items() if kind not in (BOX, CROWD, KEPT)}, **outcomes}
    dropped.pop(MADE, None)
    dropped[UNREAD] = unread
    names = [(index.connection.execute("SELECT file_name FROM images WHERE row = ?", (row,)).fetchone()[0], problem)
             for row, problem in list(problems.items())[:_MAX_LISTED]]  # fmt: skip
    return Counts(
        images=index.count("images"),
        annotations=index.count("annotations"),
        images_unread=len(problems),
        images_left_out=names,
        made=outcomes[MADE],
        crowd=kinds.get(CROWD, 0),
        kept=kinds.get(KEPT, 0),
        dropped={reason: number for reason, number in sorted(dropped.items()) if number},
    )


def read_info(path: Path) -> dict[str, Any] | None:
    """Return what the ``info`` at the beginning of a file says of how its masks were made; None where it does not."""
    try:
        found = first_member(path)
        if found is None or found[0] != "info":
            return None
        with path.open("rb") as file:
            info = os.pread(file.fileno(), found[2] - found[1], found[1])
        made = msgspec.json.decode(info, type=dict[str, msgspec.Raw]).get(INFO)
        return None if made is None else msgspec.json.decode(made, type=dict[str, Any])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, IrregularJsonError):
        return None


def _kind(kind: str, has_mask: int, keep_existing: bool) -> str:
    return KEPT if keep_existing and has_mask and kind != CROWD else kind


def _summary(counts: Counts) -> dict[str, Any]:
    return {
        "images": {"all": counts.images, "not_read": counts.images_unread,
                   "not_read_first": [name for name, _ in counts.images_left_out]},
        "annotations": {"all": counts.annotations, "made": counts.made, "kept": counts.kept, "crowd": counts.crowd,
                        "dropped": counts.dropped},
    }  # fmt: skip


class _Writer:
    def __init__(
        self, file: BinaryIO, journal: Journal, index: DatasetIndex, unread: set[int], keep_existing: bool
    ) -> None:
        self.file = file
        self.journal = journal
        self.index = index
        self.unread = unread
        self.keep_existing = keep_existing

    def write(self, made: dict[str, Any]) -> None:
        members = self.index.connection.execute("SELECT key, begin, end, value FROM members").fetchall()
        self.file.write(b'{"info":' + msgspec.json.encode(self._info(members, made)))
        for key, begin, end, value in members:
            if key == "info":
                continue
            self.file.write(b",\n" + msgspec.json.encode(key) + b":")
            if key == "images":
                self._list(self._images())
            elif key == "annotations":
                self._list(self._annotations())
            elif begin is None:
                self.file.write(value.encode())
            else:
                for block in range(begin, end, _BLOCK):
                    self.file.write(self.index.read(block, min(block + _BLOCK, end)))
        self.file.write(b"}\n")

    def _info(self, members: list[tuple[Any, ...]], made: dict[str, Any]) -> dict[str, Any]:
        """Return the file's own info with what is new; an info that is no object is kept under a key."""
        own: dict[str, Any] = {}
        for key, begin, end, value in members:
            if key == "info":
                info = value.encode() if begin is None else self.index.read(begin, end)
                is_object = info[:1] == b"{"
                own = (
                    msgspec.json.decode(info, type=dict[str, msgspec.Raw])
                    if is_object
                    else {"source": msgspec.Raw(info)}
                )
        return {**own, INFO: made}

    def _list(self, records: Iterator[bytes]) -> None:
        self.file.write(b"[")
        separator = b"\n"
        for record in records:
            self.file.write(separator + record)
            separator = b",\n"
        self.file.write(b"\n]")

    def _images(self) -> Iterator[bytes]:
        for row, begin, end in self.index.connection.execute("SELECT row, begin, end FROM images ORDER BY row"):
            if row not in self.unread:
                yield self.index.read(begin, end)

    def _annotations(self) -> Iterator[bytes]:
        made = self.journal.made()
        query = "SELECT row, begin, end, image, kind, has_mask FROM annotations ORDER BY row"
        for row, begin, end, image, kind, has_mask in self.index.connection.execute(query):
            kind = _kind(kind, has_mask, self.keep_existing)
            if image in self.unread:
                continue
            if kind in (CROWD, KEPT):
                yield self.index.read(begin, end)
            elif kind == BOX:
                fields = self._made(made, row).fields
                if fields is not None:
                    yield _with_fields(self.index.read(begin, end), fields)

    def _made(self, made: Iterator[MadeAnnotation], row: int) -> MadeAnnotation:
        found = next(made, None)
        if found is None or found.row != row:
            raise UserError(
                f"{self.journal.folder}: the journal lacks what has become of annotation {row} of the file (from 0). "
                "Delete it to begin anew."
            )
        return found


def _with_fields(record: bytes, fields: bytes) -> bytes:
    """Return a JSON object with fields replaced in their places, or added at its end; others keep their bytes.

    An annotation that says nothing of a crowd is none: pycocotools' evaluation reads the key without asking.
    """
    kept = msgspec.json.decode(record, type=dict[str, msgspec.Raw])
    kept.update(msgspec.json.decode(fields, type=dict[str, msgspec.Raw]))
    kept.setdefault("iscrowd", msgspec.Raw(b"0"))
    return msgspec.json.encode(kept)
