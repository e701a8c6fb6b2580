"""SAM's prompt encoder without a wait for the device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from segment_anything.modeling import PromptEncoder
from torch import Tensor


class SelectingPromptEncoder(PromptEncoder):
    """segment_anything's PromptEncoder, whose points are chosen by a mask: the same numbers.

    Rows that are indexed by a bool tensor have to be counted first, for which a GPU would be waited for. And torch's
    default dtype, which segment_anything's embeddings of points and boxes have where it is the wider, does not matter.
    """

    def forward(
        self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the embeddings of points and boxes, and of masks, as segment_anything's does."""
        sparse, dense = super().forward(points, boxes, masks)
        return sparse.to(self.no_mask_embed.weight.dtype), dense

    def _embed_points(self, points: Tensor, labels: Tensor, pad: bool) -> Tensor:
        if pad:
            points, labels = F.pad(points, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=-1)
        embedded = self.pe_layer.forward_with_coords(points + 0.5, self.input_image_size)
        kinds = labels[..., None]
        embedded = torch.where(kinds == -1, self.not_a_point_embed.weight, embedded)
        for label in (0, 1):
            weight = self.point_embeddings[label].weight
            embedded = torch.where(kinds == label, embedded + weight, embedded)
        return embedded
