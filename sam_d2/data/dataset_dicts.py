"""From checked records to Detectron2's dataset dicts."""

from pathlib import Path
from typing import Any

import numpy as np

from sam_d2.data.geometry import MIN_POLYGON, AnnotationTable, Repair, compressed_rle
from sam_d2.data.records import (
    XYWH_ABS,
    XYXY_ABS,
    Annotation,
    CocoFile,
    DatasetDict,
    Image,
    Rle,
    domain_name,
    known,
    made_by_model,
)


def coco_table(records: CocoFile, file: Path, *, require_masks: bool = True) -> AnnotationTable:
    """Return the annotations of a COCO file as rows, each beside its image."""
    by_id: dict[Any, Image] = {image.id: image for image in records.images}
    annotations = records.annotations
    return AnnotationTable(
        file=file,
        annotations=annotations,
        owners=[by_id.get(item.image_id) for item in annotations],
        image_ids=[known(item.image_id) for item in annotations],
        labels=[known(item.id) for item in annotations],
        modes=np.full(len(annotations), XYWH_ABS),
        require_masks=require_masks,
    )


def dicts_table(images: list[DatasetDict], file: Path, *, require_masks: bool = True) -> AnnotationTable:
    """Return the annotations of Detectron2's dicts as rows, each beside its image."""
    rows = [
        (image, position, item) for image in images if image.annotations
        for position, item in enumerate(image.annotations)
    ]  # fmt: skip
    return AnnotationTable(
        file=file,
        annotations=[item for _, _, item in rows],
        owners=[image for image, _, _ in rows],
        image_ids=[known(image.id) for image, _, _ in rows],
        labels=[f"annotations[{i}]" if known(item.id) is None else item.id for _, i, item in rows],
        modes=np.array([known(item.bbox_mode) or XYXY_ABS for _, _, item in rows], dtype=np.int64),
        require_masks=require_masks,
    )


def number_of_classes(table: AnnotationTable) -> int:
    """Return how many classes the class indices of Detectron2's form need."""
    return 1 + max((known(item.category_id) or 0 for item in table.annotations), default=0)


def build_dataset_dicts(
    images: list[Any], table: AnnotationTable, category_ids: list[int], root: Path
) -> list[dict[str, Any]]:
    """Return the dicts of images without errors.

    Args:
        images: in the order that the dicts take.
        table: their annotations, checked.
        category_ids: the file's ids in order of the class index.
        root: what file names are relative to.
    """
    contiguous = {category_id: index for index, category_id in enumerate(category_ids)}
    annotations: dict[int | str, list[dict[str, Any]]] = {image.id: [] for image in images}
    for row, (image_id, item) in enumerate(zip(table.image_ids, table.annotations, strict=True)):
        if image_id is not None and not (table.require_masks and row in table.without_mask):
            category = contiguous[item.category_id]
            annotations[image_id].append(annotation_dict(item, category, int(table.modes[row]), table.repair(row)))
    return [
        {
            "file_name": image_path(str(root), image.file_name),
            "height": image.height,
            "width": image.width,
            "image_id": image.id,
            "annotations": annotations[image.id],
            **({} if (domain := domain_name(image.domain)) is None else {"domain": domain}),
        }
        for image in images
    ]


def image_path(root: str, file_name: str) -> str:
    """Return the path of an image as pathlib writes it, which itself takes half a second for COCO's."""
    if "//" in file_name or "./" in file_name or file_name.startswith("/") or file_name.endswith(("/", ".")):
        return str(Path(root) / file_name)
    return f"{root.rstrip('/')}/{file_name}"


def annotation_dict(item: Annotation, category: int, mode: int, repair: Repair) -> dict[str, Any]:
    """Return a checked annotation in Detectron2's form.

    Args:
        item: the record.
        category: its class index.
        mode: of its box.
        repair: what the checks conclude.
    """
    segmentation = item.segmentation
    if isinstance(segmentation, Rle):
        segmentation = compressed_rle(segmentation)  # type: ignore[assignment]
    elif repair.short_polygons and segmentation:
        segmentation = [polygon for polygon in segmentation if len(polygon) >= MIN_POLYGON]
    result: dict[str, Any] = {
        "bbox": item.bbox if repair.box is None else repair.box,
        "bbox_mode": mode if repair.box is None else XYXY_ABS,
        "category_id": category,
    }
    if repair.has_mask:
        result["segmentation"] = segmentation
    result["iscrowd"] = int(item.iscrowd or 0)
    if (identity := getattr(item, "id", None)) is not None:
        result["id"] = identity
    if item.area is not None and item.area >= 0:
        result["area"] = item.area
    if item.provenance is not None and made_by_model(item.provenance):
        result["provenance"] = item.provenance
    return result
