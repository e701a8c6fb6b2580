"""Prompts of one image: the only carrier between prompt samplers and the meta-architecture.

Legend of the modeling package: ``B`` images, ``N`` instances of one image, ``P`` points of one instance,
``M`` masks of one prompt. Frames: *original* ``(H0, W0)``, *resized* ``(H, W)`` with long side ``S``, *padded*
``(S, S)``, *low-res* ``(L, L)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

DRAWN_BOX_LOGIT = 4.0
"""Logit of a drawn box inside, and its negative outside: about what a mask of a trained model has there."""


@dataclass
class Prompts:
    """Box, point and mask prompts, one row per instance, all in one frame.

    Attributes:
        boxes: (N, 4) float32, continuous XYXY edges in pixels.
        points: (N, P, 2) float32, xy pixel indices (an integer is the centre of a pixel).
        labels: (N, P) int64, 1 foreground, 0 background, -1 no point.
        masks: (N, 1, L, L) float32 logits of an earlier prediction; always in the low-res frame.

    Raises:
        ValueError: neither boxes nor points are given, or the shapes disagree.
    """

    boxes: Tensor | None = None
    points: Tensor | None = None
    labels: Tensor | None = None
    masks: Tensor | None = None

    def __post_init__(self) -> None:
        if self.boxes is None and self.points is None:
            raise ValueError("Prompts need boxes or points")
        if self.boxes is not None and (self.boxes.dim() != 2 or self.boxes.shape[1] != 4):
            raise ValueError(f"boxes: expected (N, 4), got {tuple(self.boxes.shape)}")
        if (self.points is None) != (self.labels is None):
            raise ValueError("points and labels come together")
        if self.points is not None and self.labels is not None:
            if self.points.dim() != 3 or self.points.shape[2] != 2:
                raise ValueError(f"points: expected (N, P, 2), got {tuple(self.points.shape)}")
            if self.labels.shape != self.points.shape[:2]:
                raise ValueError(f"labels: expected {tuple(self.points.shape[:2])}, got {tuple(self.labels.shape)}")
        rows = {len(t) for t in (self.boxes, self.points, self.masks) if t is not None}
        if len(rows) > 1:
            raise ValueError(f"prompts of one image have different numbers of rows: {sorted(rows)}")

    def __len__(self) -> int:
        return len(self.boxes) if self.boxes is not None else len(self.points)  # type: ignore[arg-type]

    def __getitem__(self, rows: slice | Tensor) -> Prompts:
        """Return the prompts of some rows; ``rows`` is a slice, an index or a bool tensor."""
        return self._map(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str) -> Prompts:
        """Return the prompts on ``device``, without waiting for a GPU to take them."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=torch.device(device).type != "cpu"))

    def rescaled(self, from_size: tuple[int, int], to_size: tuple[int, int]) -> Prompts:
        """Return boxes and points moved from a frame of ``from_size`` to one of ``to_size``, both (height, width).

        The scale of each axis is the ratio of the integer sizes, as SamPredictor has it; points are scaled as the
        pixel indices that they are. Low-res masks stay what they are.
        """
        if from_size == to_size:
            return self
        scale = torch.tensor([to_size[1] / from_size[1], to_size[0] / from_size[0]], dtype=torch.float64)
        boxes, points = self.boxes, self.points
        if boxes is not None:
            boxes = (boxes.double() * scale.to(boxes.device).repeat(2)).to(boxes.dtype)
        if points is not None:
            points = (points.double() * scale.to(points.device)).to(points.dtype)
        return Prompts(boxes=boxes, points=points, labels=self.labels, masks=self.masks)

    @staticmethod
    def cat(prompts: Sequence[Prompts]) -> Prompts:
        """Return the rows of several, at least one, of the same :attr:`kind`."""
        if len(prompts) == 1:
            return prompts[0]
        columns = {field.name: [getattr(one, field.name) for one in prompts] for field in fields(Prompts)}
        return Prompts(**{name: None if values[0] is None else torch.cat(values) for name, values in columns.items()})

    @property
    def kind(self) -> tuple[bool, int | None, bool]:
        """Whether there are boxes, how many points a row has, and whether there are masks; one call has one kind."""
        points = None if self.points is None else self.points.shape[1]
        return self.boxes is not None, points, self.masks is not None

    @property
    def device(self) -> torch.device:
        """Device that the prompts are on."""
        return self.boxes.device if self.boxes is not None else self.points.device  # type: ignore[union-attr]

    @property
    def ambiguous(self) -> bool:
        """Whether each row is a single point: what SAM answers with three masks (whole, part, subpart)."""
        return self.boxes is None and self.points is not None and self.points.shape[1] == 1

    def with_correction(self, points: Tensor, labels: Tensor, logits: Tensor) -> Prompts:
        """Return the prompts with one more point per row, and the logits of the mask that it corrects.

        Args:
            points: (N, 1, 2) xy pixel indices, in the frame of the prompts.
            labels: (N, 1) in {1, 0}.
            logits: (N, L, L), low-res frame.
        """
        if self.points is not None and self.labels is not None:
            points, labels = torch.cat([self.points, points], dim=1), torch.cat([self.labels, labels], dim=1)
        return Prompts(boxes=self.boxes, points=points, labels=labels, masks=logits[:, None])

    def with_masks(self, logits: Tensor) -> Prompts:
        """Return the prompts with the logits (N, L, L) of the masks that they gave, to be asked again."""
        return Prompts(boxes=self.boxes, points=self.points, labels=self.labels, masks=logits[:, None])

    def with_drawn_boxes(self, canvas: int, low_res: int) -> Prompts:
        """Return the prompts with each box as a mask prompt too, where there are boxes and no masks yet.

        Args:
            canvas: S, side of the padded frame, in which the boxes are.
            low_res: L, side of the low-res frame in cells.
        """
        if self.boxes is None or self.masks is not None:
            return self
        edges = self.boxes * (low_res / canvas)
        cells = torch.arange(low_res, device=edges.device)
        # The share of each column and each row that lies inside: exact to the fraction of a cell.
        inside = torch.minimum(edges[:, 2:, None], cells + 1) - torch.maximum(edges[:, :2, None], cells)
        columns, rows = inside.clamp(min=0).unbind(dim=1)
        covered = rows[:, :, None] * columns[:, None, :]
        masks = (2 * covered - 1)[:, None] * DRAWN_BOX_LOGIT
        return Prompts(boxes=self.boxes, points=self.points, labels=self.labels, masks=masks)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Prompts:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Prompts(**{name: None if value is None else function(value) for name, value in values.items()})
