"""Features of regions, each taken from the level of a pyramid that fits its size."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from detectron2.layers.roi_align import ROIAlign
from detectron2.structures import Boxes

__all__ = ["ROIPooler"]


def assign_boxes_to_levels(
    box_lists: Sequence[Boxes], min_level: int, max_level: int, canonical_box_size: int, canonical_level: int
) -> torch.Tensor:
    """Return the level of each box (FPN, arXiv:1612.03144, equation 1).

    Args:
        box_lists: boxes of each image, N in all.
        min_level: the finest level, log2 of its stride.
        max_level: the coarsest level.
        canonical_box_size: square root of the area, in pixels, of a box that belongs to ``canonical_level``.
        canonical_level: see there. Twice the size is one level up; what is beyond the pyramid takes its end.

    Returns:
        (N,) int64, counted from ``min_level``.
    """
    size = torch.cat([boxes.area() for boxes in box_lists]).sqrt()
    # 1e-8: an empty box has a finite level too
    level = torch.floor(canonical_level + torch.log2(size / canonical_box_size + 1e-8))
    return level.clamp(min=min_level, max=max_level).to(torch.int64) - min_level


def convert_boxes_to_pooler_format(box_lists: Sequence[Boxes]) -> torch.Tensor:
    """Return the boxes of all images, (N, 5): index of the image in the batch, then XYXY."""
    boxes = torch.cat([one.tensor for one in box_lists])
    counts = torch.tensor([len(one) for one in box_lists], device=boxes.device)
    images = torch.arange(len(box_lists), dtype=boxes.dtype, device=boxes.device).repeat_interleave(counts)
    return torch.cat([images[:, None], boxes], dim=1)


class ROIPooler(nn.Module):
    """Pools boxes from one or several feature maps, each box from one of them."""

    def __init__(
        self, output_size: int | Sequence[int], scales: Sequence[float], sampling_ratio: int, pooler_type: str,
        canonical_box_size: int = 224, canonical_level: int = 4,
    ) -> None:  # fmt: skip
        """Make a pooler for each feature map.

        Args:
            output_size: side of the result, or (height, width).
            scales: 1 / stride of each feature map, each half of the one before, powers of 2.
            sampling_ratio: see :class:`ROIAlign`.
            pooler_type: "ROIAlignV2", or "ROIAlign" (its ``aligned=False``).
            canonical_box_size: see :func:`assign_boxes_to_levels`.
            canonical_level: see :func:`assign_boxes_to_levels`.

        Raises:
            ValueError: an unknown kind of pooling.
        """
        super().__init__()
        height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
        self.output_size = (height, width)
        levels = [-math.log2(scale) for scale in scales]
        assert all(math.isclose(level, round(level)) for level in levels), f"strides must be powers of 2: {scales}"
        self.min_level, self.max_level = round(levels[0]), round(levels[-1])
        is_pyramid = 0 <= self.min_level <= self.max_level and len(scales) == self.max_level - self.min_level + 1
        assert is_pyramid, f"the feature maps are no pyramid: {scales}"
        assert canonical_box_size > 0
        self.canonical_box_size, self.canonical_level = canonical_box_size, canonical_level
        if pooler_type not in ("ROIAlign", "ROIAlignV2"):
            raise ValueError(f"There is no pooler {pooler_type!r}: ROIAlignV2, ROIAlign.")
        aligned = pooler_type == "ROIAlignV2"
        self.level_poolers = nn.ModuleList(ROIAlign(self.output_size, s, sampling_ratio, aligned) for s in scales)

    def forward(self, x: list[torch.Tensor], box_lists: list[Boxes]) -> torch.Tensor:
        """Pool.

        Args:
            x: of each level, (B, C, H, W).
            box_lists: boxes of each of the B images, N in all, in the frame of the model's input.

        Returns:
            (N, C, height, width), the boxes of the first image first.
        """
        assert isinstance(x, list) and isinstance(box_lists, list), "features and boxes must be lists"
        assert len(x) == len(self.level_poolers), f"{len(x)} feature maps for {len(self.level_poolers)} poolers"
        assert len(box_lists) == x[0].size(0), f"boxes of {len(box_lists)} images, features of {x[0].size(0)}"
        regions = convert_boxes_to_pooler_format(box_lists)
        if len(x) == 1:
            return self.level_poolers[0](x[0], regions)
        levels = assign_boxes_to_levels(
            box_lists, self.min_level, self.max_level, self.canonical_box_size, self.canonical_level
        )
        pooled = x[0].new_zeros((len(regions), x[0].shape[1], *self.output_size))
        for level, (features, pooler) in enumerate(zip(x, self.level_poolers, strict=True)):
            chosen = (levels == level).nonzero().squeeze(1)
            pooled.index_put_((chosen,), pooler(features, regions[chosen]))
        return pooled
