"""Boxes to prompt SAM with, from a file in COCO's results form: another detector's, or drawn by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from sam_d2.data.decode import decode_rows, row_of
from sam_d2.data.findings import Finding, grouped_rows, raise_findings
from sam_d2.data.records import Id, Segmentation
from sam_d2.errors import UserError

Number = Annotated[float, Meta(ge=-1e9, le=1e9)]
Side = Annotated[float, Meta(ge=0, le=1e9)]
EXPECTED = (
    'expected a COCO results list [{"image_id": 1, "bbox": [x, y, width, height], "category_id": 1, "score": 0.9}, '
    '...], with "file_name" for "image_id" where there are no ids'
)


class PromptBox(Struct, kw_only=True):
    """A row of the file.

    Attributes:
        bbox: XYWH, pixels of the original image.
        image_id: of the image; its file's name without the suffix serves, leading zeros or not.
        file_name: of the image, with as many of its folders as it takes; where there are no ids.
        category_id: of what is in the box, handed on to the mask; UNSET where the file has none.
        score: of the box, 0-1; UNSET where the file has none.
        segmentation: the mask that its maker gave it, as COCO has it; no prompt, but his own to be compared with.
    """

    bbox: Annotated[
        tuple[Number, Number, Side, Side],
        Meta(description="x, y, width and height in pixels of the original image, finite numbers, no side below 0"),
    ]
    image_id: Annotated[int | str | None, Meta(description="the id of an image of the dataset")] = None
    file_name: Annotated[
        Annotated[str, Meta(min_length=1)] | None, Meta(description="the name of an image's file, not empty")
    ] = None
    category_id: Annotated[Id | UnsetType, Meta(description="a category id of the dataset, a whole number")] = UNSET
    score: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | UnsetType,
        Meta(description="a finite number from 0 to 1; divide percentages by 100, apply the sigmoid to logits"),
    ] = UNSET
    segmentation: Segmentation = None

    @property
    def category(self) -> int:
        """The category id, 0 where there is none."""
        return 0 if self.category_id is UNSET else self.category_id

    @property
    def xyxy(self) -> list[float]:
        """The box as x0, y0, x1, y1."""
        x, y, width, height = self.bbox
        return [x, y, x + width, y + height]


class PromptBoxes:
    """The boxes of a file, found by image.

    Args:
        path: a JSON list of ``{"image_id" or "file_name", "bbox": [x, y, w, h], "category_id", "score"}``.

    Raises:
        UserError: the file is missing, or it or some of its rows cannot be interpreted; the message lists the first
            of these with row, field, what was found and the remedy.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.rows, findings = decode_rows(self.path, PromptBox, EXPECTED)
        except OSError as error:
            raise UserError(f"--prompt-boxes {path}: cannot be read ({error.strerror}).") from error
        self._by_name: dict[str, list[PromptBox]] = {}
        self._by_id: dict[str, list[PromptBox]] = {}
        for number, row in enumerate(self.rows):
            if row.file_name is not None:
                self._by_name.setdefault(Path(row.file_name).name, []).append(row)
            elif row.image_id is not None:
                self._by_id.setdefault(_id_text(row.image_id), []).append(row)
            else:
                findings.append(self.finding(number, "image_id", "missing key", "add it, or a file_name"))
        raise_findings(grouped_rows(findings))

    def finding(self, number: int, field: str, found: str, fix: str) -> Finding:
        """Return a problem of a row: its number, from 0 on, the field, what stands there and what to do."""
        row = msgspec.structs.asdict(self.rows[number])
        return Finding("error", self.path, None, None, field, found, fix, rows=(number,), row_of=row_of(row))

    def of(self, image: Path) -> list[PromptBox]:
        """Return the boxes of an image file, in the file's order; none where it names no such image."""
        named = [row for row in self._by_name.get(image.name, []) if same_file(Path(str(row.file_name)), image)]
        return named or self._by_id.get(_id_text(image.stem), []) or self._by_id.get(image.name, [])


def id_in_name(image: Path) -> int | None:
    """Return the id in a file's name, as COCO has it: 139 of 000000000139.jpg; None where it is no number."""
    return int(image.stem) if image.stem.isdecimal() and image.stem.isascii() else None


def _id_text(image_id: int | str) -> str:
    text = str(image_id)
    return str(int(text)) if text.isdecimal() and text.isascii() else text


def same_file(named: Path, image: Path) -> bool:
    """Tell whether one path ends in the other."""
    first, second = named.parts, image.absolute().parts
    common = min(len(first), len(second))
    return first[-common:] == second[-common:]
