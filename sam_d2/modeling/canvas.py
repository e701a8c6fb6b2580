"""Weights made on one canvas, for a model that has another: position embeddings are resampled.

The embeddings alone have a size that follows from the canvas, as in ViT, arXiv 2010.11929, section 3.2: one vector per
token, and in blocks with global attention one per distance between tokens (arXiv 2112.01526).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

logger = logging.getLogger(__name__)

_ABSOLUTE = "image_encoder.pos_embed"
_RELATIVE = re.compile(r"image_encoder\.(?:.+\.)?attn\.rel_pos_[hw]")


def resample_positions(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the position embeddings of a model's weights in the size of its own canvas, where that is another.

    They are resampled where nothing but them has another shape, and each of those fits the two canvases: a canvas
    of G x G tokens has ``pos_embed`` (1, G, G, C) and, in blocks with global attention, ``rel_pos_h`` and
    ``rel_pos_w`` (2G - 1, d). Windows are as large on any canvas. All else, such as other patches, is left to the
    strict loading to refuse.

    Args:
        state: whole weights of the model's kind, on any canvas.
        model: whose ``image_encoder`` has ``img_size``, its canvas in pixels.

    Returns:
        By their names, and on the device of ``state``, those that replace the ones in ``state``; empty where there
        is nothing to resample.
    """
    own = model.state_dict()
    if state.keys() != own.keys():
        return {}
    differing = [name for name, value in own.items() if state[name].shape != value.shape]
    if _ABSOLUTE not in differing:
        return {}
    before, after = state[_ABSOLUTE].shape, own[_ABSOLUTE].shape
    square = len(before) == len(after) == 4 and before[1] == before[2] and after[1] == after[2]
    if not square or (before[0], before[3]) != (after[0], after[3]):
        return {}
    tokens, own_tokens = before[1], after[1]
    for name in set(differing) - {_ABSOLUTE}:
        width = own[name].shape[1:]
        lengths = (2 * tokens - 1, *width), (2 * own_tokens - 1, *width)
        if not _RELATIVE.fullmatch(name) or (state[name].shape, own[name].shape) != lengths:
            return {}
    canvas: int = model.image_encoder.img_size  # type: ignore[union-attr,assignment]
    logger.info(
        "Position embeddings resampled from a canvas of %d pixels (%d x %d tokens) to %d (%d x %d)",
        *(canvas * tokens // own_tokens, tokens, tokens),
        *(canvas, own_tokens, own_tokens),
    )
    return {
        name: _absolute(state[name], own_tokens) if name == _ABSOLUTE else _relative(state[name], own_tokens)
        for name in differing
    }


def _absolute(embedding: Tensor, tokens: int) -> Tensor:
    """Resample (1, g, g, C) to (1, G, G, C)."""
    channels_first = embedding.permute(0, 3, 1, 2)
    resampled = F.interpolate(channels_first, (tokens, tokens), mode="bicubic", align_corners=False)
    return resampled.permute(0, 2, 3, 1).contiguous()


def _relative(embedding: Tensor, tokens: int) -> Tensor:
    """Resample (2g - 1, d), distances from -(g - 1) to g - 1, to (2G - 1, d)."""
    return F.interpolate(embedding.T[None], size=2 * tokens - 1, mode="linear", align_corners=False)[0].T.contiguous()
