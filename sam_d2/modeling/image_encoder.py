"""SAM's image encoder with fused attention: segment_anything's class, parameters and weights, computed faster.

Segment Anything, arXiv 2304.02643, section A; the encoder is ViTDet's plain backbone, arXiv 2203.16527.

Shapes: ``B`` images, ``G`` tokens per side, ``C`` channels, ``w`` tokens per side of a window, ``d`` of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Block
from torch import Tensor, nn

from sam_d2.modeling.cpu_linear import linear
from sam_d2.modeling.relative_attention import relative_attention, relative_table

_MLP_TOKENS = 1024
"""Tokens whose hidden activations (four times as wide) a CPU works on at once where no gradient needs them later."""


class FusedImageEncoderViT(ImageEncoderViT):
    """segment_anything's ``ImageEncoderViT`` whose blocks never hold a matrix of all pairs of tokens.

    Arguments, parameters, their names and first values are the parent's; outputs differ by rounding. Beside the fused
    attention, what a window's padding would multiply is not: its queries, keys and values are one vector. The modules
    inside a block's attention and MLP may be computed by way of their weights, so forward hooks belong on the blocks.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for block in self.blocks:
            block.__class__ = FusedBlock  # the parent's __init__ takes no other, and parameters are the same


class FusedBlock(Block):
    """segment_anything's ``Block`` with fused attention; see :class:`FusedImageEncoderViT`, which makes it."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (B, G, G, C) tokens after attention within windows, or among all of them, and the MLP."""
        return _with_mlp(self, tokens + _attention(self.attn, self.norm1(tokens), self.window_size))


def _with_mlp(block: Any, tokens: Tensor) -> Tensor:
    """Return tokens (B, G, G, C) with what the block's MLP adds; on a CPU and without a graph part by part."""
    if torch.is_grad_enabled() or tokens.device.type != "cpu" or torch.compiler.is_compiling():
        return tokens + block.mlp(block.norm2(tokens))
    tokens = tokens.contiguous()
    gelu = isinstance(block.mlp.act, nn.GELU) and block.mlp.act.approximate == "none"
    for part in tokens.flatten(0, 2).split(_MLP_TOKENS):
        hidden = linear(block.mlp.lin1, block.norm2(part), gelu=gelu)
        part += linear(block.mlp.lin2, hidden if gelu else block.mlp.act(hidden))
    return tokens


def _attention(attention: Any, tokens: Tensor, window: int) -> Tensor:
    """Return what segment_anything's ``Attention`` does to the tokens of each window, all windows at once.

    Args:
        attention: the module that has the parameters.
        tokens: (B, G, G, C) normalised.
        window: w; 0 for one window that is the whole grid.

    Returns:
        (B, G, G, C).
    """
    batch, height, width, channels = tokens.shape
    side = (window, window) if window else (height, width)
    rows, columns = -(-height // side[0]), -(-width // side[1])
    qkv = _padded(attention, tokens, rows * side[0], columns * side[1])
    # (3, B, rows, columns, heads, w, w, d): each head of each window is an attention of its own.
    qkv = qkv.view(
        batch, rows, side[0], columns, side[1], 3, attention.num_heads, channels // attention.num_heads
    ).permute(5, 0, 1, 3, 6, 2, 4, 7)
    q, k, v = qkv.flatten(5, 6).flatten(1, 4).unbind(0)
    if attention.use_rel_pos:
        grid = q.unflatten(1, side)
        rel_h = torch.einsum("fyxc,ykc->fyxk", grid, relative_table(attention.rel_pos_h, side[0])).flatten(1, 2)
        rel_w = torch.einsum("fyxc,xkc->fyxk", grid, relative_table(attention.rel_pos_w, side[1])).flatten(1, 2)
        out = relative_attention(q, k, v, rel_h, rel_w, scale=attention.scale)
    else:
        out = F.scaled_dot_product_attention(q[None], k[None], v[None], scale=attention.scale)[0]
    out = out.view(batch, rows, columns, attention.num_heads, *side, channels // attention.num_heads).permute(
        0, 1, 4, 2, 5, 3, 6
    )
    out = out.reshape(batch, rows * side[0], columns * side[1], channels)[:, :height, :width]
    return linear(attention.proj, out)


def _padded(attention: Any, tokens: Tensor, height: int, width: int) -> Tensor:
    """Return queries, keys and values (B, height, width, 3 C) of tokens padded with zeros to whole windows."""
    qkv = linear(attention.qkv, tokens)
    if qkv.shape[1:3] == (height, width):
        return qkv
    padding = linear(attention.qkv, tokens.new_zeros(1, 1, 1, tokens.shape[3]))
    padded = padding.expand(len(qkv), height, width, -1).clone()
    padded[:, : qkv.shape[1], : qkv.shape[2]] = qkv
    return padded
