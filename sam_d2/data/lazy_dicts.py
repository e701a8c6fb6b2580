"""Detectron2's dataset dicts of a COCO file whose annotations are decoded when they are read.

The file's bytes are kept as they are, with the place of each annotation in them: less memory than the numbers of its
polygons as Python objects take, none of it with a reference count, so that processes share it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from sam_d2.data.dataset_dicts import annotation_dict, image_path
from sam_d2.data.decode import ANNOTATION_DECODERS, decode_coco_annotations
from sam_d2.data.findings import raise_findings
from sam_d2.data.geometry import SOUND, AnnotationTable, Repair, check_geometry
from sam_d2.data.records import XYWH_ABS, CocoAnnotation, CocoImage, domain_name


class PendingCheck(NamedTuple):
    """What the checks of an image's annotations need where they are put off until those are read.

    Attributes:
        file: for messages.
        image: the record.
    """

    file: Path
    image: CocoImage


@dataclass(frozen=True, slots=True)
class ImageAnnotations:
    """The annotations of an image, not decoded, with all that it takes to do so: what a process hands to another.

    Attributes:
        records: of each annotation the JSON object, bytes or a uint8 array.
        categories: of each the class index.
        repairs: what the checks conclude on some of them, by their place here.
        require_masks: whether one without a mask is left out.
        pending: set where they are not checked yet.
    """

    records: list[Any]
    categories: list[int]
    repairs: dict[int, Repair]
    require_masks: bool
    pending: PendingCheck | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Return the annotations in Detectron2's form, each decoded when it is asked for.

        Raises:
            UserError: they were not checked before, and there are errors: file, ids, what was found and the fix.
        """
        items, repairs = self._checked() if self.pending is not None else (self._decoded(), self.repairs)
        for row, (item, category) in enumerate(zip(items, self.categories, strict=True)):
            repair = repairs.get(row, SOUND)
            if repair.has_mask or not self.require_masks:
                yield annotation_dict(item, category, XYWH_ABS, repair)

    def _decoded(self) -> Iterator[CocoAnnotation]:
        return map(ANNOTATION_DECODERS[self.require_masks].decode, self.records)

    def _checked(self) -> tuple[list[CocoAnnotation], dict[int, Repair]]:
        assert self.pending is not None
        file, image = self.pending
        items, findings = decode_coco_annotations(file, self.records, require_masks=self.require_masks)
        raise_findings(findings, doctor=True)
        table = AnnotationTable(
            file=file,
            annotations=items,
            owners=[image] * len(items),
            image_ids=[image.id] * len(items),
            labels=[item.id for item in items],
            modes=np.full(len(items), XYWH_ABS),
            require_masks=self.require_masks,
        )
        check_geometry(table)
        raise_findings([finding for finding in table.findings if finding.severity == "error"], doctor=True)
        return items, {row: table.repair(row) for row in range(len(items))}


def decode_annotations(annotations: ImageAnnotations) -> list[dict[str, Any]]:
    """Return the annotations of an image in Detectron2's form; what pickle calls."""
    return list(annotations)


@dataclass(frozen=True)
class AnnotationStore:
    """The annotations of a file, those of an image next to each other.

    Attributes:
        content: the file's bytes, uint8.
        begins: where each annotation begins in them, int64 (N,).
        ends: the byte after each, int64 (N,).
        categories: class index of each, int64 (N,).
        firsts: place of each image's first annotation, and N, int64 (images + 1,).
        repairs: what the checks conclude on some annotations, by their place. Where masks are required, those without
            one are not in the store.
        require_masks: whether an annotation without a mask is left out.
        pending: the images and the file, where annotations are to be checked when they are read.
    """

    content: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    categories: np.ndarray
    firsts: np.ndarray
    repairs: dict[int, Repair]
    require_masks: bool
    pending: tuple[Path, list[CocoImage]] | None = None

    def of_image(self, image: int) -> ImageAnnotations:
        """Return the annotations of the image at a place."""
        first, last = self.firsts[image : image + 2].tolist()
        places = zip(self.begins[first:last].tolist(), self.ends[first:last].tolist(), strict=True)
        return ImageAnnotations(
            records=[self.content[begin:end] for begin, end in places],
            categories=self.categories[first:last].tolist(),
            repairs={row - first: self.repairs[row] for row in range(first, last) if row in self.repairs}
            if self.repairs
            else {},
            require_masks=self.require_masks,
            pending=None if self.pending is None else PendingCheck(self.pending[0], self.pending[1][image]),
        )


class LazyAnnotations(Sequence):
    """The annotations of an image as Detectron2's dicts, which are made each time they are read and never kept.

    It equals a list of the same dicts, and copying it deeply or pickling it gives such a list. It cannot be changed:
    a dict that was read from it is the reader's own, and changing that changes nothing here.
    """

    __slots__ = ("image", "store")

    def __init__(self, store: AnnotationStore, image: int) -> None:
        self.store = store
        self.image = image

    def __len__(self) -> int:
        if self.store.pending is not None:
            return len(self.decode())
        return int(self.store.firsts[self.image + 1] - self.store.firsts[self.image])

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        return self.decode()[index]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.store.of_image(self.image))  # one by one: who looks for one of a kind need not decode all

    def __eq__(self, other: object) -> bool:
        return self.decode() == list(other) if isinstance(other, list | LazyAnnotations) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as a list's

    def __repr__(self) -> str:
        return repr(self.decode())

    def __reduce__(self) -> tuple[Any, ...]:
        found = self.store.of_image(self.image)
        return decode_annotations, (ImageAnnotations(
            [record.tobytes() for record in found.records],
            found.categories, found.repairs, found.require_masks, found.pending,
        ),)  # fmt: skip

    def decode(self) -> list[dict[str, Any]]:
        """Return a list of them."""
        return list(self.store.of_image(self.image))

    @property
    def categories(self) -> list[int]:
        """The class index of each, without decoding any; where checks are put off, also of those to be left out."""
        first, last = self.store.firsts[self.image : self.image + 2].tolist()
        return self.store.categories[first:last].tolist()


class LazyDatasetDicts(Sequence):
    """Detectron2's dataset dicts of a COCO file; each is made when it is read, with :class:`LazyAnnotations`.

    Args:
        images: the records, in the order of the dicts.
        root: what file names are relative to.
        store: the annotations of these images.
    """

    def __init__(self, images: list[CocoImage], root: Path, store: AnnotationStore) -> None:
        self.images = images
        self.root = str(root)
        self.store = store

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        rows = range(len(self.images))[index]
        return self._record(rows) if isinstance(rows, int) else [self._record(row) for row in rows]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self._record, range(len(self.images)))

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, list | LazyDatasetDicts) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as a list's

    def _record(self, row: int) -> dict[str, Any]:
        image = self.images[row]
        record = {
            "file_name": image_path(self.root, image.file_name),
            "height": image.height,
            "width": image.width,
            "image_id": image.id,
            "annotations": LazyAnnotations(self.store, row),
        }
        if (domain := domain_name(image.domain)) is not None:
            record["domain"] = domain
        return record


def count_annotations(dataset: Iterable[dict[str, Any]]) -> int:
    """Return the number of annotations of dataset dicts; where checks are put off, also of those to be left out."""
    if isinstance(dataset, LazyDatasetDicts):
        return len(dataset.store.begins)
    return sum(len(record["annotations"]) for record in dataset)


def count_categories(dataset: Iterable[dict[str, Any]]) -> Counter[int]:
    """Return how often each class index occurs in dataset dicts, where it can be without decoding annotations."""
    counts: Counter[int] = Counter()
    for record in dataset:
        counts.update(_categories(record))
    return counts


def count_empty(dataset: Iterable[dict[str, Any]]) -> int:
    """Return how many dataset dicts have no annotation, where it can be without decoding any."""
    return sum(not _categories(record) for record in dataset)


def _categories(record: dict[str, Any]) -> list[int]:
    found = record["annotations"]
    return found.categories if isinstance(found, LazyAnnotations) else [item["category_id"] for item in found]
