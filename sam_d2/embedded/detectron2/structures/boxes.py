"""A list of boxes of one image, and what two lists of boxes have in common."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from detectron2.structures.box_mode import BoxMode

__all__ = [
    "BoxMode",
    "Boxes",
    "matched_pairwise_iou",
    "pairwise_intersection",
    "pairwise_ioa",
    "pairwise_iou",
    "pairwise_point_box_distance",
]


class Boxes:
    """N boxes as a float32 tensor (N, 4) of left, top, right and bottom edges in continuous pixels.

    It is indexed, iterated and moved between devices like a tensor.

    Attributes:
        tensor: (N, 4) float32.
    """

    def __init__(self, tensor: Any) -> None:
        """Take the boxes.

        Args:
            tensor: (N, 4) tensor, or what becomes one; an empty one of any shape gives no boxes.
        """
        if not isinstance(tensor, torch.Tensor):
            tensor = torch.as_tensor(tensor, dtype=torch.float32, device="cpu")
        tensor = tensor.to(torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape(-1, 4)
        assert tensor.dim() == 2 and tensor.size(-1) == 4, f"boxes have the shape {tuple(tensor.size())}, not (N, 4)"
        self.tensor: torch.Tensor = tensor

    def clone(self) -> "Boxes":
        """Return a copy with memory of its own."""
        return Boxes(self.tensor.clone())

    def to(self, device: Any) -> "Boxes":
        """Return the boxes on another device."""
        return Boxes(self.tensor.to(device=device))

    @property
    def device(self) -> torch.device:
        """Where the boxes are."""
        return self.tensor.device

    @property
    def _size(self) -> torch.Tensor:
        """Width and height, (N, 2)."""
        return self.tensor[:, 2:] - self.tensor[:, :2]

    def area(self) -> torch.Tensor:
        """Return the areas, (N,) in square pixels."""
        width, height = self._size.unbind(dim=1)
        return width * height

    def clip(self, box_size: tuple[int, int]) -> None:
        """Cut the boxes, in place, to an image.

        Args:
            box_size: (height, width) of the image.

        Raises:
            AssertionError: a coordinate is infinite or NaN.
        """
        assert torch.isfinite(self.tensor).all(), "a box has an infinite or NaN coordinate"
        height, width = box_size
        xs = self.tensor[:, 0::2].clamp(min=0, max=width)
        ys = self.tensor[:, 1::2].clamp(min=0, max=height)
        self.tensor = torch.stack((xs, ys), dim=-1).flatten(start_dim=1)

    def nonempty(self, threshold: float = 0.0) -> torch.Tensor:
        """Tell, (N,) bool, which boxes have both sides longer than ``threshold`` pixels."""
        return (self._size > threshold).all(dim=1)

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: int = 0) -> torch.Tensor:
        """Tell, (N,) bool, which boxes lie inside of an image.

        Args:
            box_size: (height, width) of the image.
            boundary_threshold: how many pixels they may stand out.
        """
        height, width = box_size
        left, top, right, bottom = self.tensor.unbind(dim=-1)
        starts_inside = (left >= -boundary_threshold) & (top >= -boundary_threshold)
        return starts_inside & (right < width + boundary_threshold) & (bottom < height + boundary_threshold)

    def get_centers(self) -> torch.Tensor:
        """Return the centres, (N, 2) xy."""
        return (self.tensor[:, :2] + self.tensor[:, 2:]) / 2

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiply, in place, the x and the y coordinates."""
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y

    def __getitem__(self, item: Any) -> "Boxes":
        """Return the boxes at an int, a slice, or a tensor of indices or bools; memory may be shared."""
        chosen = self.tensor[item]
        if isinstance(item, int):
            chosen = chosen.view(1, -1)
        assert chosen.dim() == 2, f"the index {item} gives no list of boxes"
        return Boxes(chosen)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield each box as a (4,) tensor."""
        yield from self.tensor

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"

    @classmethod
    def cat(cls, boxes_list: Sequence["Boxes"]) -> "Boxes":
        """Return all boxes of a list one after the other, with memory of their own."""
        assert isinstance(boxes_list, (list, tuple))
        assert all(isinstance(boxes, Boxes) for boxes in boxes_list)
        return cls(torch.cat([boxes.tensor for boxes in boxes_list]) if boxes_list else torch.empty(0))


def _overlap(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the area common to boxes (..., 4) and (..., 4), whose leading shapes are broadcast."""
    size = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    width, height = size.clamp(min=0).unbind(dim=-1)
    return width * height


def _share(overlap: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Return overlap / whole, and 0 where nothing overlaps, even if ``whole`` is 0."""
    return torch.where(overlap > 0, overlap / whole, torch.zeros_like(overlap))


def pairwise_intersection(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """Return the area that each of N boxes has in common with each of M, (N, M)."""
    return _overlap(boxes1.tensor[:, None], boxes2.tensor)


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """Return intersection over union of each of N boxes with each of M, (N, M); 0 for empty boxes."""
    overlap = pairwise_intersection(boxes1, boxes2)
    return _share(overlap, boxes1.area()[:, None] + boxes2.area() - overlap)


def pairwise_ioa(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """Return intersection over the area of ``boxes2``, (N, M); 0 for empty boxes."""
    return _share(pairwise_intersection(boxes1, boxes2), boxes2.area())


def matched_pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """Return intersection over union of the boxes at the same place of two lists, (N,).

    Two empty boxes have NaN, unlike in :func:`pairwise_iou`.
    """
    assert len(boxes1) == len(boxes2), f"{len(boxes1)} boxes cannot be matched with {len(boxes2)}"
    overlap = _overlap(boxes1.tensor, boxes2.tensor)
    return overlap / (boxes1.area() + boxes2.area() - overlap)


def pairwise_point_box_distance(points: torch.Tensor, boxes: Boxes) -> torch.Tensor:
    """Return how far N points are from the edges of M boxes.

    Args:
        points: (N, 2) xy.
        boxes: M boxes.

    Returns:
        (N, M, 4): distances to the left, top, right and bottom edge, positive inside of the box.
    """
    corners = points[:, None]
    return torch.cat([corners - boxes.tensor[:, :2], boxes.tensor[:, 2:] - corners], dim=2)
