"""Masks of one image, as bitmaps or as polygons."""

from detectron2.structures.bit_masks import BitMasks
from detectron2.structures.polygon_masks import (
    PolygonMasks,
    polygon_area,
    polygons_to_bitmask,
    rasterize_polygons_within_box,
)

__all__ = [
    "BitMasks",
    "PolygonMasks",
    "polygon_area",
    "polygons_to_bitmask",
    "rasterize_polygons_within_box",
]
