"""Typed records of the two dataset forms that are read: COCO's JSON, and Detectron2's list of dicts.

Coordinates are continuous pixel edges of the original frame (H0, W0): x to the right, y down, (0, 0) is the
outer corner of the first pixel. Keys that are not named here (licences, URLs, dates, keypoints) are skipped.
The `description` of a field is what an error message asks for.

The record-by-record reading of a damaged file (:mod:`sam_d2.data.decode`) leaves `msgspec.UNSET` in a field
whose problem it has reported; the checks skip those.
"""

import math
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, field

XYXY_ABS = 0  # detectron2.structures.BoxMode.XYXY_ABS; written out because importing it imports torch
XYWH_ABS = 1  # detectron2.structures.BoxMode.XYWH_ABS

Id = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1, description="an integer of at most 64 bits")]
Side = Annotated[int, Meta(ge=1, le=2**31 - 1, description="a whole number of pixels, at least 1")]
Name = Annotated[str, Meta(min_length=1, description="a string that is not empty")]
Box = Annotated[list[float], Meta(min_length=4, max_length=4, description="a list of 4 numbers, in px")]
ClassIndex = Annotated[  # bounded, because class names are made up to the highest one
    int, Meta(ge=0, le=2**16 - 1, description="a class index, from 0 to 65535")
]
Run = Annotated[int, Meta(ge=0, le=2**32 - 1)]


class Rle(Struct):
    """A mask as run lengths over its pixels, column by column, beginning with background.

    Attributes:
        size: (height, width) of the mask in px; equal to the image's.
        counts: COCO's compressed string, or the run lengths themselves, whose sum is height * width.
    """

    size: Annotated[list[Side], Meta(min_length=2, max_length=2)]
    counts: str | list[Run]


Segmentation = Annotated[
    list[list[float]] | Rle | None,
    Meta(
        description="a list of polygons [[x1, y1, x2, y2, ...], ...] in px, "
        "or an RLE {'size': [height, width], 'counts': ...}"
    ),
]


class Image(Struct, kw_only=True):
    """What both forms say about an image.

    Attributes:
        file_name: path relative to the image root.
        height: H0, px.
        width: W0, px.
        domain: as the file has it; :func:`domain_name` reads it.
    """

    file_name: Name
    height: Side
    width: Side
    domain: Annotated[Any, Meta(description="a name, such as 'sketch'")] = None


class Annotation(Struct, kw_only=True):
    """What both forms say about an instance.

    Attributes:
        category_id: id of its category (COCO), or its class index (Detectron2).
        bbox: XYWH in COCO; in Detectron2's form as `bbox_mode` says. Original frame, px.
        segmentation: polygons, an RLE, or nothing ([] and null).
        iscrowd: 1 for a region of many instances that COCO's evaluation ignores; None, where the file does not say,
            means 0.
        area: of the mask, px^2; None where the file has none.
        provenance: as the file has it; :func:`made_by_model` reads it.
    """

    category_id: Id
    bbox: Box
    segmentation: Segmentation
    iscrowd: Annotated[Literal[0, 1] | bool, Meta(description="0 or 1")] = None  # type: ignore[assignment]  # no null
    area: Annotated[float | None, Meta(description="a number, in px^2")] = None
    provenance: Annotated[Any, Meta(description="an object that says which model made it")] = None


class CocoImage(Image, kw_only=True):
    """An entry of COCO's `images`.

    Attributes:
        id: unique in the file; annotations refer to it.
    """

    id: Id


class CocoAnnotation(Annotation, kw_only=True):
    """An entry of COCO's `annotations`.

    Attributes:
        id: unique in the file; 0 is allowed.
        image_id: id of its image.
    """

    id: Id
    image_id: Id


class CocoBoxAnnotation(CocoAnnotation, kw_only=True):
    """An entry of COCO's `annotations` whose mask need not be there yet.

    Attributes:
        segmentation: as any annotation's; the key may be absent.
    """

    segmentation: Segmentation = None


class CocoCategory(Struct, kw_only=True):
    """An entry of COCO's `categories`.

    Attributes:
        id: unique in the file; gaps are allowed.
        name: what the results call it.
    """

    id: Id
    name: Name


class CocoFile(Struct, kw_only=True):
    """A COCO instance file.

    Attributes:
        images: in any order.
        annotations: in any order.
        categories: in any order.
    """

    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


class CocoBoxFile(CocoFile, kw_only=True):
    """A COCO file whose masks need not be there yet.

    Attributes:
        annotations: in any order.
    """

    annotations: list[CocoBoxAnnotation]  # type: ignore[assignment]  # read only


class DatasetAnnotation(Annotation, kw_only=True):
    """An instance in Detectron2's form.

    Attributes:
        category_id: class index, from 0 on.
        bbox_mode: 0 for XYXY_ABS, 1 for XYWH_ABS (detectron2.structures.BoxMode).
        id: the annotation's id, where the file has one.
    """

    category_id: ClassIndex
    bbox_mode: Annotated[Literal[0, 1], Meta(description="0 (XYXY_ABS) or 1 (XYWH_ABS)")]
    id: Annotated[Id | None, Meta(description="an integer of at most 64 bits")] = None


class DatasetBoxAnnotation(DatasetAnnotation, kw_only=True):
    """An instance in Detectron2's form whose mask need not be there yet.

    Attributes:
        segmentation: as any annotation's; the key may be absent.
    """

    segmentation: Segmentation = None


class DatasetDict(Image, kw_only=True):
    """An image in Detectron2's form.

    Attributes:
        id: the file's `image_id`: unique, an integer or a string.
        annotations: its instances; an empty list where there are none.
    """

    id: Annotated[Id | Name, Meta(description="an integer or a string")] = field(name="image_id")
    annotations: Annotated[list[DatasetAnnotation], Meta(description="a list, [] where there are none")]


class DatasetBoxDict(DatasetDict, kw_only=True):
    """An image in Detectron2's form whose masks need not be there yet.

    Attributes:
        annotations: its instances; an empty list where there are none.
    """

    annotations: Annotated[  # type: ignore[assignment]  # read only
        list[DatasetBoxAnnotation], Meta(description="a list, [] where there are none")
    ]


def domain_name(domain: Any) -> str | None:
    """Return what sort of image a record says that it has, such as ``sketch``; None where it names none.

    COCO's form knows no such key, so that anything may stand there: a number is taken as a name.
    """
    if isinstance(domain, bool):
        return None
    if isinstance(domain, float):
        return f"{domain:.15g}" if math.isfinite(domain) else None
    if isinstance(domain, int):
        return str(domain)
    # Half a surrogate pair is text that cannot be written.
    return domain if isinstance(domain, str) and domain.encode(errors="ignore").decode() == domain != "" else None


def made_by_model(provenance: Any) -> bool:
    """Tell whether what stands in a record's `provenance` says which model made the annotation.

    Such an object has `model`, and may have `checkpoint_sha256`, `prompt`, `score` and `stability`.
    """
    return isinstance(provenance, dict) and "model" in provenance


def known(value: Any) -> Any:
    """Return a field's value, or None where it could not be read."""
    return None if value is UNSET else value
