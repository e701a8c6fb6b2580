"""Load COCO's JSON of instances as Detectron2's dataset dicts (https://cocodataset.org/#format-data)."""

import contextlib
import functools
import io
import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import pycocotools.mask as mask_util

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

logger = logging.getLogger(__name__)

_LONG_LOADING_SECONDS = 1
_FEWEST_POLYGON_NUMBERS = 6


def register_coco_instances(
    name: str, metadata: dict[str, Any], json_file: str | os.PathLike, image_root: str | os.PathLike
) -> None:
    """Register a COCO JSON as a dataset; it is read when the dataset is first asked for.

    Args:
        name: identifies the dataset.
        metadata: further metadata, may be empty.
        json_file: the annotations.
        image_root: folder that the file names are relative to.

    Raises:
        AssertionError: an argument has the wrong type, or the name is known with other metadata.
    """
    assert isinstance(name, str), name
    assert isinstance(json_file, (str, os.PathLike)), json_file
    assert isinstance(image_root, (str, os.PathLike)), image_root
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, functools.partial(load_coco_json, json_file, image_root, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata)


def load_coco_json(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    dataset_name: str | None = None,
    extra_annotation_keys: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Read a COCO JSON of instances. Keypoints in it are left out.

    Args:
        json_file: the annotations.
        image_root: folder that the file names are relative to.
        dataset_name: with a name, category ids become 0, 1, ... in ascending order, and the name's metadata
            gets "thing_classes" and "thing_dataset_id_to_contiguous_id". Without, they stay the file's.
        extra_annotation_keys: further fields of the annotations to take as they are.

    Returns:
        One dict per image, by ascending image id: "file_name", "height", "width", "image_id", "annotations".
        These are in the file's order, with "bbox" (XYWH), "bbox_mode", "category_id", perhaps "iscrowd", and
        "segmentation" (polygons, or compressed RLE). Polygons of fewer than three points are dropped, and an
        annotation that has no other is too.

    Raises:
        AssertionError: annotation ids are not unique, or an annotation has COCO's "ignore" set.
        ValueError: an annotation's box is empty.
        KeyError: an annotation's category is not in the file.
    """
    from pycocotools.coco import COCO  # here because it imports matplotlib

    path = PathManager.get_local_path(json_file)
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(path)
    seconds = time.perf_counter() - start
    if seconds > _LONG_LOADING_SECONDS:
        logger.info(f"Loading {path} takes {seconds:.2f} seconds.")

    category_index = None if dataset_name is None else _set_category_metadata(coco, dataset_name)
    image_ids = sorted(coco.imgs)
    _check_annotations(coco, image_ids, path)
    logger.info(f"Loaded {len(image_ids)} images in COCO format from {path}")

    records = []
    keys = ["iscrowd", "bbox", "category_id", *(extra_annotation_keys or [])]
    dropped = 0
    for image_id in image_ids:
        image = coco.imgs[image_id]
        found = coco.imgToAnns[image_id]
        annotations = [_annotation(raw, image_id, keys, category_index) for raw in found]
        usable = [annotation for annotation in annotations if annotation is not None]
        dropped += len(annotations) - len(usable)
        records.append(
            {
                # Joined as it is: pathlib would write "a/./b" in another way.
                "file_name": os.path.join(image_root, image["file_name"]),  # noqa: PTH118
                "height": image["height"],
                "width": image["width"],
                "image_id": image["id"],
                "annotations": usable,
            }
        )
    if dropped:
        logger.warning(
            f"Filtered out {dropped} instances without valid segmentation. Their polygons have fewer "
            "than three points or an odd number of coordinates; see how the file was made."
        )
    return records


def _set_category_metadata(coco: Any, dataset_name: str) -> dict[int, int]:
    """Write the categories into the dataset's metadata; return {id in the file: contiguous id}."""
    ids = sorted(coco.getCatIds())
    metadata = MetadataCatalog.get(dataset_name)
    metadata.thing_classes = [category["name"] for category in coco.loadCats(ids)]
    has_gaps = min(ids) != 1 or max(ids) != len(ids)
    if has_gaps and "coco" not in dataset_name:  # COCO's own gaps are known to everyone
        logger.warning("Category ids in annotations are not in [1, #categories]! We'll apply a mapping for you.")
    metadata.thing_dataset_id_to_contiguous_id = {category: i for i, category in enumerate(ids)}
    return metadata.thing_dataset_id_to_contiguous_id


def _check_annotations(coco: Any, image_ids: list[int], path: str) -> None:
    ids = [annotation["id"] for image_id in image_ids for annotation in coco.imgToAnns[image_id]]
    if len(ids) < len(coco.anns):
        logger.warning(
            f"{path} contains {len(coco.anns)} annotations, but only {len(ids)} of them match to images in the file."
        )
    # Two published COCO 2014 subsets repeat ids, too few to matter.
    assert "minival" in path or len(set(ids)) == len(ids), f"Annotation ids in '{path}' are not unique!"


def _annotation(
    raw: dict[str, Any], image_id: int, keys: list[str], category_index: dict[int, int] | None
) -> dict[str, Any] | None:
    """Return Detectron2's form of one COCO annotation, None where its segmentation has no valid polygon."""
    assert raw["image_id"] == image_id, raw
    assert raw.get("ignore", 0) == 0, '"ignore" in COCO json file is not supported.'
    annotation = {key: raw[key] for key in keys if key in raw}
    if len(annotation.get("bbox", [0])) == 0:
        raise ValueError(f"One annotation of image {image_id} contains empty 'bbox' value!")
    segmentation = raw.get("segmentation")
    if segmentation:
        annotation["segmentation"] = _segmentation(segmentation)
        if not annotation["segmentation"]:
            return None
    annotation["bbox_mode"] = BoxMode.XYWH_ABS
    if category_index is not None:
        category = annotation["category_id"]
        if category not in category_index:
            raise KeyError(
                f"Encountered category_id={category} but this id does not exist in 'categories' of the json file."
            )
        annotation["category_id"] = category_index[category]
    return annotation


def _segmentation(segmentation: Any) -> Any:
    """Return compressed RLE for RLE, and the valid polygons, perhaps none, for polygons."""
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            return mask_util.frPyObjects(segmentation, *segmentation["size"])
        return segmentation
    return [ring for ring in segmentation if len(ring) % 2 == 0 and len(ring) >= _FEWEST_POLYGON_NUMBERS]
