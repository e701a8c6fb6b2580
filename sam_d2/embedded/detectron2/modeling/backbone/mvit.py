"""MViTv2: "Improved Multiscale Vision Transformers for Classification and Detection", arXiv 2112.01526.

Tokens lie as (B, H, W, C). From stage to stage their number is halved along each axis, and their channels double.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from detectron2.modeling.backbone import utils
from detectron2.modeling.backbone.backbone import Backbone

__all__ = ["MViT", "MultiScaleAttention", "MultiScaleBlock"]

Layer = Callable[..., nn.Module]
Sizes = Sequence[int]


def _pooled(x: torch.Tensor, pool: nn.Module) -> torch.Tensor:
    """Run a layer for (B, C, H, W) on tokens."""
    return pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class MultiScaleAttention(nn.Module):
    """Attention whose queries, keys and values are pooled by strided convolutions."""

    def __init__(
        self, dim: int, dim_out: int, num_heads: int, qkv_bias: bool = True, norm_layer: Layer = nn.LayerNorm,
        pool_kernel: Sizes = (3, 3), stride_q: int = 1, stride_kv: int = 1, residual_pooling: bool = True,
        window_size: int = 0,
        use_rel_pos: bool = False, rel_pos_zero_init: bool = True, input_size: Sizes | None = None,
    ) -> None:  # fmt: skip
        """Make the layer.

        Args:
            dim: channels of the input.
            dim_out: channels of the output, a multiple of the heads.
            num_heads: number of heads.
            qkv_bias: queries, keys and values have a bias.
            norm_layer: makes the normalisation after each pooling from the number of channels.
            pool_kernel: (height, width) of the pooling.
            stride_q: stride of the queries' pooling.
            stride_kv: stride of the keys' and values' pooling.
            residual_pooling: add the pooled queries to the output.
            window_size: side of the windows in tokens of the input; 0 attends everywhere.
            use_rel_pos: add relative positions.
            rel_pos_zero_init: they begin as 0.
            input_size: (height, width) in tokens, equal, that the relative positions are made for.
        """
        super().__init__()
        self.num_heads = num_heads
        channels = dim_out // num_heads
        self.scale = channels**-0.5
        self.qkv = nn.Linear(dim, dim_out * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim_out, dim_out)
        for part, stride in (("q", stride_q), ("k", stride_kv), ("v", stride_kv)):
            spatial: Any = {"kernel_size": tuple(pool_kernel), "padding": [side // 2 for side in pool_kernel]}
            self.add_module(
                f"pool_{part}", nn.Conv2d(channels, channels, stride=stride, groups=channels, bias=False, **spatial)
            )
            self.add_module(f"norm_{part}", norm_layer(channels))
        self.window_size, self.residual_pooling, self.use_rel_pos = window_size, residual_pooling, use_rel_pos
        self.q_win_size, self.kv_win_size = window_size // stride_q, window_size // stride_kv
        if use_rel_pos:
            assert input_size is not None and input_size[0] == input_size[1], f"{input_size} is no square"
            positions = 2 * max(input_size[0] // stride_q, input_size[0] // stride_kv) - 1
            self.rel_pos_h = nn.Parameter(torch.zeros(positions, channels))
            self.rel_pos_w = nn.Parameter(torch.zeros(positions, channels))
            if not rel_pos_zero_init:
                nn.init.trunc_normal_(self.rel_pos_h, std=0.02)
                nn.init.trunc_normal_(self.rel_pos_w, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, H / stride_q, W / stride_q, dim_out) for tokens (B, H, W, dim)."""
        heads = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(3, 0, 4, 1, 2, 5).flatten(1, 2)
        q, k, v = (  # (B * heads, H', W', C) each
            getattr(self, f"norm_{part}")(_pooled(value, getattr(self, f"pool_{part}")))
            for part, value in zip("qkv", heads, strict=True)
        )
        pooled_q = q
        if self.window_size:
            q, padded = utils.window_partition(q, self.q_win_size)
            k, v = (utils.window_partition(value, self.kv_win_size)[0] for value in (k, v))
        q_size, k_size = q.shape[1:3], k.shape[1:3]
        q, k, v = (value.flatten(1, 2) for value in (q, k, v))
        attention = (q * self.scale) @ k.transpose(-2, -1)
        if self.use_rel_pos:
            attention = utils.add_decomposed_rel_pos(attention, q, self.rel_pos_h, self.rel_pos_w, q_size, k_size)
        out = (attention.softmax(dim=-1) @ v).unflatten(1, q_size)
        if self.window_size:
            out = utils.window_unpartition(out, self.q_win_size, padded, pooled_q.shape[1:3])
        if self.residual_pooling:
            out += pooled_q
        return self.proj(out.unflatten(0, (-1, self.num_heads)).permute(0, 2, 3, 1, 4).flatten(-2))


class MultiScaleBlock(nn.Module):
    """Pooling attention and a perceptron, each beside a shortcut."""

    def __init__(
        self, dim: int, dim_out: int, num_heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0,
        norm_layer: Layer = nn.LayerNorm, act_layer: Layer = nn.GELU, qkv_pool_kernel: Sizes = (3, 3),
        **attention: Any,
    ) -> None:  # fmt: skip
        """Make the block.

        Args:
            dim: channels of the input.
            dim_out: channels of the output.
            num_heads: heads of the attention.
            mlp_ratio: hidden channels of the perceptron, by the output's.
            drop_path: probability with which a sample skips each half of the block in training.
            norm_layer: makes a normalisation from the number of channels.
            act_layer: makes the activation of the perceptron.
            qkv_pool_kernel: ``pool_kernel`` of the attention.
            attention: further arguments of :class:`MultiScaleAttention`; ``stride_q`` is the stride of the block.
        """
        super().__init__()
        stride = attention.get("stride_q", 1)
        self.norm1 = norm_layer(dim)
        attention.update(norm_layer=norm_layer, pool_kernel=qkv_pool_kernel)
        self.attn = MultiScaleAttention(dim, dim_out, num_heads, **attention)
        self.drop_path = StochasticDepth(drop_path, "row") if drop_path > 0 else nn.Identity()
        self.norm2 = norm_layer(dim_out)
        hidden = int(dim_out * mlp_ratio)
        layers = OrderedDict(fc1=nn.Linear(dim_out, hidden), act=act_layer(), fc2=nn.Linear(hidden, dim_out))
        self.mlp = nn.Sequential(layers)
        if dim != dim_out:
            self.proj = nn.Linear(dim, dim_out)
        if stride > 1:
            self.pool_skip = nn.MaxPool2d(stride + 1, stride, (stride + 1) // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, H / stride_q, W / stride_q, dim_out) for tokens (B, H, W, dim)."""
        normalised = self.norm1(x)
        skipped = self.proj(normalised) if hasattr(self, "proj") else x
        skipped = _pooled(skipped, self.pool_skip) if hasattr(self, "pool_skip") else skipped
        x = skipped + self.drop_path(self.attn(normalised))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class MViT(Backbone):
    """The backbone: its stages end with feature maps ``scale2``, ``scale3``, ``scale4`` and ``scale5``."""

    def __init__(
        self, img_size: int = 224,
        patch_kernel: Sizes = (7, 7), patch_stride: Sizes = (4, 4), patch_padding: Sizes = (3, 3), in_chans: int = 3,
        embed_dim: int = 96, depth: int = 16, num_heads: int = 1, last_block_indexes: Sizes = (0, 2, 11, 15),
        qkv_pool_kernel: Sizes = (3, 3), adaptive_kv_stride: int = 4, adaptive_window_size: int = 56,
        residual_pooling: bool = True, mlp_ratio: float = 4.0, qkv_bias: bool = True, drop_path_rate: float = 0.0,
        norm_layer: Layer = nn.LayerNorm, act_layer: Layer = nn.GELU,
        use_abs_pos: bool = False, use_rel_pos: bool = True, rel_pos_zero_init: bool = True,
        use_act_checkpoint: bool = False, pretrain_img_size: int = 224, pretrain_use_cls_token: bool = True,
        out_features: Sequence[str] = ("scale2", "scale3", "scale4", "scale5"),
    ) -> None:  # fmt: skip
        """Make the network.

        Args:
            img_size: side of the images, in pixels, that the relative positions are made for.
            patch_kernel: (height, width) of the pixels that a token sees.
            patch_stride: pixels from one token to the next, (down, right).
            patch_padding: pixels around the image.
            in_chans: channels of the images.
            embed_dim: channels of the first stage.
            depth: number of blocks.
            num_heads: heads of the first stage; they double with the channels.
            last_block_indexes: of the last block of each of the four stages. Those of all stages but the first
                attend to the whole image, all other blocks within windows.
            qkv_pool_kernel: (height, width) of the pooling in attention.
            adaptive_kv_stride: stride of keys and values in the first stage, halved from stage to stage.
            adaptive_window_size: side of the windows in tokens of the first stage, halved likewise.
            residual_pooling: add the pooled queries to what attention gives.
            mlp_ratio: hidden channels of the perceptrons, by their input's.
            qkv_bias: queries, keys and values have a bias.
            drop_path_rate: of the last block; it grows from 0 linearly.
            norm_layer: makes a normalisation from the number of channels.
            act_layer: has no effect, as in Detectron2; the blocks' activation is GELU.
            use_abs_pos: add absolute positions to the tokens.
            use_rel_pos: add relative positions to attention.
            rel_pos_zero_init: they begin as 0.
            use_act_checkpoint: compute the blocks again in the backward pass instead of keeping their activations.
            pretrain_img_size: side of the images, in pixels, that the absolute positions were trained for.
            pretrain_use_cls_token: they hold one of a class token.
            out_features: names of the feature maps to return.
        """
        super().__init__()
        self.pretrain_use_cls_token, self.use_act_checkpoint = pretrain_use_cls_token, use_act_checkpoint
        self.patch_embed = utils.PatchEmbed(patch_kernel, patch_stride, patch_padding, in_chans, embed_dim)
        block = partial(MultiScaleBlock, mlp_ratio=mlp_ratio, norm_layer=norm_layer, qkv_pool_kernel=qkv_pool_kernel)
        block = partial(block, qkv_bias=qkv_bias, residual_pooling=residual_pooling)
        block = partial(block, use_rel_pos=use_rel_pos, rel_pos_zero_init=rel_pos_zero_init)
        self.blocks = nn.ModuleList()
        drop_paths = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()  # known on the meta device too
        for index, drop_path in enumerate(drop_paths):
            # The first block of a stage takes the tokens of the stage before and gives those of its own.
            after = 2 ** sum(last < index for last in last_block_indexes)
            before = after // 2 if index - 1 in last_block_indexes else after
            made = block(
                embed_dim * before,
                embed_dim * after,
                num_heads * after,
                drop_path=drop_path,
                stride_q=after // before,
                # The last blocks of the second and third stage see the whole image, at the next stage's price.
                stride_kv=max(adaptive_kv_stride // after, 1) * (2 if index in last_block_indexes[1:3] else 1),
                window_size=0 if index in last_block_indexes[1:] else adaptive_window_size // before,
                input_size=[img_size // stride // before for stride in patch_stride],
            )
            self.blocks.append(made)
        self._out_features = list(out_features)
        self._out_feature_strides, self._out_feature_channels = {}, {}
        self._stage_ends = {index: f"scale{number}" for number, index in enumerate(last_block_indexes, 2)}
        for stage, name in enumerate(self._stage_ends.values()):
            if name in out_features:
                self._out_feature_strides[name] = patch_stride[0] * 2**stage
                self._out_feature_channels[name] = embed_dim * 2**stage
                self.add_module(f"{name}_norm", norm_layer(embed_dim * 2**stage))
        self.pos_embed = None
        if use_abs_pos:
            patches = (pretrain_img_size // patch_stride[0]) * (pretrain_img_size // patch_stride[1])
            self.pos_embed = nn.Parameter(torch.empty(1, patches + pretrain_use_cls_token, embed_dim))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the feature maps (B, C, H / stride, W / stride) for normalised images (B, in_chans, H, W), padded."""
        x = self.patch_embed(x)
        if self.pos_embed is not None:
            x = x + utils.get_abs_pos(self.pos_embed, self.pretrain_use_cls_token, x.shape[1:3])
        outputs = {}
        recompute = self.use_act_checkpoint and torch.is_grad_enabled()
        for index, block in enumerate(self.blocks):
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
            name = self._stage_ends.get(index)
            if name in self._out_features:
                outputs[name] = getattr(self, f"{name}_norm")(x).permute(0, 3, 1, 2)
        return outputs
