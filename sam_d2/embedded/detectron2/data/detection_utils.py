"""The steps of a dataset mapper, under the name by which mappers import them."""

from .image_reading import (
    SizeMismatchError,
    check_image_size,
    convert_image_to_rgb,
    convert_PIL_to_numpy,
    read_image,
)
from .instance_annotations import (
    annotations_to_instances,
    check_metadata_consistency,
    filter_empty_instances,
    transform_instance_annotations,
)

__all__ = [
    "SizeMismatchError",
    "annotations_to_instances",
    "check_image_size",
    "check_metadata_consistency",
    "convert_PIL_to_numpy",
    "convert_image_to_rgb",
    "filter_empty_instances",
    "read_image",
    "transform_instance_annotations",
]
