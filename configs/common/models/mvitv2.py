"""MViTv2-T (arXiv 2112.01526) with a feature pyramid, the backbone of both MViTv2 detectors."""

from functools import partial

from torch import nn

from detectron2.config import LazyCall as L
from detectron2.modeling import MViT

mvitv2_t = L(MViT)(
    embed_dim=96,
    depth=10,
    num_heads=1,
    last_block_indexes=[0, 2, 7, 9],
    residual_pooling=True,
    drop_path_rate=0.2,
    norm_layer=partial(nn.LayerNorm, eps=1e-6),
    out_features=["scale2", "scale3", "scale4", "scale5"],
)

mvitv2_input = dict(
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
    input_format="RGB",
)
