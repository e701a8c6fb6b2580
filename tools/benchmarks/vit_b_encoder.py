"""SAM ViT-B's image encoder, a 1024-pixel image: ours, segment_anything's and transformers'.

The same random weights and image, no gradients, float32; and ours in bfloat16, whose answer is not compared. The first
call, in which libraries warm up, is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn

from benchmarks import Benchmark, Measured, Ratio, measure
from sam_d2.modeling.image_encoder import FusedImageEncoderViT

TURNS = 2
OURS, BF16, PEER, TRANSFORMERS = "sam_d2", "sam_d2, bfloat16", "segment_anything", "transformers"
SIZES: dict[str, Any] = {
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
    "use_rel_pos": True,
    "window_size": 14,
    "global_attn_indexes": (2, 5, 8, 11),
    "norm_layer": partial(nn.LayerNorm, eps=1e-6),
}
RENAMED = (
    ("patch_embed.proj.", "patch_embed.projection."),
    ("blocks.", "layers."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    ("neck.0.", "neck.conv1."),
    ("neck.1.", "neck.layer_norm1."),
    ("neck.2.", "neck.conv2."),
    ("neck.3.", "neck.layer_norm2."),
)
"""segment_anything's names of weights, and transformers'."""


def with_weights(encoder: nn.Module) -> nn.Module:
    """Give every weight a value: relative positions and biases begin with zeros, which would hide a fault."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return encoder.eval()


def built(kind: Callable[..., nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return with_weights(kind(**SIZES))


def of_transformers() -> nn.Module:
    """Return Hugging Face transformers' encoder of SAM ViT-B with the weights of the others."""
    from transformers import SamVisionConfig, SamVisionModel

    state = built(ImageEncoderViT).state_dict()
    for old, new in RENAMED:
        state = {name.replace(old, new): value for name, value in state.items()}
    encoder = SamVisionModel(SamVisionConfig()).vision_encoder
    encoder.load_state_dict(state, strict=True)
    return encoder.eval()


def in_turns(build: Callable[[], nn.Module], *, bfloat16: bool = False) -> Iterator[Measured]:
    encoder = build()
    image = torch.randn(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(1))

    def turn() -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            found = encoder(image)
        return found if isinstance(found, Tensor) else found.last_hidden_state

    turn()
    for _ in range(TURNS):
        embedding, figures = measure(turn)
        yield Measured(figures, embedding.float()[0, ::16, ::8, ::8].flatten().tolist())


def has_transformers() -> bool:
    try:
        version("transformers")
    except PackageNotFoundError:
        return False
    return True


def peer() -> str:
    others = [f"transformers {version('transformers')}"] if has_transformers() else []
    return ", ".join([f"segment_anything {version('segment-anything')}", *others])


PEERS = (PEER, TRANSFORMERS) if has_transformers() else (PEER,)

BENCHMARK = Benchmark(
    cases={
        OURS: partial(in_turns, partial(built, FusedImageEncoderViT)),
        BF16: partial(in_turns, partial(built, FusedImageEncoderViT), bfloat16=True),
        PEER: partial(in_turns, partial(built, ImageEncoderViT)),
        **({TRANSFORMERS: partial(in_turns, of_transformers)} if has_transformers() else {}),
    },
    ratios=(
        Ratio("seconds", OURS, PEER, at_least=1.7),
        *(Ratio(figure, OURS, one) for one in PEERS for figure in ("cpu_seconds", "peak_mib")),
        Ratio("seconds", BF16, PEER),
        *(Ratio("seconds", OURS, one) for one in PEERS[1:]),
    ),
    same_answers=((OURS, *PEERS),),
    tolerance=1e-4,
    in_turn=((OURS, BF16, *PEERS),),
    peer=peer,
)
