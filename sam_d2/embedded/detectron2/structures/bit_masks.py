"""Masks of one image as bitmaps."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torchvision.ops import roi_align

from detectron2.structures.boxes import Boxes
from detectron2.structures.polygon_masks import PolygonMasks, polygons_to_bitmask


class BitMasks:
    """N masks as a bool tensor (N, H, W); indexed, iterated and moved between devices like a tensor.

    Attributes:
        tensor: (N, H, W) bool.
        image_size: (H, W).
    """

    def __init__(self, tensor: torch.Tensor | np.ndarray) -> None:
        """Take the masks.

        Args:
            tensor: (N, H, W); what is not bool becomes so, non-zero being True.
        """
        if isinstance(tensor, torch.Tensor):
            masks = tensor.to(torch.bool)
        else:
            masks = torch.as_tensor(tensor, dtype=torch.bool, device="cpu")
        assert masks.dim() == 3, f"masks have the shape {tuple(masks.size())}, not (N, H, W)"
        self.image_size = masks.shape[1:]
        self.tensor: torch.Tensor = masks

    def to(self, *args: Any, **kwargs: Any) -> "BitMasks":
        """Return the masks on another device."""
        return BitMasks(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        """Where the masks are."""
        return self.tensor.device

    def __getitem__(self, item: Any) -> "BitMasks":
        """Return the masks at an int, a slice, or a tensor of indices or bools; memory may be shared."""
        chosen = self.tensor[item]
        if isinstance(item, int):
            chosen = chosen.unsqueeze(0)
        assert chosen.dim() == 3, f"the index {item} gives no list of masks"
        return BitMasks(chosen)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield each mask, (H, W) bool."""
        yield from self.tensor

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __repr__(self) -> str:
        return f"BitMasks(num_instances={len(self)})"

    def nonempty(self) -> torch.Tensor:
        """Tell, (N,) bool, which masks have any pixel."""
        return self.tensor.flatten(1).any(dim=1)

    @staticmethod
    def from_polygon_masks(polygon_masks: PolygonMasks | list[list[np.ndarray]], height: int, width: int) -> "BitMasks":
        """Rasterise polygons as pycocotools does.

        Args:
            polygon_masks: polygons of the instances, in the frame of the image.
            height: of the image.
            width: of the image.
        """
        masks = np.zeros((len(polygon_masks), height, width), dtype=bool)
        for mask, polygons in zip(masks, polygon_masks, strict=True):
            mask[:] = polygons_to_bitmask(polygons, height, width)
        return BitMasks(torch.from_numpy(masks))

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """Cut each mask with the box at the same place, and resample it to a square by RoIAlign.

        Args:
            boxes: (N, 4) float, XYXY in the masks' frame.
            mask_size: side S of the square.

        Returns:
            (N, S, S) bool: where the resampled mask is at least one half.
        """
        assert len(boxes) == len(self), f"{len(boxes)} boxes for {len(self)} masks"
        index = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)[:, None]
        rois = torch.cat([index, boxes], dim=1).to(device=self.device, dtype=torch.float32)
        resampled = roi_align(
            self.tensor[:, None].float(), rois, mask_size, spatial_scale=1.0, sampling_ratio=0, aligned=True
        )
        return resampled[:, 0] >= 0.5

    def get_bounding_boxes(self) -> Boxes:
        """Return the least boxes around the masks, on the CPU; zeros for an empty mask."""
        boxes = torch.zeros(len(self), 4, dtype=torch.float32)
        columns, rows = self.tensor.any(dim=1), self.tensor.any(dim=2)
        for box, column, row in zip(boxes, columns, rows, strict=True):
            xs, ys = column.nonzero(), row.nonzero()
            if len(xs) > 0:
                box[:] = torch.stack([xs[0, 0], ys[0, 0], xs[-1, 0] + 1, ys[-1, 0] + 1])
        return Boxes(boxes)

    @staticmethod
    def cat(bitmasks_list: Sequence["BitMasks"]) -> "BitMasks":
        """Return all masks of at least one object in one."""
        assert isinstance(bitmasks_list, (list, tuple)) and len(bitmasks_list) > 0
        assert all(isinstance(masks, BitMasks) for masks in bitmasks_list)
        return type(bitmasks_list[0])(torch.cat([masks.tensor for masks in bitmasks_list], dim=0))
