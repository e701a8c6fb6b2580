"""Masks of one image as polygons."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch

from detectron2.structures.boxes import Boxes


def polygon_area(x: np.ndarray, y: np.ndarray) -> float:
    """Return the area of a polygon by the shoelace formula.

    Args:
        x: (n,) coordinates of the corners.
        y: (n,) coordinates of the corners.
    """
    return 0.5 * np.abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))


def polygons_to_bitmask(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Rasterise the union of polygons as pycocotools does.

    Args:
        polygons: each (2n,) float64: x0, y0, x1, y1, ...
        height: of the image.
        width: of the image.

    Returns:
        (height, width) bool.
    """
    if len(polygons) == 0:  # pycocotools takes no empty list
        return np.zeros((height, width), dtype=bool)
    union = mask_util.merge(mask_util.frPyObjects(polygons, height, width))
    return mask_util.decode(union).astype(bool)


def rasterize_polygons_within_box(polygons: list[np.ndarray], box: np.ndarray, mask_size: int) -> torch.Tensor:
    """Rasterise the part of polygons inside of a box into a square.

    Args:
        polygons: each (2n,) float64, in the image's frame.
        box: (4,) XYXY in the same frame; a side shorter than a tenth of a pixel counts as a tenth.
        mask_size: side S of the square.

    Returns:
        (S, S) bool.
    """
    ratio_x = mask_size / max(box[2] - box[0], 0.1)
    ratio_y = mask_size / max(box[3] - box[1], 0.1)
    moved = []
    for polygon in polygons:
        inside = polygon.copy()
        inside[0::2] = (inside[0::2] - box[0]) * ratio_x
        inside[1::2] = (inside[1::2] - box[1]) * ratio_y
        moved.append(inside)
    return torch.from_numpy(polygons_to_bitmask(moved, mask_size, mask_size))


class PolygonMasks:
    """N masks, each the union of polygons. They stay in CPU memory.

    Attributes:
        polygons: for each instance a list of (2n,) float64 arrays x0, y0, x1, y1, ..., n >= 3.
    """

    def __init__(self, polygons: list[list[Any]]) -> None:
        """Take the polygons of all instances.

        Args:
            polygons: for each instance a list of polygons, each an array, tensor or list of coordinates.

        Raises:
            ValueError: not a list of lists, an odd number of coordinates, or fewer than three corners.
        """
        if not isinstance(polygons, list):
            raise ValueError(f"Cannot create PolygonMasks: expect a list of instances, got {type(polygons)}.")
        self.polygons: list[list[np.ndarray]] = [_check_instance(instance) for instance in polygons]

    def to(self, *args: Any, **kwargs: Any) -> "PolygonMasks":
        """Return the same object: polygons stay on the CPU."""
        return self

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def get_bounding_boxes(self) -> Boxes:
        """Return the least boxes around the corners."""
        boxes = torch.zeros(len(self), 4, dtype=torch.float32)
        for box, instance in zip(boxes, self.polygons, strict=True):
            corners = torch.from_numpy(np.concatenate([*instance, ()])).view(-1, 2).to(torch.float32)
            # An instance without polygons, and one left of or above the image, end at 0, as in Detectron2.
            box[:2] = torch.cat([corners, torch.full((1, 2), torch.inf)]).amin(dim=0)
            box[2:] = torch.cat([corners, torch.zeros(1, 2)]).amax(dim=0)
        return Boxes(boxes)

    def nonempty(self) -> torch.Tensor:
        """Tell, (N,) bool, which instances have any polygon."""
        return torch.tensor([len(instance) > 0 for instance in self.polygons], dtype=torch.bool)

    def __getitem__(self, item: int | slice | list[int] | torch.Tensor) -> "PolygonMasks":
        """Return the masks at an int, a slice, a list of ints, or a tensor of indices or bools.

        Raises:
            ValueError: a tensor that is neither integer nor bool, or an object of another type.
        """
        if isinstance(item, slice):
            return PolygonMasks(self.polygons[item])
        if isinstance(item, int):
            return PolygonMasks([self.polygons[item]])
        if isinstance(item, torch.Tensor):
            if item.dtype == torch.bool:
                assert item.dim() == 1, f"a mask of instances has one dimension, not {item.dim()}"
                item = item.nonzero().squeeze(1)
            elif item.dtype not in (torch.int32, torch.int64):
                raise ValueError(f"PolygonMasks cannot be indexed by a tensor of {item.dtype}")
            item = item.tolist()
        elif not isinstance(item, list):
            raise ValueError(f"PolygonMasks cannot be indexed by {type(item)}")
        return PolygonMasks([self.polygons[i] for i in item])

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        """Yield the polygons of each instance."""
        return iter(self.polygons)

    def __len__(self) -> int:
        return len(self.polygons)

    def __repr__(self) -> str:
        return f"PolygonMasks(num_instances={len(self)})"

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """Cut each mask with the box at the same place, and rasterise it in a square.

        Args:
            boxes: (N, 4) float, XYXY in the polygons' frame.
            mask_size: side S of the square.

        Returns:
            (N, S, S) bool, on the boxes' device.
        """
        assert len(boxes) == len(self), f"{len(boxes)} boxes for {len(self)} masks"
        masks = torch.empty(len(self), mask_size, mask_size, dtype=torch.bool)
        for mask, instance, box in zip(masks, self.polygons, boxes.cpu().numpy(), strict=True):
            mask.copy_(rasterize_polygons_within_box(instance, box, mask_size))
        return masks.to(device=boxes.device)

    def area(self) -> torch.Tensor:
        """Return the areas, (N,): the sum over an instance's polygons, their overlaps counted twice."""
        return torch.tensor([sum(polygon_area(p[0::2], p[1::2]) for p in instance) for instance in self.polygons])

    @staticmethod
    def cat(polymasks_list: Sequence["PolygonMasks"]) -> "PolygonMasks":
        """Return all masks of at least one object in one."""
        assert isinstance(polymasks_list, (list, tuple)) and len(polymasks_list) > 0
        assert all(isinstance(masks, PolygonMasks) for masks in polymasks_list)
        polygons = itertools.chain.from_iterable(masks.polygons for masks in polymasks_list)
        return type(polymasks_list[0])(list(polygons))


def _check_instance(polygons: list[Any]) -> list[np.ndarray]:
    if not isinstance(polygons, list):
        raise ValueError(f"Cannot create polygons: expect a list per instance, got {type(polygons)}.")
    arrays = []
    for polygon in polygons:
        values = polygon.cpu().numpy() if isinstance(polygon, torch.Tensor) else np.asarray(polygon)
        if len(values) % 2 != 0 or len(values) < 6:
            raise ValueError(f"Cannot create a polygon from {len(values)} coordinates.")
        arrays.append(values.astype("float64"))
    return arrays
