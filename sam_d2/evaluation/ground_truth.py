"""Annotations of a dataset as a COCO ground truth in memory, with ids that no evaluator can trip over.

COCO's matching code stores annotation ids in float arrays in which 0 means "no match", and its C++ variants
hold them in fixed-width integers. Here every annotation and image therefore gets a number from 1 on; the
image ids and category ids of the file are kept beside and come back in what is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as mask_utils

import sam_d2  # noqa: F401  (makes detectron2 importable)
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from sam_d2.errors import UserError

RLE = dict[str, Any]
"""Compressed run-length encoding of one mask: ``{"size": [H0, W0], "counts": bytes}``, original frame."""

ImageId = int | str


class Annotation(NamedTuple):
    """One annotated instance in the original frame.

    Attributes:
        category: Contiguous class id, from 0.
        rle: Its mask as pycocotools rasterises it; has no pixel where the polygon encloses no pixel centre.
        bbox: XYWH in pixels, continuous edges.
        area: The file's, in square pixels; that of the mask where the file has none.
        crowd: Whether it is a region to ignore rather than an instance.
    """

    category: int
    rle: RLE
    bbox: tuple[float, float, float, float]
    area: float
    crowd: bool
    has_mask: bool = True


@dataclass
class AnnotatedImage:
    """One image with its annotations, in file order.

    Attributes:
        image_id: The dataset's own id.
        number: The id that the evaluation engines see, from 1; set by :class:`GroundTruth`.
        domain: What sort of image it is, such as ``sketch``; None where the dataset does not say.
        pseudo: Of the annotations, how many a model made.
        file_name: As registered.
        size: (H0, W0) in pixels.
        annotations: Crowd regions included.
    """

    image_id: ImageId
    file_name: str
    size: tuple[int, int]
    annotations: list[Annotation] = field(default_factory=list)
    number: int = 0
    domain: str | None = None
    pseudo: int = 0

    @property
    def instances(self) -> list[Annotation]:
        """The annotations that are instances, as the mapper gives them: with a mask, not crowd, in file order."""
        return [annotation for annotation in self.annotations if annotation.has_mask and not annotation.crowd]


class GroundTruth:
    """All images and annotations of a dataset, ready for evaluation.

    Attributes:
        images: Images without annotations included; by id where all ids are integers, as COCO's own tools
            order them (it decides which of equal scores ranks first), else in the dataset's order.
        class_names: By contiguous class id. They name the metrics, so one that is there already has its category id
            behind it: ``cell``, ``cell (id 2)``.
        category_ids: The file's category id of each class.
        name: Of the dataset, for messages.
    """

    def __init__(
        self,
        images: Sequence[AnnotatedImage],
        class_names: Sequence[str],
        category_ids: Sequence[int] | None = None,
        name: str = "dataset",
    ) -> None:
        self.images = list(images)
        if all(isinstance(image.image_id, int) for image in self.images):
            self.images.sort(key=lambda image: image.image_id)
        for number, image in enumerate(self.images, 1):
            image.number = number
        self.category_ids = list(range(len(class_names)) if category_ids is None else category_ids)
        self.class_names = _distinct(class_names, self.category_ids)
        self.name = name
        self._by_id: dict[ImageId, AnnotatedImage] = {}
        for image in self.images:
            if image.image_id in self._by_id:
                raise UserError(f"{name}: two images have the id {image.image_id!r}; make the ids unique")
            self._by_id[image.image_id] = image

    def __getitem__(self, image_id: ImageId) -> AnnotatedImage:
        """The image of that id.

        Raises:
            UserError: The dataset has no such image.
        """
        try:
            return self._by_id[image_id]
        except KeyError:
            raise UserError(
                f"{self.name}: there are predictions for image id {image_id!r}, which is not in the dataset; "
                "evaluate on the dataset that the images came from"
            ) from None

    def most_instances(self, *, boxes: bool = False) -> int:
        """The largest number of instances in one image, counted as in :meth:`count_instances`; 0 without images."""
        return max((_count(image, boxes) for image in self.images), default=0)

    def count_instances(self, *, boxes: bool = False) -> int:
        """The number of instances in all images; crowd regions are none.

        Args:
            boxes: Count the instances without a mask too, which have a box to find.
        """
        return sum(_count(image, boxes) for image in self.images)

    @cached_property
    def pseudo(self) -> int:
        """The number of annotations that a model made: those with a ``provenance``."""
        return sum(image.pseudo for image in self.images)

    @cached_property
    def domains(self) -> list[str]:
        """The domains of the images, in alphabetical order; images without one are of none."""
        return sorted({image.domain for image in self.images if image.domain is not None})

    def of_domain(self, domain: str) -> GroundTruth:
        """The images of one domain with all classes, as a ground truth of their own."""
        images = [replace(image) for image in self.images if image.domain == domain]  # numbered anew there
        return GroundTruth(images, self.class_names, self.category_ids, f"{self.name}, domain {domain}")

    @cached_property
    def digest(self) -> str:
        """16 hex digits that tell one ground truth from another: of all that figures depend on, file names not.

        Masks count as they are rasterised, so a polygon and its RLE are the same.
        """
        digest = hashlib.sha256(repr(self.class_names).encode())
        for image in self.images:
            domain = () if image.domain is None else (image.domain,)
            digest.update(repr((image.image_id, image.size, *domain)).encode())
            for one in image.annotations:
                facts = one._replace(rle=one.rle["counts"])  # its size is the image's
                digest.update(repr(tuple(facts)).encode())
        return digest.hexdigest()[:16]

    @classmethod
    def from_catalog(cls, name: str) -> GroundTruth:
        """The ground truth of a registered dataset.

        Args:
            name: As in ``DatasetCatalog``.
        """
        dicts = DatasetCatalog.get(name)  # fills the metadata of datasets that are read lazily
        metadata = MetadataCatalog.get(name)
        to_contiguous: Mapping[int, int] | None = metadata.get("thing_dataset_id_to_contiguous_id")
        category_ids = sorted(to_contiguous, key=to_contiguous.__getitem__) if to_contiguous else None
        return cls.from_dataset_dicts(dicts, metadata.thing_classes, category_ids=category_ids, name=name)

    @classmethod
    def from_dataset_dicts(
        cls,
        dicts: Sequence[Mapping[str, Any]],
        class_names: Sequence[str],
        *,
        category_ids: Sequence[int] | None = None,
        name: str = "dataset",
    ) -> GroundTruth:
        """The ground truth of a list of dicts in Detectron2's standard form.

        Args:
            dicts: One per image; ``image_id`` may be an integer of any size or a string, and is the file name
                where absent, and there may be a ``domain``. Annotations may have polygons, compressed or
                uncompressed RLE, or none of these, and a ``provenance`` where a model made them.
            class_names: By contiguous class id.
            category_ids: The file's id of each class; the contiguous ids where None.
            name: For messages.

        Raises:
            UserError: An annotation's class, box or mask cannot be interpreted, or an image id is repeated.
        """
        images = []
        for record in dicts:
            size = (int(record["height"]), int(record["width"]))
            file_name = str(record.get("file_name", ""))
            image = AnnotatedImage(image_id_of(record), file_name, size, domain=record.get("domain"))
            for index, annotation in enumerate(record.get("annotations", ())):
                where = f"{name}: image id {image.image_id!r} ({file_name}), annotation {index}"
                image.annotations.append(_annotation(annotation, size, len(class_names), where))
                image.pseudo += annotation.get("provenance") is not None
            images.append(image)
        return cls(images, class_names, category_ids, name)

    @classmethod
    def from_coco(cls, coco: Mapping[str, Any], *, name: str = "dataset") -> GroundTruth:
        """The ground truth of a COCO annotation file's content.

        Args:
            coco: With ``images``, ``annotations`` and ``categories``.
            name: For messages.

        Raises:
            UserError: As for :meth:`from_dataset_dicts`, or an annotation names an unknown image or category.
        """
        categories = sorted(coco["categories"], key=lambda category: category["id"])
        contiguous = {category["id"]: index for index, category in enumerate(categories)}
        records = {image["id"]: {**image, "image_id": image["id"], "annotations": []} for image in coco["images"]}
        for annotation in coco["annotations"]:
            if annotation["image_id"] not in records or annotation["category_id"] not in contiguous:
                raise UserError(
                    f"{name}: annotation {annotation.get('id')} names image {annotation['image_id']!r} and "
                    f"category {annotation['category_id']!r}, which the file does not list; add or drop it"
                )
            records[annotation["image_id"]]["annotations"].append(
                {
                    **annotation,
                    "category_id": contiguous[annotation["category_id"]],
                    "bbox_mode": BoxMode.XYWH_ABS,
                }
            )
        names = [str(category["name"]) for category in categories]
        return cls.from_dataset_dicts(list(records.values()), names, category_ids=list(contiguous), name=name)


def _count(image: AnnotatedImage, boxes: bool) -> int:
    return sum(not one.crowd for one in image.annotations) if boxes else len(image.instances)


def image_id_of(record: Mapping[str, Any]) -> ImageId:
    """What an evaluation knows the image of a dataset dict by: its id, or its file's name where it has none."""
    image_id: ImageId = record.get("image_id", record.get("file_name", ""))
    return image_id


def to_rle(segmentation: Any, size: tuple[int, int]) -> RLE:
    """Rasterise one annotation's segmentation as pycocotools does.

    Args:
        segmentation: Polygons ([[x, y, ...], ...] in the original frame), compressed or uncompressed RLE, or
            an empty list for no mask.
        size: (H0, W0) of the image.

    Raises:
        ValueError: An RLE is of another size than the image.
    """
    height, width = size
    if isinstance(segmentation, Mapping):
        if tuple(segmentation["size"]) != (height, width):
            raise ValueError(f"its RLE has (height, width) {tuple(segmentation['size'])}, the image {(height, width)}")
        counts = segmentation["counts"]
        if isinstance(counts, (str, bytes)):
            return {
                "size": [height, width],
                "counts": counts.encode("ascii") if isinstance(counts, str) else counts,
            }
        return mask_utils.frPyObjects(dict(segmentation), height, width)
    if not len(segmentation):
        return mask_utils.frPyObjects({"size": [height, width], "counts": [height * width]}, height, width)
    polygons = [np.asarray(polygon, dtype=np.float64).tolist() for polygon in segmentation]
    return mask_utils.merge(mask_utils.frPyObjects(polygons, height, width))


def _distinct(names: Sequence[str], category_ids: Sequence[int]) -> list[str]:
    distinct: dict[str, None] = {}
    for index, name in enumerate(names):
        while name in distinct:
            name = f"{name} (id {category_ids[index]})"
        distinct[name] = None
    return list(distinct)


def _annotation(record: Mapping[str, Any], size: tuple[int, int], num_classes: int, where: str) -> Annotation:
    category = record["category_id"]
    if not 0 <= category < num_classes:
        raise UserError(f"{where}: class {category} is not one of the {num_classes} classes; register them all")
    segmentation = record.get("segmentation")
    try:
        rle = to_rle([] if segmentation is None else segmentation, size)
        area = float(record["area"]) if record.get("area") is not None else float(mask_utils.area(rle))
        if "bbox" in record:
            x, y, width, height = BoxMode.convert(list(record["bbox"]), record["bbox_mode"], BoxMode.XYWH_ABS)
        else:
            x, y, width, height = mask_utils.toBbox(rle)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{where}: its mask or box cannot be read ({error}); correct it or drop it") from error
    bbox = (float(x), float(y), float(width), float(height))
    return Annotation(int(category), rle, bbox, area, bool(record.get("iscrowd", 0)), bool(segmentation))
