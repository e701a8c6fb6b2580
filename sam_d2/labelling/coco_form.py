"""Detectron2's list of dicts as a COCO file, record by record."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from sam_d2.data.json_records import JsonRecords
from sam_d2.data.records import XYXY_ABS, DatasetBoxDict
from sam_d2.errors import UserError

_UTF8_BOM = b"\xef\xbb\xbf"
_RECORD = msgspec.json.Decoder(DatasetBoxDict)
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANNOTATIONS = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])


def is_list_of_dicts(file: Path) -> bool:
    """Tell whether a dataset file is in Detectron2's form: its first character says so."""
    with file.open("rb") as opened:
        return opened.read(64).removeprefix(_UTF8_BOM).lstrip()[:1] == b"["


def write_coco_form(file: Path, target: Path, classes: Sequence[str]) -> None:
    """Write a file in Detectron2's form again in COCO's; all fields that are not of the form itself are kept.

    Category ids are the class indices. Annotations without ids are numbered from 1, all of them where one has none.

    Args:
        file: in Detectron2's form.
        target: of the COCO file.
        classes: names by class index; further ones are made up.

    Raises:
        UserError: an image id is no whole number, which is what COCO has.
        IrregularJsonError: the file cannot be read record by record.
        msgspec.DecodeError: a record of it is none.
    """
    numbered, count = False, len(classes)
    for _, record in _records(file):
        if not isinstance(record.id, int):
            raise UserError(
                f"{file}: image_id {record.id!r} is text; COCO's form, which is written, has whole numbers. "
                "Number the images."
            )
        numbered = numbered or any(item.id is None for item in record.annotations)
        count = max(count, *(item.category_id + 1 for item in record.annotations), 0)
    names = [*classes, *(f"class_{index}" for index in range(len(classes), count))]
    categories = [{"id": index, "name": name} for index, name in enumerate(names)]
    with target.open("wb") as output:
        output.write(b'{"categories":' + msgspec.json.encode(categories) + b',\n"images":[')
        separator = b"\n"
        for content, record in _records(file):
            output.write(separator + msgspec.json.encode(_image(content, record)))
            separator = b",\n"
        output.write(b'],\n"annotations":[')
        separator, number = b"\n", 0
        for content, record in _records(file):
            for fields, item in zip(
                _ANNOTATIONS.decode(_FIELDS.decode(content)["annotations"]), record.annotations, strict=True
            ):
                number += 1
                id_ = number if numbered else item.id
                output.write(separator + msgspec.json.encode(_annotation(fields, item, id_, record.id)))
                separator = b",\n"
        output.write(b"]}\n")


def _records(file: Path) -> Iterator[tuple[bytes, DatasetBoxDict]]:
    with file.open("rb") as opened:
        for _, begin, end in JsonRecords(file, ("",)):
            content = os.pread(opened.fileno(), end - begin, begin)
            yield content, _RECORD.decode(content)


def _image(content: bytes, record: DatasetBoxDict) -> dict[str, Any]:
    fields = _FIELDS.decode(content)
    rest = {key: value for key, value in fields.items() if key not in ("image_id", "annotations")}
    return {"id": record.id, **rest}


def _annotation(fields: dict[str, Any], item: Any, id_: int | None, image_id: Any) -> dict[str, Any]:
    x0, y0, x1, y1 = item.bbox
    box = [x0, y0, x1 - x0, y1 - y0] if item.bbox_mode == XYXY_ABS else item.bbox
    rest = {key: value for key, value in fields.items() if key not in ("id", "bbox_mode")}
    return {"id": id_, "image_id": image_id, **rest, "bbox": box}
