"""Boxes to prompt SAM with, from a file in COCO's results form: another detector's, or drawn by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from sam_d2.errors import UserError

Number = Annotated[float, Meta(ge=-1e9, le=1e9)]
Side = Annotated[float, Meta(ge=0, le=1e9)]


class PromptBox(Struct, kw_only=True):
    """A row of the file.

    Attributes:
        bbox: XYWH, pixels of the original image.
        image_id: of the image; its file's name without the suffix serves, leading zeros or not.
        file_name: of the image, with as many of its folders as it takes; where there are no ids.
        category_id: of what is in the box, handed on to the mask.
        score: of the box, 0-1.
        segmentation: the mask that its maker gave it, as COCO has it; no prompt, but his own to be compared with.
    """

    bbox: tuple[Number, Number, Side, Side]
    image_id: int | str | None = None
    file_name: Annotated[str, Meta(min_length=1)] | None = None
    category_id: int = 0
    score: float = 1.0
    segmentation: Any = None

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
        UserError: the file is missing, or a row of it is none.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            content = self.path.read_bytes()
            self.rows = msgspec.json.decode(content, type=list[PromptBox])
        except OSError as error:
            raise UserError(f"--prompt-boxes {path}: cannot be read ({error.strerror}).") from error
        except msgspec.DecodeError as error:
            raise UserError(
                f"--prompt-boxes {path}: no COCO results list ({_row_without_number(content) or error}). Expected "
                '[{"file_name": "a.jpg", "bbox": [x, y, width, height], "category_id": 1, "score": 0.9}, ...].'
            ) from error
        self._by_name: dict[str, list[PromptBox]] = {}
        self._by_id: dict[str, list[PromptBox]] = {}
        for number, row in enumerate(self.rows):
            if row.file_name is not None:
                self._by_name.setdefault(Path(row.file_name).name, []).append(row)
            elif row.image_id is not None:
                self._by_id.setdefault(_id_text(row.image_id), []).append(row)
            else:
                raise UserError(f"--prompt-boxes {path}: row {number} has neither image_id nor file_name; add one.")

    def of(self, image: Path) -> list[PromptBox]:
        """Return the boxes of an image file, in the file's order; none where it names no such image."""
        named = [row for row in self._by_name.get(image.name, []) if same_file(Path(str(row.file_name)), image)]
        return named or self._by_id.get(_id_text(image.stem), []) or self._by_id.get(image.name, [])


def image_id_of(image: Path) -> int | None:
    """Return the id in a file's name, as COCO has it: 139 of 000000000139.jpg; None where it is no number."""
    return int(image.stem) if image.stem.isdecimal() and image.stem.isascii() else None


def _row_without_number(content: bytes) -> str:
    """Say which row of a file has NaN or Infinity, which Python's json writes though JSON has none; else nothing."""
    try:
        rows = json.loads(content)
    except ValueError:
        return ""
    for number, row in enumerate(rows if isinstance(rows, list) else []):
        for name, value in row.items() if isinstance(row, dict) else ():
            if any(isinstance(one, float) and not math.isfinite(one) for one in [value, *_list(value)]):
                return f"row {number}: {name} is {value}, no finite number; correct or drop it"
    return ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _id_text(image_id: int | str) -> str:
    text = str(image_id)
    return str(int(text)) if text.isdecimal() and text.isascii() else text


def same_file(named: Path, image: Path) -> bool:
    """Tell whether one path ends in the other."""
    first, second = named.parts, image.absolute().parts
    common = min(len(first), len(second))
    return first[-common:] == second[-common:]
