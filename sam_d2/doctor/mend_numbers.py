"""Write whole numbers that stand in a file as floats or as texts, as pandas and spreadsheets write them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET

from sam_d2.doctor.mend_annotations import raw_annotations
from sam_d2.doctor.mend_images import raw_images
from sam_d2.doctor.parts import Part

_KEYS = {"id", "image_id", "category_id", "iscrowd", "bbox_mode", "width", "height"}
_IDS = ("id", "image_id")  # of an image or a category; the latter in Detectron2's form
_DIGITS = re.compile(r"0|-?[1-9][0-9]{0,18}")  # as many as fit into 64 bits; 007 may be a name
_EXACT = 2**53  # beyond it a float stands for several whole numbers


def mend_numbers(part: Part, document: Any, counts: Counter[str]) -> None:
    """Write 7 where a field of whole numbers has 7.0 or "7".

    The ids of images, or of categories, stay where one of them is 7 and another "7", and so does what refers to them.

    Args:
        part: the file, as it is checked.
        document: the same as parsed JSON, changed in place.
        counts: of what was mended, by kind; added to.
    """
    if not any(finding.kind == "wrong-type" for finding in part.findings):
        return
    lists = {
        "image_id": (part.file_images, raw_images(document)),
        "category_id": (part.categories, _raw_categories(document)),
    }
    kept = {key for key, (records, raws) in lists.items() if _ambiguous(records, raws)}
    for key, (records, raws) in lists.items():
        for raw, name, number in _unread_numbers(records, raws):
            if not (name in _IDS and key in kept):
                _write(raw, name, number, counts)
    for raw, name, number in _unread_numbers(part.table.annotations, raw_annotations(part, document)):
        if name not in kept:
            _write(raw, name, number, counts)


def _write(raw: dict[str, Any], key: str, number: int, counts: Counter[str]) -> None:
    raw[key] = number
    counts["wrong-type"] += 1


def _ambiguous(records: Sequence[Any], raws: Sequence[dict[str, Any]]) -> bool:
    """Tell whether different ids would be one number."""
    ids = {(record.id, record.id) for record in records if record.id is not UNSET}
    ids |= {(number, raw[name]) for raw, name, number in _unread_numbers(records, raws) if name in _IDS}
    return len({number for number, _ in ids}) < len(ids)  # 7 and 7.0 are equal


def _raw_categories(document: Any) -> list[dict[str, Any]]:
    categories = document.get("categories") if isinstance(document, dict) else None
    return [raw for raw in categories if isinstance(raw, dict)] if isinstance(categories, list) else []


def _unread_numbers(records: Sequence[Any], raws: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], str, int]]:
    """Return object, key and number of each field that could not be read, and is a whole number all the same."""
    fields = [field for field in msgspec.structs.fields(records[0]) if field.encode_name in _KEYS] if records else []
    return [
        (raw, field.encode_name, number)
        for record, raw in zip(records, raws, strict=True)
        for field in fields
        if getattr(record, field.name) is UNSET
        and (number := _whole(raw.get(field.encode_name), field.type)) is not None
    ]


def _whole(value: Any, wanted: Any) -> int | None:
    """Return the number that a float or a text is, if a field takes it, else None."""
    exact = isinstance(value, float) and abs(value) <= _EXACT and value.is_integer()
    if not exact and not (isinstance(value, str) and _DIGITS.fullmatch(value)):
        return None
    try:
        return msgspec.convert(int(value), wanted)
    except msgspec.ValidationError:
        return None
