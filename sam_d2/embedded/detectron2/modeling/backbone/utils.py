"""What vision transformers share: windows and positions. Tokens lie as (B, H, W, C)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "PatchEmbed",
    "add_decomposed_rel_pos",
    "get_abs_pos",
    "get_rel_pos",
    "window_partition",
    "window_unpartition",
]


def window_partition(x: Tensor, window_size: int) -> tuple[Tensor, tuple[int, int]]:
    """Cut tokens into square windows, padded with zeros at the bottom and on the right.

    Args:
        x: (B, H, W, C).
        window_size: side of a window.

    Returns:
        (B * windows, window_size, window_size, C), the windows of an image row by row; padded (height, width).
    """
    batch, height, width, channels = x.shape
    if height % window_size or width % window_size:
        x = F.pad(x, (0, 0, 0, -width % window_size, 0, -height % window_size))
    rows, columns = x.shape[1] // window_size, x.shape[2] // window_size
    x = x.reshape(batch, rows, window_size, columns, window_size, channels).transpose(2, 3)
    return x.reshape(-1, window_size, window_size, channels), (rows * window_size, columns * window_size)


def window_unpartition(windows: Tensor, window_size: int, pad_hw: tuple[int, int], hw: tuple[int, int]) -> Tensor:
    """Put windows together again, without the padding.

    Args:
        windows: (B * windows, window_size, window_size, C).
        window_size: side of a window.
        pad_hw: padded (height, width).
        hw: (height, width) before padding.

    Returns:
        (B, height, width, C).
    """
    rows, columns = (side // window_size for side in pad_hw)
    x = windows.reshape(-1, rows, columns, window_size, window_size, windows.shape[-1]).transpose(2, 3)
    return x.reshape(-1, *pad_hw, windows.shape[-1])[:, : hw[0], : hw[1]].contiguous()


def get_rel_pos(q_size: int, k_size: int, rel_pos: Tensor) -> Tensor:
    """Look up the embedding of each distance from a query to a key along one axis.

    Args:
        q_size: number of queries along the axis.
        k_size: number of keys along the axis; where the numbers differ, the fewer lie farther apart.
        rel_pos: (L, C), embeddings of the distances in order, interpolated where there are others than L.

    Returns:
        (q_size, k_size, C).
    """
    distances = 2 * max(q_size, k_size) - 1
    if len(rel_pos) != distances:
        rel_pos = F.interpolate(rel_pos.T[None], size=distances, mode="linear")[0].T
    q_step, k_step = max(k_size / q_size, 1.0), max(q_size / k_size, 1.0)
    queries = torch.arange(q_size, device=rel_pos.device)[:, None] * q_step
    keys = torch.arange(k_size, device=rel_pos.device)[None] * k_step
    return rel_pos[(queries - keys + (k_size - 1) * k_step).long()]


def add_decomposed_rel_pos(
    attn: Tensor, q: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, q_size: Sequence[int], k_size: Sequence[int]
) -> Tensor:
    """Add relative positions to attention: a query's products with the embeddings of its row and column distances.

    MViTv2, arXiv 2112.01526, section 4.1.

    Args:
        attn: logits (B, q_h * q_w, k_h * k_w).
        q: queries (B, q_h * q_w, C), not scaled.
        rel_pos_h: (L_h, C), see :func:`get_rel_pos`.
        rel_pos_w: (L_w, C).
        q_size: (q_h, q_w).
        k_size: (k_h, k_w).

    Returns:
        logits of the shape of ``attn``.
    """
    grid = q.unflatten(1, tuple(q_size))
    rows = torch.einsum("bhwc,hkc->bhwk", grid, get_rel_pos(q_size[0], k_size[0], rel_pos_h))
    columns = torch.einsum("bhwc,wkc->bhwk", grid, get_rel_pos(q_size[1], k_size[1], rel_pos_w))
    return (attn.view(-1, *q_size, *k_size) + rows[..., None] + columns[..., None, :]).view(attn.shape)


def get_abs_pos(abs_pos: Tensor, has_cls_token: bool, hw: Sequence[int]) -> Tensor:
    """Return position embeddings for a grid of tokens, interpolated where it is not the one they were trained for.

    Args:
        abs_pos: (1, positions, C), of a square grid.
        has_cls_token: the first position is that of a class token, which is left out.
        hw: (height, width) of the grid.

    Returns:
        (1, height, width, C).
    """
    abs_pos = abs_pos[:, 1:] if has_cls_token else abs_pos
    side = math.isqrt(abs_pos.shape[1])
    assert side * side == abs_pos.shape[1], f"{abs_pos.shape[1]} positions are no square grid"
    grid = abs_pos.unflatten(1, (side, side))
    if tuple(hw) == (side, side):
        return grid
    resized = F.interpolate(grid.permute(0, 3, 1, 2), size=tuple(hw), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1)


class PatchEmbed(nn.Module):
    """Images to tokens, by a convolution."""

    def __init__(
        self,
        kernel_size: Sequence[int] = (16, 16),
        stride: Sequence[int] = (16, 16),
        padding: Sequence[int] = (0, 0),
        in_chans: int = 3,
        embed_dim: int = 768,
    ) -> None:
        """Make the layer.

        Args:
            kernel_size: (height, width) of the pixels that a token sees.
            stride: pixels from one token to the next, (down, right).
            padding: pixels around the image.
            in_chans: channels of the images.
            embed_dim: channels of the tokens.
        """
        super().__init__()
        spatial: Any = {"kernel_size": tuple(kernel_size), "stride": tuple(stride), "padding": tuple(padding)}
        self.proj = nn.Conv2d(in_chans, embed_dim, **spatial)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, H', W', embed_dim) for images (B, in_chans, H, W)."""
        return self.proj(x).permute(0, 2, 3, 1)
