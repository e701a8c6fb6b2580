"""Check ids and names beyond what reading needs: what other programs trip over, and what nobody meant."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable
from typing import Any

from msgspec import UNSET

from sam_d2.data.records import Annotation, Rle, known
from sam_d2.doctor.parts import Part

MAX_32_BIT = 2**31 - 1
_WIDE = "sam_d2 takes ids of up to 64 bits; programs that keep them in 32 bits cut them off"


def check_ids(part: Part) -> None:
    """Find ids that are 0 or wide, categories that nothing uses, and records that are there twice."""
    if part.form == "coco":
        _check_annotation_ids(part)
        _check_categories(part)
    elif part.form == "detectron2":
        _check_classes(part)
    _check_images(part)
    _check_twins(part)


def _check_annotation_ids(part: Part) -> None:
    for row, label in enumerate(part.table.labels):
        if label == 0:
            fix = "sam_d2 takes it, but pycocotools counts a match with annotation 0 as none: number them from 1 on"
            part.report_row(row, "warning", "id", "0", fix, "annotation-id-zero")
        elif isinstance(label, int) and abs(label) > MAX_32_BIT:
            part.report_row(row, "warning", "id", str(label), _WIDE, "id-above-32-bits")


def _check_categories(part: Part) -> None:
    used = {item.category_id for item in part.table.annotations if item.category_id is not UNSET}
    ids = {item.id for item in part.categories if item.id is not UNSET}
    for category in part.categories:
        identity = known(category.id)
        if identity is not None and abs(identity) > MAX_32_BIT:
            part.report_file("warning", "categories.id", str(identity), _WIDE, "id-above-32-bits")
        if identity is None or identity in used or not part.table.annotations:
            continue
        if identity == 0 and known(category.name) in part.parents:
            found = f"id 0, {category.name!r}: no annotation has it, and it is the supercategory of others"
            fix = (
                "it is an exporter's parent of the classes, not a class: it is trained as one all the same; "
                "remove it from every file of the dataset"
            )
            part.report_file("warning", "categories", found, fix, "category-zero-unused")
        else:
            found = f"id {identity}, {known(category.name)!r}: no annotation has it"
            fix = "it stays a class, and its AP is left out; remove it from every file, if nothing is missing"
            part.report_file("warning", "categories", found, fix, "category-unused")
    several = len(used) >= min(2, len(ids))  # one alone of many may be a mistake of its own
    for step, words in ((1, "one less than"), (-1, "one more than")):
        if ids and several and not used <= ids and {identity + step for identity in used} <= ids:
            found = f"{min(used)} to {max(used)}, each {words} a category's id ({min(ids)} to {max(ids)})"
            fix = "were the ids counted from 0 in one place and from 1 in the other? write the category's own id"
            part.report_file("error", "category_id", found, fix, "category-ids-shifted")


def _check_classes(part: Part) -> None:
    used = {item.category_id for item in part.table.annotations if item.category_id is not UNSET}
    for index in sorted(set(range(max(used, default=-1) + 1)) - used):
        if index == 0:
            found = f"{min(used)} to {max(used)}: no annotation has class 0"
            fix = "it is a class index, from 0 on, not an id: a class that nothing has would be trained; subtract 1"
            part.report_file("warning", "category_id", found, fix, "class-zero-unused")
        else:
            found = f"class index {index}: no annotation has it"
            fix = "it stays a class, and its AP is left out; close the gap, if nothing is missing"
            part.report_file("warning", "category_id", found, fix, "category-unused")


def _check_images(part: Part) -> None:
    names: defaultdict[str, list[int]] = defaultdict(list)
    for place, image in enumerate(part.images):
        identity = known(image.id)
        if isinstance(identity, int) and abs(identity) > MAX_32_BIT:
            part.report_image(place, "warning", "id", str(identity), _WIDE, "id-above-32-bits")
        if image.file_name is not UNSET:
            names[image.file_name].append(place)
    for name, places in names.items():
        for place in places[1:]:
            found = f"{name!r} is that of image {part.image_label(places[0])} too"
            fix = "one image, one record: put its annotations under one id"
            part.report_image(place, "warning", "file_name", found, fix, "file-name-twice")


def _check_twins(part: Part) -> None:
    """Find annotations that say the same of the same image, but for their ids."""
    rows: defaultdict[Any, list[int]] = defaultdict(list)
    for row, item in enumerate(part.table.annotations):
        if item.bbox is not UNSET and item.segmentation and part.table.image_ids[row] is not None:
            rows[part.table.image_ids[row], item.category_id, tuple(item.bbox)].append(row)
    for alike in rows.values():
        if len(alike) == 1:
            continue  # nearly all: no key of a whole mask is made
        firsts: dict[Hashable, int] = {}
        for row in alike:
            twin = firsts.setdefault(_mask_key(part.table.annotations[row]), row)
            if twin == row:
                continue
            found = f"class, box and mask are those of annotation {part.table.labels[twin]}"
            fix = "a model that finds it once misses the other: remove it"
            part.report_row(row, "warning", "annotation", found, fix, "annotation-twice")


def _mask_key(item: Annotation) -> Hashable:
    """Return what is the same of annotations with the same mask, and of which both are crowd regions or neither."""
    mask, crowd = item.segmentation, bool(known(item.iscrowd))
    if isinstance(mask, Rle):
        return crowd, tuple(mask.size), mask.counts if isinstance(mask.counts, str) else tuple(mask.counts)
    return crowd, tuple(map(tuple, mask or ()))


def most_common_classes(part: Part) -> Counter[int]:
    """Return how many instances, crowd regions left out, each category id has."""
    return Counter(
        item.category_id for item in part.table.annotations if item.category_id is not UNSET and not known(item.iscrowd)
    )
