"""Check the ids of a dataset file: each used once, and referring to something."""

from collections import Counter
from collections.abc import Container, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

from msgspec import UNSET

from sam_d2.data.findings import Finding, shortened
from sam_d2.data.records import CocoFile, domain_name, known

_CORRECT_ID = "correct the id, or add the record"
_UNIQUE = "give every record its own id"


def check_references(records: CocoFile, file: Path, broken: Container[str] = ()) -> list[Finding]:
    """Return what is wrong with the ids of a COCO file: used twice, or referring to nothing.

    Args:
        records: what could be read.
        file: for the findings.
        broken: keys of the lists that are reported as missing; the records have them empty.
    """
    findings = [
        *(duplicate_images(records.images, file) if "images" not in broken else ()),
        *(
            Finding("error", file, None, key, "id", f"{count} annotations have it", _UNIQUE, kind="annotation-id-twice")
            for key, count in _duplicates(annotation.id for annotation in records.annotations)
        ),
        *(
            Finding("error", file, None, None, "categories.id", f"{count} categories have id {key}", _UNIQUE,
                    kind="category-id-twice")
            for key, count in _duplicates(category.id for category in records.categories)
        ),
        *(
            Finding(
                "warning", file, None, None, "categories.name", f"{count} have the name {key!r}",
                "they stay separate classes", kind="category-name-twice",
            )
            for key, count in _duplicates(category.name for category in records.categories)
        ),
    ]  # fmt: skip
    findings += foreign_domains(records.images, file)
    if not records.categories and "categories" not in broken:
        findings.append(
            Finding("error", file, None, None, "categories", "none", "name at least one category", kind="no-categories")
        )
    for key, ids, what in (
        ("image_id", {image.id for image in records.images}, "images"),
        ("category_id", {category.id for category in records.categories}, "categories"),
    ):
        if not ids or UNSET in ids:
            continue  # that list is broken and reported; every annotation would follow
        for annotation in records.annotations:
            value = getattr(annotation, key)
            if value not in ids and value is not UNSET:
                image_id, label = known(annotation.image_id), known(annotation.id)
                found = f"{value} is not among the file's {what}"
                kind = f"unknown-{key.removesuffix('_id')}"
                findings.append(Finding("error", file, image_id, label, key, found, _CORRECT_ID, kind=kind))
    return findings


def duplicate_images(images: Sequence[Any], file: Path) -> list[Finding]:
    """Return which image ids occur twice in COCO's images or Detectron2's dicts, or that there are none."""
    if not images:
        return [
            Finding(
                "error", file, None, None, "images", "none", "the file must hold at least one image", kind="no-images"
            )
        ]
    return [
        Finding("error", file, key, None, "id", f"{count} images have it", _UNIQUE, kind="image-id-twice")
        for key, count in _duplicates(image.id for image in images)
    ]


def foreign_domains(images: Sequence[Any], file: Path) -> list[Finding]:
    """Return warnings on what stands for the domain of COCO's images or Detectron2's dicts and names none."""
    return [
        Finding("warning", file, known(image.id), None, "domain", shortened(image.domain),
                "it is ignored; for an AP of each domain, write a name such as 'sketch'", kind="foreign-value")
        for image in images if known(image.domain) is not None and domain_name(image.domain) is None
    ]  # fmt: skip


def _duplicates(values: Iterable[Hashable]) -> list[tuple[Any, int]]:
    counts = Counter(values)
    return [(value, count) for value, count in counts.items() if count > 1 and value is not UNSET]
