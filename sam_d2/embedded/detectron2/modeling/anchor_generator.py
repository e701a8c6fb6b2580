"""Anchor boxes at each place of the feature maps."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from detectron2.structures import Boxes


def _per_level(values: Any, levels: int, name: str) -> list[Sequence[float]]:
    """Return one list of values for each level, from one for all of them or from one for each."""
    assert isinstance(values, Sequence) and len(values) > 0, f"{name} must be a list that is not empty: {values}"
    if not isinstance(values[0], Sequence):
        values = [values]
    assert len(values) in (1, levels), f"{len(values)} lists of {name} for {levels} feature maps"
    return list(values) * (levels if len(values) == 1 else 1)


class DefaultAnchorGenerator(nn.Module):
    """Anchors of fixed sizes and shapes around each place of a grid (Faster R-CNN, arXiv:1506.01497, section 3.1.1).

    Attributes:
        box_dim: numbers of a box.
        cell_anchors: has as buffers, of each level, (A, 4) XYXY anchors around the origin.
    """

    box_dim = 4

    def __init__(self, *, sizes: Any, aspect_ratios: Any, strides: Sequence[int], offset: float = 0.5) -> None:
        """Make the anchors of one place of each level.

        Args:
            sizes: square roots of the areas, in pixels of the model's input: a list for each level, or one for all.
            aspect_ratios: height / width, likewise.
            strides: pixels of the input from one place to the next, for each level.
            offset: where in its cell of the grid an anchor's centre lies: 0 its corner, 0.5 its middle.
        """
        super().__init__()
        assert 0.0 <= offset < 1.0, f"the offset must be in [0, 1): {offset}"
        self.strides = strides
        self.num_features = len(strides)
        self.offset = offset
        levels = zip(
            _per_level(sizes, self.num_features, "sizes"),
            _per_level(aspect_ratios, self.num_features, "aspect_ratios"),
            strict=True,
        )
        self.cell_anchors = nn.Module()  # moves the anchors with the model; they are in no checkpoint
        for index, level in enumerate(levels):
            self.cell_anchors.register_buffer(str(index), self.generate_cell_anchors(*level), persistent=False)

    @property
    def num_anchors(self) -> list[int]:
        """How many anchors each place of each level has."""
        return [len(anchors) for anchors in self.cell_anchors.buffers()]

    def generate_cell_anchors(
        self, sizes: Sequence[float] = (32, 64, 128, 256, 512), aspect_ratios: Sequence[float] = (0.5, 1, 2)
    ) -> torch.Tensor:
        """Return anchors around the origin, (sizes x ratios, 4) XYXY, the ratio changing fastest."""
        half_widths = [(math.sqrt(size**2.0 / ratio) / 2.0, ratio) for size in sizes for ratio in aspect_ratios]
        return torch.tensor([[-half, -half * ratio, half, half * ratio] for half, ratio in half_widths])

    def _grid_anchors(self, grid_sizes: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Return the anchors of levels of the given (height, width), each (H x W x A, 4) XYXY."""
        found = []
        for (height, width), stride, anchors in zip(grid_sizes, self.strides, self.cell_anchors.buffers(), strict=True):
            # on the CPU first: the last bits must not depend on the device
            xs, ys = (
                torch.arange(self.offset * stride, length * stride, step=stride, dtype=torch.float32).to(anchors.device)
                for length in (width, height)
            )
            grid = torch.stack([xs.expand(height, width), ys[:, None].expand(height, width)], dim=-1)
            found.append((grid.repeat(1, 1, 2).view(-1, 1, 4) + anchors).view(-1, 4))
        return found

    def forward(self, features: Sequence[torch.Tensor]) -> list[Boxes]:
        """Return all anchors.

        Args:
            features: of each level, (B, C, H, W).

        Returns:
            of each level, H x W x A boxes in the frame of the model's input, the anchor of a place changing fastest,
            then x, then y.
        """
        return [Boxes(anchors) for anchors in self._grid_anchors([level.shape[-2:] for level in features])]
