"""Make prompts from annotated instances: one class per kind, random for training or deterministic for a test."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from detectron2.structures import Instances
from sam_d2.data.edge_errors import read_edge_errors
from sam_d2.errors import UserError
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
        noise = torch.randn(boxes.shape, generator=generator).to(boxes)
        moved = boxes + (noise * self.jitter * _sides(boxes)).clamp(-self.max_jitter, self.max_jitter)
        return _boxes_inside(moved, size)


def _sides(boxes: Tensor) -> Tensor:
    """Return (N, 4): of each edge of boxes (N, 4) the length of the side along which it moves."""
    return (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)


def _boxes_inside(moved: Tensor, size: tuple[int, int]) -> Tensor:
    """Return boxes (N, 4) clipped to ``size`` (h, w); edges that crossed are swapped back, so that each is a box."""
    low, high = torch.minimum(moved[:, :2], moved[:, 2:]), torch.maximum(moved[:, :2], moved[:, 2:])
    limit = moved.new_tensor([size[1], size[0]])
    return torch.cat([low.clamp(min=0).minimum(limit), high.clamp(min=0).minimum(limit)], dim=1)


@dataclass
class DetectorErrorSampler(BoxSampler):
    """Ground-truth boxes, wrong as a detector's are: each takes the errors of one detection, drawn at random.

    The four edges of a box move together as they did there, so that the errors' sizes, their lean to one side and how
    they go together are the detector's.

    Attributes:
        errors: file of ``tools/detector_errors.py``; without one the boxes are jittered as :class:`BoxSampler`'s. It is
            read at the first draw: a trained model does without it.
    """

    errors: str = ""

    def __call__(self, instances: Instances, generator: torch.Generator) -> Prompts:
        """Return boxes (N, 4), continuous XYXY edges in the frame of ``instances``.

        Raises:
            UserError: ``errors`` cannot be read, or holds none.
        """
        if not self.errors:
            return super().__call__(instances, generator)
        boxes = instances.gt_boxes.tensor.float()
        rows = torch.randint(len(self._moves), (len(boxes),), generator=generator)
        return Prompts(boxes=_boxes_inside(boxes + self._moves[rows].to(boxes) * _sides(boxes), instances.image_size))

    @cached_property
    def _moves(self) -> Tensor:
        """(M, 4) float32: what each edge moved by, as a share of the box's side."""
        return torch.tensor(read_edge_errors(self.errors, key="model.prompts.*.train.errors").errors)


@dataclass(frozen=True)
class NoisyBoxSampler:
    """Ground-truth boxes that are wrong by a given share of their sides: a test's prompts.

    All boxes are equally wrong, and a coin says in which direction along each axis. The coins belong to the instance
    (its place in the image, its box and the image's size), so every model, every level and every run gets the same.
    What lies outside of the image is cut off.

    Attributes:
        shift: how far the centre moves to either side, as a share of the side.
        scale: how much longer or shorter each side gets, as a share of itself, about the centre.
        seed: of the coins.

    Raises:
        UserError: a share is not in [0, 1), so that nothing of a box might be left.
    """

    shift: float = 0.0
    scale: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse shares that leave no box."""
        for name in ("shift", "scale"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"Box noise {name}={getattr(self, name)}: expected a share of the side, 0 to below 1.")

    def __call__(self, instances: Instances, generator: torch.Generator) -> Prompts:
        """Return boxes (N, 4), continuous XYXY edges in the frame of ``instances``; nothing is drawn."""
        boxes = instances.gt_boxes.tensor.float()
        if not self.shift and not self.scale:
            return Prompts(boxes=boxes)
        coins = torch.tensor(
            [self._coins(row, box.tobytes(), instances.image_size) for row, box in enumerate(boxes.cpu().numpy())]
        ).reshape(-1, 4)
        shift, scale = coins.to(boxes).split(2, dim=1)
        # an edge moves with the centre, and by half of what the side grows
        moves = self.shift * shift.repeat(1, 2) + self.scale / 2 * torch.cat([-scale, scale], dim=1)
        return Prompts(boxes=_boxes_inside(boxes + moves * _sides(boxes), instances.image_size))

    def _coins(self, row: int, box: bytes, size: tuple[int, int]) -> list[float]:
        """Return four times 1 or -1: of the shift in x and y, of the scale in x and y."""
        byte = blake2b(repr((self.seed, row, size)).encode() + box, digest_size=1).digest()[0]
        return [1.0 if byte >> bit & 1 else -1.0 for bit in range(4)]


@dataclass
class PointSampler:
    """Points inside each instance, and where wanted points beside it.

    Attributes:
        random: True draws points uniformly (training): positive ones from the mask, negative ones from what of the
            box, grown by ``margin``, the mask leaves free. False places them (test): each positive point as far as
            possible from the mask's edge and the points before it, each negative one likewise outside of the mask,
            the first in row order where several are equal.
        positive: points inside, at least 1. A mask with fewer pixels is given some of them twice; an empty one is
            prompted at the centre of its box.
        negative: points outside; where the mask leaves nothing free, positive ones take their place, so that every
            instance has the same number of points.
        margin: growth of the box on each side, as a share of its side, but at least a pixel.

    Raises:
        UserError: there is no positive point, or less than no negative one.
    """

    random: bool = False
    positive: int = 1
    negative: int = 0
    margin: float = 0.1

    def __post_init__(self) -> None:
        """Refuse numbers of points that would be no prompt."""
        if self.positive < 1 or self.negative < 0:
            raise UserError(
                f"PointSampler in model.prompts: positive={self.positive}, negative={self.negative}: expected at least "
                "1 positive point and 0 negative ones."
            )

    def __call__(self, instances: Instances, generator: torch.Generator) -> Prompts:
        """Return points (N, P, 2), xy pixel indices in the frame of ``instances``, with labels (N, P) in {1, 0}."""
        count = self.positive + self.negative
        # The same number of draws per instance whatever the masks hold: a point depends on its own mask alone.
        draws = torch.rand((len(instances), count), generator=generator).tolist() if self.random else None
        points = torch.empty((len(instances), count, 2), dtype=torch.float32)
        labels = torch.ones((len(instances), count), dtype=torch.int64)
        boxes = instances.gt_boxes.tensor.cpu()
        for row, box in enumerate(boxes):
            inside, outside, origin = self._regions(instances.gt_masks, row, box, instances.image_size)
            row_draws = [None] * count if draws is None else draws[row]
            found = _place(inside, row_draws[: self.positive])
            background = _place(outside, row_draws[self.positive :])
            if not found:
                points[row] = (box[:2] + box[2:]) / 2 - 0.5
                continue
            if len(background) < self.negative:
                background = _place(inside, row_draws)[self.positive :]
            else:
                labels[row, self.positive :] = 0
            points[row] = torch.tensor([(x + origin[0], y + origin[1]) for x, y in found + background])
        return Prompts(points=points, labels=labels)

    def _regions(
        self, masks: InstanceMasks, row: int, box: Tensor, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        """Return where points may lie inside and outside of a mask, (h, w) bool each, and the crop's (x, y)."""
        x0, y0, x1, y1 = mask_extent(masks, row, size)
        if self.negative:
            left, top, right, bottom = box.tolist()
            grow_x, grow_y = max(self.margin * (right - left), 1), max(self.margin * (bottom - top), 1)
            x0, y0 = max(min(x0, math.floor(left - grow_x)), 0), max(min(y0, math.floor(top - grow_y)), 0)
            x1, y1 = min(max(x1, math.ceil(right + grow_x)), size[1]), min(max(y1, math.ceil(bottom + grow_y)), size[0])
        inside = rasterise_crop(masks, row, (x0, y0, x1, y1))
        return inside, ~inside, (x0, y0)


def _place(region: np.ndarray, draws: Sequence[float | None]) -> list[tuple[int, int]]:
    """Return one (x, y) pixel of an (h, w) bool region per draw: the draw's share in row order, or the innermost."""
    if not region.any():
        return []
    points: list[tuple[int, int]] = []
    free = region.copy()
    for draw in draws:
        if draw is not None:
            candidates = np.flatnonzero(region)
            y, x = divmod(int(candidates[min(int(draw * len(candidates)), len(candidates) - 1)]), region.shape[1])
        else:
            x, y, _ = innermost_pixel(free if free.any() else region)
        free[y, x] = False
        points.append((x, y))
    return points


def innermost_pixel(region: np.ndarray) -> tuple[int, int, float]:
    """Return the pixel farthest from the edge of an (h, w) bool region, the first in row order: x, y, distance.

    The border of the array is an edge too: beyond it lies another object or the end of the image. The distance of
    an empty region is 0.
    """
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    if len(rows) == 0:
        return 0, 0, 0.0
    # No pixel beyond the region's bounds is nearer than those beside them: the rest of an image need not be looked at.
    crop = region[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    distances = distance_transform_edt(np.pad(crop, 1))[1:-1, 1:-1]
    y, x = divmod(int(distances.argmax()), crop.shape[1])
    return int(columns[0]) + x, int(rows[0]) + y, float(distances[y, x])


class MixedSampler:
    """Draws for each image which of several samplers makes its prompts, all equally likely.

    Prompts of one image are of one kind, because kinds are never padded to a common length: padding points move
    SAM's logits.

    Args:
        **samplers: by name. Not a list: Detectron2's ``instantiate`` hands lists on as OmegaConf's, which turns
            dataclasses such as these samplers into configs.
    """

    def __init__(self, **samplers: PromptSampler) -> None:
        self.samplers = list(samplers.values())

    def __call__(self, instances: Instances, generator: torch.Generator) -> Prompts:
        """Return what the sampler that was drawn makes of ``instances``."""
        choice = int(torch.randint(len(self.samplers), (), generator=generator))
        return self.samplers[choice](instances, generator)


class DetectedBoxSampler:
    """The boxes that a detector has found, as they are: a test's prompts, which no annotation enters."""

    def __call__(self, instances: Instances, generator: torch.Generator) -> Prompts:
        """Return the ``pred_boxes`` (N, 4), continuous XYXY edges in the frame of ``instances``."""
        return Prompts(boxes=instances.pred_boxes.tensor.float())


def may_be_ambiguous(sampler: PromptSampler) -> bool:
    """Tell whether a sampler may give single points, which ``model.multimask`` answers with three masks.

    One of a class that is not known here may.
    """
    if isinstance(sampler, MixedSampler):
        return any(may_be_ambiguous(one) for one in sampler.samplers)
    if isinstance(sampler, PointSampler):
        return sampler.positive + sampler.negative == 1
    return not isinstance(sampler, BoxSampler | NoisyBoxSampler | DetectedBoxSampler)
