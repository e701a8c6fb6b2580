"""Mend annotations: ids, masks, boxes, areas."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import count
from typing import Any

import numpy as np
from msgspec import UNSET

from sam_d2.data.geometry import MIN_POLYGON, longest_outline, outline_length
from sam_d2.data.records import known
from sam_d2.doctor.clip import clip_polygon
from sam_d2.doctor.columns import Columns, drawn
from sam_d2.doctor.ids import MAX_32_BIT
from sam_d2.doctor.mend_images import raw_images
from sam_d2.doctor.parts import Part

_AREAS = ("area-absent", "area-negative", "area-nan", "area-of-box", "area-differs")


def mend_annotations(part: Part, document: Any, unsettled: set[int], counts: Counter[str]) -> None:
    """Mend what one look at the annotations settles; what depends on it is left to the next look.

    Args:
        part: the file, as it is checked.
        document: the same as parsed JSON, changed in place.
        unsettled: rows whose image has a size that is in doubt.
        counts: of what was mended, by kind; added to.
    """
    raws = raw_annotations(part, document)
    mender = _Mender(part, raws, unsettled, counts)
    mender.nest_polygons()
    dropped = mender.drop()
    mender.crowds(dropped)
    mender.masks()
    mender.boxes()
    mender.areas()
    if part.form == "coco":
        if not counts:  # last, so that none goes to an annotation that is left out
            mender.ids()
        if raws:
            document["annotations"] = [raw for raw in document["annotations"] if id(raw) not in dropped]
    else:
        for image in raw_images(document):
            if isinstance(image.get("annotations"), list):
                image["annotations"] = [raw for raw in image["annotations"] if id(raw) not in dropped]


def raw_annotations(part: Part, document: Any) -> list[dict[str, Any]]:
    """Return the objects that the table's rows were read from, in its order."""
    if part.form == "coco":
        lists = [document["annotations"]] if isinstance(document.get("annotations"), list) else []
    else:
        lists = [raw["annotations"] for raw in raw_images(document) if isinstance(raw.get("annotations"), list)]
    raws = [raw for items in lists for raw in items if isinstance(raw, dict)]
    assert len(raws) == len(part.table.annotations)
    return raws


class _Mender:
    """Goes over the rows of a file once; a row whose mask or size was changed waits for the next time."""

    def __init__(self, part: Part, raws: list[dict[str, Any]], unsettled: set[int], counts: Counter[str]) -> None:
        assert part.columns is not None  # a file that is read has them
        self.part = part
        self.columns: Columns = part.columns
        self.raws = raws
        self.waiting = set(unsettled)
        self.counts = counts

    def rows(self, kinds: Iterable[str]) -> list[tuple[int, str]]:
        """Return the rows that have a finding of these kinds and can be looked at now, each once."""
        found: dict[int, str] = {}
        for kind in kinds:
            for row in self.part.table.kind_rows[kind]:
                if row not in self.waiting:
                    found.setdefault(row, kind)
        return sorted(found.items())

    def nest_polygons(self) -> None:
        """Put a polygon that stands where a list of polygons is expected into one."""
        for row, item in enumerate(self.part.table.annotations):
            if item.segmentation is UNSET and _is_polygon(polygon := self.raws[row].get("segmentation")):
                self.raws[row]["segmentation"] = [polygon]
                self.counts["wrong-type"] += 1
                self.waiting.add(row)

    def drop(self) -> set[int]:
        """Return the ids of the Python objects of annotations to be left out, which are copies of others."""
        dropped = set()
        copies = self._copies()
        for row, kind in self.rows(["annotation-twice"]):
            if row not in copies:
                continue  # which of two track ids, say, is right is not for a program to choose
            self.counts[kind] += 1
            self.waiting.add(row)
            dropped.add(id(self.raws[row]))
        return dropped

    def _copies(self) -> set[int]:
        """Return the rows of annotations whose object, with all its keys but ``id``, is that of one before."""
        table = self.part.table
        twins = table.kind_rows["annotation-twice"]
        images = {table.image_ids[row] for row in twins}
        seen: set[tuple[Any, str]] = set()
        copies = set()
        for row, raw in enumerate(self.raws):
            if (image := table.image_ids[row]) not in images:
                continue
            said = image, json.dumps({key: value for key, value in raw.items() if key != "id"}, sort_keys=True)
            if row in twins and said in seen:
                copies.add(row)
            seen.add(said)
        return copies

    def crowds(self, dropped: set[int]) -> None:
        """Write that what does not say is no crowd region, but on those that are left out."""
        for row in self.part.table.kind_rows["iscrowd-absent"]:
            if id(self.raws[row]) not in dropped:
                self.raws[row]["iscrowd"] = 0
                self.counts["iscrowd-absent"] += 1

    def masks(self) -> None:
        """Leave out polygons of under 3 points, and clip those that reach outside, also far."""
        for row, kind in self.rows(["polygon-short"]):
            raw = self.raws[row]
            raw["segmentation"] = [one for one in raw["segmentation"] if len(one) % 2 or len(one) >= MIN_POLYGON]
            self.counts[kind] += 1
            self.waiting.add(row)
        usable = self.columns.has_mask()
        for row, kind in self.rows(["polygon-outside", "polygon-long"]):
            polygons = self.raws[row]["segmentation"]
            if not usable[row] and (kind == "polygon-outside" or any(len(one) % 2 for one in polygons)):
                continue  # of one that has another error, that first
            clipped = [part for one in polygons if (part := clip_polygon(one, *self.columns.sizes[row]))]
            if clipped and (kind == "polygon-outside" or self._has_room(row, clipped)):
                self.raws[row]["segmentation"] = clipped
                self.counts[kind] += 1
                self.waiting.add(row)

    def _has_room(self, row: int, polygons: list[list[float]]) -> bool:
        points = np.array([number for one in polygons for number in one]).reshape(-1, 2)
        length = outline_length(points, np.array([len(one) // 2 for one in polygons]))
        return bool(np.isfinite(self.columns.sizes[row]).all()) and length <= longest_outline(
            self.part.table.owners[row]
        )

    def boxes(self) -> None:
        """Write boxes anew that are of the other form, outside, or not usable."""
        usable = self.columns.has_mask()
        bounds = self.columns.bounds
        done = set()
        for row, kind in self.rows(["box-form"]):
            numbers = self.columns.numbers[row]
            turned = numbers.copy()
            turned[2:] += -numbers[:2] if self.columns.as_xywh[row] else numbers[:2]
            self.raws[row]["bbox"] = turned.tolist()
            self.counts[kind] += 1
            done.add(row)
        unread = [(row, self._unread(row, "bbox")) for row, item in enumerate(self.part.table.annotations)
                  if item.bbox is UNSET and row not in self.waiting]  # fmt: skip
        for row, kind in [*self.rows(["box-nan", "box-empty"]), *unread]:
            if usable[row] and (bounds[row, 2:] > bounds[row, :2]).all() and row not in done:
                self._write_box(row, bounds[row], kind)
        doubtful = any(finding.kind == "box-form-likely" for finding in self.part.findings)
        for row, kind in [] if doubtful else self.rows(["box-outside"]):
            limits = np.tile(self.columns.sizes[row], 2)
            box = np.clip(self.columns.boxes[row], 0, limits)
            if row not in done and (box[2:] > box[:2]).all():
                self._write_box(row, box, kind)

    def areas(self) -> None:
        """Write the mask's area."""
        usable = self.columns.has_mask() & np.isfinite(self.columns.sizes).all(axis=1)
        unread = [(row, self._unread(row, "area")) for row, item in enumerate(self.part.table.annotations)
                  if item.area is UNSET and row not in self.waiting]  # fmt: skip
        for row, kind in [*self.rows(_AREAS), *unread]:
            if usable[row]:
                pixels, _ = drawn(self.part.table.annotations[row].segmentation, *self.columns.sizes[row])
                self.raws[row]["area"] = pixels
                self.counts[kind] += 1

    def ids(self) -> None:
        """Give new ids to annotations that have none, 0, or that of one before."""
        taken = {label for item in self.part.table.annotations if isinstance(label := known(item.id), int)}  # type: ignore[attr-defined]
        # Room for all below the limit: what is above it may be the highest id that a file can hold.
        highest = max((one for one in taken if 0 <= one <= MAX_32_BIT - len(self.raws)), default=0)
        fresh = (one for one in count(highest + 1) if one not in taken)
        seen: set[int] = set()
        for row, item in enumerate(self.part.table.annotations):
            identity = known(item.id)  # type: ignore[attr-defined]  # COCO's have one
            if identity is None:
                kind = self._unread(row, "id")
            elif identity == 0:
                kind = "annotation-id-zero"
            elif identity in seen:
                kind = "annotation-id-twice"
            else:
                seen.add(identity)
                continue
            self.raws[row]["id"] = next(fresh)
            self.counts[kind] += 1

    def _write_box(self, row: int, box: np.ndarray, kind: str) -> None:
        written = box.copy()
        if self.columns.as_xywh[row]:
            written[2:] -= written[:2]
        self.raws[row]["bbox"] = written.tolist()
        self.counts[kind] += 1

    def _unread(self, row: int, key: str) -> str:
        return "wrong-type" if key in self.raws[row] else "missing-key"


def _is_polygon(value: Any) -> bool:
    numbers = isinstance(value, list) and all(type(one) in (int, float) for one in value)
    return numbers and len(value) >= MIN_POLYGON and len(value) % 2 == 0
