"""Make prompts from annotated instances: one class per kind, random for training or deterministic for a test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from detectron2.structures import Instances
from sam_d2.modeling.masks import InstanceMasks, mask_extent, rasterise_crop
from sam_d2.modeling.prompts import Prompts

PromptSampler = Callable[[Instances, torch.Generator], Prompts]
"""Takes annotated instances and a CPU generator; gives one prompt row per instance, in the instances' frame."""


@dataclass
class BoxSampler:
    """Ground-truth boxes, moved at random as an annotator's or a detector's would be.

    Each edge moves by a normal draw whose deviation is a share of the box's side, at most ``max_jitter`` pixels
    (SAM, arXiv 2304.02643, appendix A: 10 % and 20 pixels), and stays inside the image.

    Attributes:
        jitter: standard deviation as a share of the side; 0 gives the box itself.
        max_jitter: largest move of an edge, pixels of the instances' frame.
    """

    jitter: float = 0.0
    max_jitter: float = 20.0

    def __call__(self, instances: Instances, generator: torch.Generator) -> Prompts:
        """Return boxes (N, 4), continuous XYXY edges in the frame of ``instances``."""
        boxes = instances.gt_boxes.tensor.float()
        if self.jitter > 0:
            boxes = self._jittered(boxes, instances.image_size, generator)
        return Prompts(boxes=boxes)

    def _jittered(self, boxes: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        noise = torch.randn(boxes.shape, generator=generator).to(boxes)
        moved = boxes + (noise * self.jitter * sides).clamp(-self.max_jitter, self.max_jitter)
        # Edges that crossed are swapped back, so that every prompt is a box.
        low, high = torch.minimum(moved[:, :2], moved[:, 2:]), torch.maximum(moved[:, :2], moved[:, 2:])
        limit = boxes.new_tensor([size[1], size[0]])
        return torch.cat([low.clamp(min=0).minimum(limit), high.clamp(min=0).minimum(limit)], dim=1)


@dataclass
class PointSampler:
    """One foreground point per instance.

    Attributes:
        random: True draws the point uniformly from the mask's pixels (training). False takes the pixel farthest
            from the mask's edge, the first in row order where several are (test). An empty mask is prompted at
            the centre of its box.
    """

    random: bool = False

    def __call__(self, instances: Instances, generator: torch.Generator) -> Prompts:
        """Return points (N, 1, 2), xy pixel indices in the frame of ``instances``, with labels (N, 1) all 1."""
        # One draw per instance whatever the masks hold, so that a point depends on its own mask alone.
        draws = torch.rand(len(instances), generator=generator).tolist() if self.random else None
        points = torch.empty((len(instances), 1, 2), dtype=torch.float32)
        boxes = instances.gt_boxes.tensor
        for row in range(len(instances)):
            draw = None if draws is None else draws[row]
            point = _point_in_mask(instances.gt_masks, row, instances.image_size, draw)
            if point is None:
                points[row, 0] = (boxes[row, :2] + boxes[row, 2:]).cpu() / 2 - 0.5
            else:
                points[row, 0] = torch.tensor(point, dtype=torch.float32)
        return Prompts(points=points, labels=torch.ones(points.shape[:2], dtype=torch.int64))


def _point_in_mask(masks: InstanceMasks, row: int, size: tuple[int, int], draw: float | None) -> tuple[int, int] | None:
    """Return an (x, y) pixel of a mask: the ``draw``-th share in row order, or the innermost one; None if empty."""
    x0, y0, x1, y1 = mask_extent(masks, row, size)
    crop = rasterise_crop(masks, row, (x0, y0, x1, y1))
    if not crop.any():
        return None
    if draw is not None:
        inside = np.flatnonzero(crop)
        position = inside[min(int(draw * len(inside)), len(inside) - 1)]
    else:
        # The crop's border is the mask's edge too: beyond it lies another object or the end of the image.
        position = np.argmax(distance_transform_edt(np.pad(crop, 1))[1:-1, 1:-1])
    y, x = np.unravel_index(position, crop.shape)
    return int(x) + x0, int(y) + y0


@dataclass
class PromptRecipe:
    """How one ``--prompt`` is trained and tested.

    Attributes:
        train: sampler of the training prompts.
        test: sampler of the test prompts; deterministic.
    """

    train: PromptSampler
    test: PromptSampler


def prompt_recipes(**recipes: PromptRecipe) -> dict[str, PromptRecipe]:
    """Return the recipes by the name that ``--prompt`` gives them; lets a config hold them as one node."""
    return recipes
