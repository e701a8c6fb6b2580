"""The files of a dataset, each read once, with what was found in it."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, Struct

from sam_d2.data.dataset_file import find_root
from sam_d2.data.decode import read_content
from sam_d2.data.finding_kinds import Severity
from sam_d2.data.findings import Finding, RecordId
from sam_d2.data.full_check import check_records
from sam_d2.data.geometry import AnnotationTable
from sam_d2.data.image_root import RENAME, alike_names, missing_files, names_folder, names_text, search_folders
from sam_d2.data.records import CocoCategory, CocoFile, known
from sam_d2.doctor.columns import Columns

MISSING = "image-missing"


class _Supercategory(Struct):
    supercategory: str | None = None


class _Supercategories(Struct):
    categories: list[_Supercategory]


@dataclass(frozen=True)
class Source:
    """A file to check.

    Attributes:
        split: ``train``, ``val``, ``test``, or of a file that is divided both, such as ``train and test``; "" of a lone
            file.
        json_file: absolute path.
        image_roots: folders of its images, to try first.
        shared: whether the training and another split are not parts of it, and therefore have images in common.
    """

    split: str
    json_file: Path
    image_roots: tuple[Path, ...] = ()
    shared: bool = False


@dataclass
class Part:
    """A file that was read, and what was found so far.

    Attributes:
        source: which file.
        form: ``coco``, ``detectron2``, or None where the file as a whole cannot be read.
        images: records in the file's order, or in that of their ids.
        categories: of COCO's form.
        table: the annotations; ``kind_rows`` has the rows of each kind of finding.
        findings: all, in the order in which they were found.
        root: folder of the images; where some are missing, that which has the most; None where none is found.
        absent: places in ``images`` of those that are missing under ``root``.
        kind_images: by kind of finding, the places in ``images``.
        parents: names that categories have as their supercategory.
        file_images: the same records as ``images``, in the file's order.
        columns: of the annotations; None until they are checked.
    """

    source: Source
    form: str | None
    images: list[Any]
    categories: list[CocoCategory]
    table: AnnotationTable
    findings: list[Finding]
    root: Path | None = None
    absent: set[int] = field(default_factory=set)
    kind_images: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    parents: set[str] = field(default_factory=set)
    file_images: list[Any] = field(default_factory=list)
    columns: Columns | None = None

    @property
    def file(self) -> Path:
        """The dataset file."""
        return self.source.json_file

    def report_file(self, severity: Severity, key: str, found: str, fix: str, kind: str) -> None:
        """Add a finding on the file as a whole."""
        self.findings.append(Finding(severity, self.file, None, None, key, found, fix, kind=kind))

    def report_image(self, place: int, severity: Severity, key: str, found: str, fix: str, kind: str) -> None:
        """Add a finding on an image."""
        self.kind_images[kind].add(place)
        self.findings.append(Finding(severity, self.file, self.image_label(place), None, key, found, fix, kind=kind))

    def report_row(self, row: int, severity: Severity, key: str, found: str, fix: str, kind: str) -> None:
        """Add a finding on an annotation."""
        self.table.report(row, severity, key, found, fix, kind)
        self.findings.append(self.table.findings[-1])

    def image_label(self, place: int) -> RecordId:
        """Return what messages call an image."""
        identity = known(self.images[place].id)
        return f"images[{place}]" if identity is None else identity

    def without_annotations(self) -> list[int]:
        """Return the places of images that have none: negatives, or forgotten, which the file does not tell."""
        owners = set(map(id, self.table.owners))
        return [place for place, image in enumerate(self.images) if id(image) not in owners]

    def paths(self) -> Iterator[tuple[int, Path]]:
        """Return the place and the path of each image that is there."""
        if self.root is None:
            return
        for place, image in enumerate(self.images):
            if image.file_name is not UNSET and place not in self.absent:
                yield place, self.root / image.file_name

    def replace_findings(self, kinds: set[str], rows: set[int]) -> None:
        """Forget findings of some kinds on some rows: one that says more takes their place."""
        of_rows = zip(self.table.findings, self.table.finding_rows, strict=True)
        gone = {id(finding) for finding, row in of_rows if row in rows and finding.kind in kinds}
        self.findings = [finding for finding in self.findings if id(finding) not in gone]
        for kind in kinds:
            self.table.kind_rows[kind] -= rows


def read_part(source: Source, content: np.ndarray | None = None) -> Part:
    """Read a file as training does, however damaged it is, and look for its images.

    Args:
        source: which file.
        content: what it would hold, uint8 (n,), instead of what it does.
    """
    problem = None
    if content is None:
        content, problem = read_content(source.json_file)
    checked = check_records(source.json_file, content, problem, require_masks=True)
    records = checked.records
    form = None if records is None else "coco" if isinstance(records, CocoFile) else "detectron2"
    categories = records.categories if isinstance(records, CocoFile) else []
    part = Part(source, form, checked.images, categories, checked.table, checked.findings)
    part.file_images = records.images if isinstance(records, CocoFile) else part.images
    if part.images:
        _find_images(part)
    if form == "coco":
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):  # of a damaged file the errors say enough
            named = msgspec.json.decode(content.data, type=_Supercategories).categories
            part.parents = {category.supercategory for category in named if category.supercategory}
    return part


def _find_images(part: Part) -> None:
    """Find the folder of the images; of those that are missing there each has a finding of its own."""
    part.root, findings = find_root(part.file, part.images, part.source.image_roots)
    part.findings += [finding for finding in findings if finding.kind != MISSING]
    missing = [finding for finding in findings if finding.kind == MISSING]
    if not missing:
        return
    places = [place for place, image in enumerate(part.images) if image.file_name is not UNSET]
    names = [part.images[place].file_name for place in places]
    folders = search_folders(part.file, part.source.image_roots)
    absent, root = min(((missing_files(folder, names), folder) for folder in folders), key=lambda pair: len(pair[0]))
    if len(absent) == len(names):
        here = "here: --image-root DIR, for a lone file; for training "
        part.findings += [
            replace(finding, fix=here + finding.fix) if names_folder(finding) else finding for finding in missing
        ]
        return
    part.root, gone = root, set(absent)
    alike = alike_names(root, absent)
    for place, name in zip(places, names, strict=True):
        if name in gone:
            part.absent.add(place)
            found = f"{name!r} is not under {root}"
            fix = "restore the file, or remove the image and its annotations from the dataset file"
            if (other := alike.get(name)) is not None:
                asked, there = names_text(name, other)
                found, fix = f"{asked} is not under {root}, but {there} is", RENAME
            part.report_image(place, "error", "file_name", found, fix, MISSING)
