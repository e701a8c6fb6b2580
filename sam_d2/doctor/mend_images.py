"""Mend the records of images and categories."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import UNSET

from sam_d2.data.geometry import reach_outside
from sam_d2.data.records import Rle
from sam_d2.doctor.columns import read_boxes
from sam_d2.doctor.images import ImageFacts
from sam_d2.doctor.parts import Part

_UPRIGHT = (0, 1)  # EXIF orientations that turn nothing
_ENOUGH_BOXES = 2  # a lone box may be wrong itself


def mend_images(part: Part, document: Any, facts: dict[Path, ImageFacts], counts: Counter[str]) -> set[int]:
    """Write sizes that the image files settle, and leave one of records that are the same.

    Args:
        part: the file, as it is checked.
        document: the same as parsed JSON, changed in place.
        facts: of the images, where they were read.
        counts: of what was mended, by kind; added to.

    Returns:
        The rows of annotations that cannot be mended yet, because the size of their image is in doubt or was mended.
    """
    raws = raw_images(document)
    raw_of = {id(record): raw for record, raw in zip(part.file_images, raws, strict=True)}
    rows_of: defaultdict[int, list[int]] = defaultdict(list)
    for row, owner in enumerate(part.table.owners):
        rows_of[id(owner)].append(row)
    doubtful: set[int] = set()
    for place, path in part.paths():
        image = part.images[place]
        fact = facts.get(path)
        unknown = UNSET in (image.width, image.height)
        if fact is None or fact.kind or not (unknown or place in part.kind_images["image-size"]):
            continue
        doubtful.add(id(image))
        rows = rows_of.get(id(image), [])
        swapped = (image.height, image.width) == fact.size
        # What fits both sizes tells nothing: the file beside the records may be another image, or one that was turned.
        told = unknown or (swapped and _shows_another(part, rows, (image.width, image.height)))
        if fact.orientation in _UPRIGHT and told and _fits(part, rows, fact.size):
            raw = raw_of[id(image)]
            kind = "image-size" if not unknown else "wrong-type" if {"width", "height"} <= raw.keys() else "missing-key"
            raw["width"], raw["height"] = fact.size
            counts[kind] += 1
    if isinstance(document, dict):
        for key, kind in (("images", "image-id-twice"), ("categories", "category-id-twice")):
            if isinstance(document.get(key), list):
                document[key] = _without_copies(document[key], kind, counts)
    return {row for image_id in doubtful for row in rows_of.get(image_id, [])}


def raw_images(document: Any) -> list[dict[str, Any]]:
    """Return the objects that are read as images, in their order."""
    images = document.get("images") if isinstance(document, dict) else document
    return [raw for raw in images if isinstance(raw, dict)] if isinstance(images, list) else []


def _fits(part: Part, rows: list[int], size: tuple[int, int]) -> bool:
    """Tell whether all masks and boxes of an image lie in a size."""
    columns = part.columns
    assert columns is not None  # a file that is read has them
    limits = np.array(size)
    return all(_mask_fits(part, row, size) for row in rows) and not reach_outside(columns.boxes[rows], limits).any()


def _shows_another(part: Part, rows: list[int], size: tuple[int, int]) -> bool:
    """Tell whether the annotations of an image show that it has another size: a mask, or two boxes.

    A box beside its mask shows nothing, nor does one that would fit if it were meant in the other form.
    """
    columns = part.columns
    assert columns is not None  # a file that is read has them
    if not all(_mask_fits(part, row, size) for row in rows):
        return True
    lone = [row for row in rows if np.isnan(columns.mask_areas[row])]  # not has_mask(), which is of the whole file
    others = read_boxes(columns.numbers[lone], ~columns.as_xywh[lone])
    limits = np.array(size)
    mistaken = (others[:, 2:] > others[:, :2]).all(axis=1) & ~reach_outside(others, limits)
    return int((reach_outside(columns.boxes[lone], limits) & ~mistaken).sum()) >= _ENOUGH_BOXES


def _mask_fits(part: Part, row: int, size: tuple[int, int]) -> bool:
    mask, columns = part.table.annotations[row].segmentation, part.columns
    assert columns is not None
    if isinstance(mask, Rle) and list(mask.size) != [*reversed(size)]:
        return False
    return not reach_outside(columns.bounds[[row]], np.array(size)).any()


def _without_copies(raws: list[Any], kind: str, counts: Counter[str]) -> list[Any]:
    firsts: dict[Any, Any] = {}
    kept = []
    for raw in raws:
        identity = raw.get("id") if isinstance(raw, dict) else None
        if isinstance(identity, int) and firsts.setdefault(identity, raw) is not raw and firsts[identity] == raw:
            counts[kind] += 1
        else:
            kept.append(raw)
    return kept
