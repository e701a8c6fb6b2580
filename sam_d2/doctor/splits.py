"""Check the files of a dataset against one another: images in two of them, classes that differ."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from sam_d2.data.records import known
from sam_d2.doctor.images import ImageFacts
from sam_d2.doctor.parts import Part

_SHOWN = 5


def check_splits(parts: Sequence[Part], facts: dict[Path, ImageFacts]) -> None:
    """Add findings on images that occur twice, and on the classes of files that are trained and tested together.

    Args:
        parts: of one dataset, in the order train, val, test.
        facts: of the images that were read; of the others the path alone is compared.
    """
    for part in parts:
        if part.source.shared and part.images:
            found = f"{part.source.split} are this file, with images in common"
            fix = (
                "a score on images that were trained on says nothing: name a file of other images, or divide this one "
                "(tools/register_dataset.py --split 0.8)"
            )
            part.report_file("warning", "file", found, fix, "image-in-both")
    _check_twice(parts, facts)
    for part in parts[1:]:
        _check_classes(parts[0], part)


def _check_twice(parts: Sequence[Part], facts: dict[Path, ImageFacts]) -> None:
    by_path: dict[str, tuple[Part, int]] = {}
    by_digest: dict[str, tuple[Part, int]] = {}
    for part in parts:
        for place, path in part.paths():
            same = by_path.setdefault(os.path.realpath(path), (part, place))
            digest = facts[path].digest if path in facts else ""
            alike = by_digest.setdefault(digest, (part, place)) if digest else same
            for first, what in ((same, "is the file"), (alike, "has the pixels")):
                if first != (part, place):
                    _report_twice(part, place, first, what)
                    break


def _report_twice(part: Part, place: int, first: tuple[Part, int], what: str) -> None:
    other, other_place = first
    name = part.images[place].file_name
    if part is not other:
        found = f"{name!r} {what} of image {other.image_label(other_place)} in {other.file.name}"
        fix = "a score on an image that was trained on says nothing: keep it in one of the files"
        part.report_image(place, "warning", "file_name", found, fix, "image-in-both")
    elif part.images[other_place].file_name != name:  # two records of one name are a finding of their own
        found = f"{name!r} {what} of image {part.image_label(other_place)}, {part.images[other_place].file_name!r}"
        fix = "one image, one record: where one file is split 80:20, the two may fall on both sides"
        part.report_image(place, "warning", "file_name", found, fix, "image-twice")


def _check_classes(train: Part, part: Part) -> None:
    if train.form != "coco" or part.form != "coco":
        return
    ours, theirs = (
        [known(item.name) for item in sorted(one.categories, key=lambda item: known(item.id) or 0)]
        for one in (train, part)
    )
    if ours != theirs:
        found = f"{_names(theirs)}, but {train.file.name} has {_names(ours)}"
        fix = "write the same categories, in the same order of ids, into both files"
        part.report_file("error", "categories", found, fix, "classes-differ")
        return
    trained, tested = (
        {item.category_id for item in one.table.annotations if not known(item.iscrowd)} for one in (train, part)
    )
    names = {item.id: known(item.name) for item in part.categories}
    for key in sorted(tested - trained, key=str):
        if key in names:
            found = f"{names[key]!r} has instances here and none in {train.file.name}"
            fix = "it cannot be learned, and its AP of 0 counts in the mean: move images, or leave the class out"
            part.report_file("warning", "category_id", found, fix, "class-not-trained")


def _names(names: Sequence[str | None]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names)} ({shown})"
