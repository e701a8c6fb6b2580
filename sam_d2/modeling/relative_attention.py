"""Attention with decomposed relative positions (MViTv2, arXiv 2112.01526, eq. 4) that never holds the whole matrix.

The score of query q at (y, x) and key k at (v, u) is ``scale q.k + rel_h(q)[v] + rel_w(q)[u]``. segment_anything adds
that bias to a matrix of all pairs of tokens, 805 MB for a block of ViT-B on a canvas of 1024 pixels, and goes over it
six times. Here every way is scaled_dot_product_attention's: no more than a block of the matrix exists at once.

Shapes: ``F`` independent attentions (images x windows x heads), ``G`` tokens per side, ``N = G * G``, ``d`` channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_PAIRS_PER_THREAD = 2**20
"""Pairs of tokens that are worked on at once: 4 MiB of scores in float32, which a core's cache holds."""


def relative_table(embedding: Tensor, side: int) -> Tensor:
    """Return the embedding of the distance between any two positions of a side.

    Args:
        embedding: (2 g - 1, d), distances from -(g - 1) to g - 1; resampled where g is not ``side``.
        side: G.

    Returns:
        (G, G, d): entry [i, j] is that of distance i - j.
    """
    if len(embedding) != 2 * side - 1:
        embedding = F.interpolate(embedding.T[None], size=2 * side - 1, mode="linear", align_corners=False)[0].T
    positions = torch.arange(side, device=embedding.device)
    return embedding[positions[:, None] - positions[None, :] + side - 1]


def relative_attention(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, *, scale: float) -> Tensor:
    """Return the attention of tokens on a grid, with gradients for all five tensors.

    On a CPU it is worked out in blocks whose bias stays in the cache, elsewhere (and where torch.compile makes the
    kernels) with the bias folded into longer queries and keys, which a fused kernel takes that knows no bias.

    Args:
        q: (F, N, d) queries, in rows of the grid.
        k: (F, N, d) keys.
        v: (F, N, d) values.
        rel_h: (F, N, G) what a query adds for a key in each row of the grid.
        rel_w: (F, N, G) what it adds for a key in each column.
        scale: of the product of query and key.

    Returns:
        (F, N, d).
    """
    if q.device.type == "cpu" and not torch.compiler.is_compiling():
        return _BlockedAttention.apply(q, k, v, rel_h, rel_w, scale)
    return folded_attention(q, k, v, rel_h, rel_w, scale=scale)


def folded_attention(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, *, scale: float) -> Tensor:
    """Return what :func:`relative_attention` does, without a bias.

    ``[scale q, rel_h, rel_w] . [k, onehot(row), onehot(column)]`` is the score exactly, so a kernel that skips the
    matrix needs no more than longer vectors. On a GPU that is torch's memory-efficient attention (arXiv 2112.05682);
    FlashAttention (arXiv 2205.14135) would want the values as long as the queries, three times what they are.
    """
    rows, columns = (torch.eye(rel.shape[2], dtype=k.dtype, device=k.device) for rel in (rel_h, rel_w))
    places = torch.cat([rows.repeat_interleave(len(columns), dim=0), columns.repeat(len(rows), 1)], dim=1)
    long_q = torch.cat([q * scale, rel_h, rel_w], dim=2)
    long_k = torch.cat([k, places.expand(len(k), -1, -1)], dim=2)
    # Fused kernels want lengths that are multiples of 8, and a CPU's wants values as long as the queries.
    length = -(-long_q.shape[2] // 8) * 8
    long_q, long_k = (F.pad(vectors, (0, length - vectors.shape[2])) for vectors in (long_q, long_k))
    values = F.pad(v, (0, length - v.shape[2])) if v.device.type == "cpu" else v
    found = F.scaled_dot_product_attention(long_q[None], long_k[None], values[None], scale=1.0)[0]
    return found[:, :, : v.shape[2]]


class _BlockedAttention(torch.autograd.Function):
    """Attention block by block; the backward pass makes each block's scores again, as FlashAttention's does.

    A block is some whole attentions where they are small, as in windows, and else some queries of one attention.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, scale: float) -> Tensor:
        out = torch.empty_like(v)
        for at, rows in _blocks(len(q), q.shape[1]):
            bias = _bias(rel_h[at, rows], rel_w[at, rows])
            found = F.scaled_dot_product_attention(
                q[None, at, rows], k[None, at], v[None, at], attn_mask=bias[None], scale=scale
            )
            out[at, rows] = found[0]
        ctx.save_for_backward(q, k, v, rel_h, rel_w, out)
        ctx.scale = scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, rel_h, rel_w, out = ctx.saved_tensors
        grad_q, grad_h, grad_w = torch.empty_like(q), torch.empty_like(rel_h), torch.empty_like(rel_w)
        grad_k, grad_v = torch.zeros_like(k), torch.zeros_like(v)
        for at, rows in _blocks(len(q), q.shape[1]):
            queries, grad_out = q[at, rows] * ctx.scale, grad[at, rows]
            scores = torch.baddbmm(_bias(rel_h[at, rows], rel_w[at, rows]), queries, k[at].mT)
            weights = scores.float().softmax(dim=2)
            # Of softmax: weights * (g - sum of weights * g), and that sum is the product of output and its gradient.
            inner = (grad_out.float() * out[at, rows].float()).sum(dim=2, keepdim=True)
            grad_scores = torch.bmm(grad_out, v[at].mT).float().sub_(inner).mul_(weights).to(q.dtype)
            grad_v[at] += torch.bmm(weights.to(q.dtype).mT, grad_out)
            grad_k[at] += torch.bmm(grad_scores.mT, queries)
            grad_q[at, rows] = torch.bmm(grad_scores, k[at]) * ctx.scale
            grid = grad_scores.unflatten(2, (rel_h.shape[2], rel_w.shape[2]))
            grad_h[at, rows] = grid.sum(dim=3)
            grad_w[at, rows] = grid.sum(dim=2)
        return grad_q, grad_k, grad_v, grad_h, grad_w, None


def _blocks(attentions: int, tokens: int) -> list[tuple[slice, slice]]:
    """Return which attentions and which of their queries are worked on at once; each pair once."""
    pairs = _PAIRS_PER_THREAD * torch.get_num_threads()
    together, rows = max(1, pairs // tokens**2), min(tokens, max(1, pairs // tokens))
    return [
        (slice(first, first + together), slice(row, row + rows))
        for first in range(0, attentions, together)
        for row in range(0, tokens, rows)
    ]


def _bias(rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """Return (f, n, G * G) of what n queries of f attentions add for keys in each row and column."""
    return (rel_h[:, :, :, None] + rel_w[:, :, None, :]).flatten(2)
