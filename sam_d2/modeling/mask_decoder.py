"""SAM's mask decoder with its work in another order: the same parameters and masks, in less time and memory.

SAM (segment_anything, arXiv 2304.02643) gives each prompt an image of its own and projects all its positions for every
attention. Here

- what attends to the image before any prompt has changed it is projected once for all prompts;
- afterwards an image has thousands of positions and a prompt a few tokens, so the tokens are projected in place of the
  positions: q (W k) is (q W) k;
- the transposed convolutions, whose pixels do not overlap, are matrix products that keep the channels together;
- only the masks that are asked for are made.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder
from torch import Tensor, nn

from sam_d2.errors import UserError

PROMPTS_AT_ONCE = 4
"""Prompts that a CPU decodes at once where no gradient is asked for: what they have in between stays in its cache."""


_Module = Any
"""A module of segment_anything: torch does not know the types of what is in it."""


class SharedMaskDecoder(MaskDecoder):
    """segment_anything's MaskDecoder with a TwoWayTransformer, to which prompts of several images may be given at once.

    Its arguments, parameters and names are those of the class that it stands for. Masks and gradients differ by
    rounding. It needs the weights themselves, so the attentions' projections must be plain linear layers.
    """

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        """Decode prompts.

        Args:
            image_embeddings: (1, C, h, w) of the image of all prompts, or (N, C, h, w), one of each prompt.
            image_pe: (1, C, h, w) encoded positions.
            sparse_prompt_embeddings: (N, T, C) tokens of points and boxes.
            dense_prompt_embeddings: (N, C, h, w) of mask prompts; expanded from (1, C, h, w) where there are none.
            multimask_output: True for the three masks of an ambiguous prompt, False for the single one.

        Returns:
            Mask logits (N, M, 4h, 4w) and predicted IoU (N, M); M is 3 or 1.
        """
        # An expanded tensor is the same for all prompts, and so is its sum with one image.
        dense = dense_prompt_embeddings
        if len(dense) > 1 and dense.stride(0) == 0:
            dense = dense[:1]
        image, positions = _positions_first(image_embeddings + dense), _positions_first(image_pe)
        shared = _Shared.of(self.transformer.layers[0], image, positions) if len(image) == 1 else None
        size, prompts = image_embeddings.shape[-2:], sparse_prompt_embeddings
        # A loop would be compiled anew for every number of prompts; and a graph keeps what is in between anyway.
        if image.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling() or not len(prompts):
            return self._decode(prompts, image, positions, shared, size, multimask_output)
        parts = [
            self._decode(part, keys, positions, shared, size, multimask_output)
            for part, keys in zip(
                prompts.split(PROMPTS_AT_ONCE),
                itertools.repeat(image) if shared is not None else image.split(PROMPTS_AT_ONCE),
                strict=False,
            )
        ]
        logits, predicted_iou = (torch.cat(part) for part in zip(*parts, strict=True))
        return logits, predicted_iou

    def _decode(
        self,
        prompts: Tensor,
        image: Tensor,
        positions: Tensor,
        shared: _Shared | None,
        size: torch.Size,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        """Decode some prompts (n, T, C) of one image (1, hw, C), or of one each (n, hw, C), whose side is ``size``."""
        queries, keys = self._attend(prompts, image, positions, shared)
        masks = range(1, self.num_mask_tokens) if multimask_output else range(1)
        weights = [self.output_hypernetworks_mlps[one](queries[:, 1 + one]) for one in masks]
        logits = self._upscale(keys, torch.stack(weights, dim=2), size)
        return logits, self.iou_prediction_head(queries[:, 0])[:, masks.start : masks.stop]

    def _attend(
        self, prompt_tokens: Tensor, keys: Tensor, positions: Tensor, shared: _Shared | None
    ) -> tuple[Tensor, Tensor]:
        """Run the transformer: tokens (n, 5 + T, C), and the image (n, hw, C) as each prompt has changed it."""
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(len(prompt_tokens), -1, -1), prompt_tokens], dim=1)
        queries = tokens
        for number, layer in enumerate(self.transformer.layers):
            unchanged = shared if number == 0 else None
            if layer.skip_first_layer_pe:
                queries = layer.norm1(layer.self_attn(q=queries, k=queries, v=queries))
            else:
                placed = queries + tokens
                queries = layer.norm1(queries + layer.self_attn(q=placed, k=placed, v=queries))
            seen = keys + positions
            answer = _tokens_to_image(layer.cross_attn_token_to_image, queries + tokens, seen, keys, unchanged)
            queries = layer.norm2(queries + answer)
            queries = layer.norm3(queries + layer.mlp(queries))
            keys = layer.norm4(
                _image_to_tokens(layer.cross_attn_image_to_token, queries + tokens, queries, seen, keys, unchanged)
            )
        attention = self.transformer.final_attn_token_to_image
        answer = _tokens_to_image(attention, queries + tokens, keys + positions, keys, None)
        return self.transformer.norm_final_attn(queries + answer), keys

    def _upscale(self, keys: Tensor, weights: Tensor, size: torch.Size) -> Tensor:
        """Return (n, M, 4h, 4w) logits: the upscaled image (n, hw, C) times the weights (n, c, M) of each mask."""
        first, norm, activation, second, last_activation = self.output_upscaling
        pixels = activation(_normalised(_four_pixels(first, keys.flatten(0, 1)), norm))
        pixels = last_activation(_four_pixels(second, pixels)).view(len(keys), -1, weights.shape[1])
        # Of each position: 2 x 2 pixels (row, column), and of each of them 2 x 2 again.
        logits = (pixels @ weights).view(len(keys), *size, 2, 2, 2, 2, -1).permute(0, 7, 1, 3, 5, 2, 4, 6)
        return logits.reshape(len(keys), -1, 4 * size[0], 4 * size[1])


class _Shared(NamedTuple):
    """What the first layer's attentions make of the image of all prompts, each (1, heads, hw, d)."""

    keys: Tensor
    values: Tensor
    queries: Tensor

    @staticmethod
    def of(layer: _Module, image: Tensor, positions: Tensor) -> _Shared:
        seen, to_image, to_tokens = image + positions, layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
        return _Shared(
            _heads(to_image, to_image.k_proj(seen)).transpose(1, 2),
            _heads(to_image, to_image.v_proj(image)).transpose(1, 2),
            _heads(to_tokens, to_tokens.q_proj(seen)).transpose(1, 2),
        )


def _positions_first(image: Tensor) -> Tensor:
    return image.flatten(2).transpose(1, 2)


def _heads(attention: _Module, projected: Tensor) -> Tensor:
    """Return (n, t, heads, d) of (n, t, heads * d)."""
    return projected.unflatten(-1, (attention.num_heads, -1))


def _by_head(attention: _Module, projection: nn.Linear, dim: int = 0) -> Tensor:
    """Return a projection's (heads, d, C) weights; those of the last (C, heads, d), whose heads are in dim 1."""
    if type(projection) is not nn.Linear:
        raise UserError(
            f"model.mask_decoder: {type(projection).__name__} in place of a linear layer, as LoRA has it, needs "
            "model.mask_decoder._target_=segment_anything.modeling.MaskDecoder."
        )
    return projection.weight.unflatten(dim, (attention.num_heads, -1))


def _tokens_to_image(attention: _Module, tokens: Tensor, seen: Tensor, keys: Tensor, shared: _Shared | None) -> Tensor:
    """Return what (n, t, C) tokens find in the image, whose positions (n, hw, C) they see and whose keys they take."""
    n, t, _ = tokens.shape
    queries = _heads(attention, attention.q_proj(tokens))
    if shared is not None:
        queries = queries.flatten(0, 1)[None].transpose(1, 2)
        found = F.scaled_dot_product_attention(queries, shared.keys, shared.values)
        return attention.out_proj(found[0].transpose(0, 1).reshape(n, t, -1))
    # The bias of the keys adds the same to all positions, which the softmax does not see.
    folded = torch.einsum("nthd,hdc->nhtc", queries, _by_head(attention, attention.k_proj)) * queries.shape[-1] ** -0.5
    weights = (folded.flatten(1, 2) @ seen.transpose(1, 2)).softmax(dim=-1)
    context = (weights @ keys).view(n, attention.num_heads, t, -1)
    found = torch.einsum("nhtc,hdc->nthd", context, _by_head(attention, attention.v_proj)).flatten(2)
    return attention.out_proj(found + attention.v_proj.bias)


def _image_to_tokens(
    attention: _Module, placed: Tensor, tokens: Tensor, seen: Tensor, keys: Tensor, shared: _Shared | None
) -> Tensor:
    """Return the keys (n, hw, C) of an image and what its positions find in (n, t, C) tokens."""
    n, t, _ = tokens.shape
    token_keys, values = (_heads(attention, one) for one in (attention.k_proj(placed), attention.v_proj(tokens)))
    token_keys = token_keys * token_keys.shape[-1] ** -0.5
    if shared is not None:
        scores = shared.queries[0] @ token_keys.permute(2, 3, 0, 1).flatten(2)
        scores = scores.unflatten(-1, (n, t)).permute(2, 1, 0, 3)
    else:
        folded = torch.einsum("nthd,hdc->ncht", token_keys, _by_head(attention, attention.q_proj)).flatten(2)
        bias = torch.einsum("nthd,hd->nht", token_keys, attention.q_proj.bias.unflatten(0, (attention.num_heads, -1)))
        scores = torch.baddbmm(bias.flatten(1)[:, None], seen, folded).unflatten(-1, (-1, t))
    weights = scores.softmax(dim=-1).flatten(2)
    # The weights of each head add up to 1, and so do the shares of the bias.
    projection = _by_head(attention, attention.out_proj, dim=1)
    found = torch.einsum("nthd,chd->nhtc", values, projection) + attention.out_proj.bias / attention.num_heads
    return torch.baddbmm(keys, weights, found.flatten(1, 2))


def _four_pixels(convolution: _Module, pixels: Tensor) -> Tensor:
    """Return the (4n, out) pixels that a transposed convolution of 2 x 2, stride 2, makes of (n, in) pixels."""
    weight = convolution.weight.permute(0, 2, 3, 1).flatten(1)
    return torch.addmm(convolution.bias.repeat(4), pixels, weight).view(-1, convolution.out_channels)


def _normalised(pixels: Tensor, norm: _Module) -> Tensor:
    return F.layer_norm(pixels, norm.weight.shape, norm.weight, norm.bias, norm.eps)
