"""Hugging Face transformers' SamModel with the weights of segment_anything's Sam."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from torch import Tensor

RENAMED = (
    (r"^image_encoder\.", "vision_encoder."),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"vision_encoder\.blocks\.", "vision_encoder.layers."),
    (r"\.neck\.(0|2)\.", lambda found: f".neck.conv{1 + int(found[1]) // 2}."),
    (r"\.neck\.(1|3)\.", lambda found: f".neck.layer_norm{1 + int(found[1]) // 2}."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"\.mask_downscaling\.(0|3|6)\.", lambda found: f".mask_embed.conv{1 + int(found[1]) // 3}."),
    (r"\.mask_downscaling\.(1|4)\.", lambda found: f".mask_embed.layer_norm{1 + int(found[1]) // 3}."),
    (r"\.point_embeddings\.", ".point_embed."),
    (r"\.pe_layer\.positional_encoding_gaussian_matrix$", ".shared_embedding.positional_embedding"),
    (r"\.output_upscaling\.(0|3)\.", lambda found: f".upscale_conv{1 + int(found[1]) // 3}."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"(head|mlps\.\d)\.layers\.0\.", r"\1.proj_in."),
    (r"(head|mlps\.\d)\.layers\.1\.", r"\1.layers.0."),
    (r"(head|mlps\.\d)\.layers\.2\.", r"\1.proj_out."),
)
"""segment_anything's names of weights as patterns, and transformers'."""


def has_transformers() -> bool:
    """Tell whether the package is here; it comes with ``pip install 'sam_d2[benchmarks]'``."""
    try:
        version("transformers")
    except PackageNotFoundError:
        return False
    return True


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a Sam, or some of them, under the names of SamModel."""
    weights = {}
    for name, value in state.items():
        for pattern, other in RENAMED:
            name = re.sub(pattern, other, name)
        weights[name] = value
    shared = "prompt_encoder.shared_embedding.positional_embedding"
    if shared in weights:
        weights["shared_image_embedding.positional_embedding"] = weights[shared]
    return weights
