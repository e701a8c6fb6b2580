"""SAM ViT-B's image encoder, a 1024-pixel image: ours, segment_anything's and transformers'.

The same random weights and image, no gradients, float32; and ours in bfloat16, on a GPU also compiled, whose answers
are not compared. The first call, in which libraries warm up, is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn

from benchmarks import Benchmark, Measured, Ratio, device, measure
from benchmarks._transformers import has_transformers, renamed
from sam_d2.modeling.image_encoder import FusedImageEncoderViT

TURNS = 2 if device() == "cpu" else 20
OURS, PEER, TRANSFORMERS = "sam_d2", "segment_anything", "transformers"
BF16, COMPILED = "sam_d2, bfloat16", "sam_d2, bfloat16 and torch.compile"
SIZES: dict[str, Any] = {
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
    "use_rel_pos": True,
    "window_size": 14,
    "global_attn_indexes": (2, 5, 8, 11),
    "norm_layer": partial(nn.LayerNorm, eps=1e-6),
}


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

    encoder = SamVisionModel(SamVisionConfig()).vision_encoder
    state = renamed({f"image_encoder.{name}": value for name, value in built(ImageEncoderViT).state_dict().items()})
    encoder.load_state_dict({name.removeprefix("vision_encoder."): value for name, value in state.items()}, strict=True)
    return encoder.eval()


def in_turns(build: Callable[[], nn.Module], *, bfloat16: bool = False, compiled: bool = False) -> Iterator[Measured]:
    encoder = build().to(device())
    if compiled:
        encoder.compile()
    image = torch.randn(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(1)).to(device())

    def turn() -> Tensor:
        with torch.no_grad(), torch.autocast(device(), dtype=torch.bfloat16, enabled=bfloat16):
            found = encoder(image)
        return found if isinstance(found, Tensor) else found.last_hidden_state

    turn()
    for _ in range(TURNS):
        embedding, figures = measure(turn)
        yield Measured(figures, embedding.float()[0, ::16, ::8, ::8].flatten().tolist())


def peer() -> str:
    others = [f"transformers {version('transformers')}"] if has_transformers() else []
    return ", ".join([f"segment_anything {version('segment-anything')}", *others])


PEERS = (PEER, TRANSFORMERS) if has_transformers() else (PEER,)
_ours = partial(in_turns, partial(built, FusedImageEncoderViT))
FASTER = {BF16: partial(_ours, bfloat16=True)}
if device() == "cuda":
    FASTER[COMPILED] = partial(_ours, bfloat16=True, compiled=True)

BENCHMARK = Benchmark(
    cases={
        OURS: _ours,
        **FASTER,
        PEER: partial(in_turns, partial(built, ImageEncoderViT)),
        **({TRANSFORMERS: partial(in_turns, of_transformers)} if has_transformers() else {}),
    },
    ratios=(
        Ratio("seconds", OURS, PEER, at_least=1.7),
        *(Ratio("seconds", OURS, one, at_least=1.0) for one in PEERS[1:]),
        *(Ratio(figure, OURS, one) for one in PEERS for figure in ("cpu_seconds", "peak_mib")),
        *(Ratio("seconds", one, PEER) for one in FASTER),
    ),
    same_answers=((OURS, *PEERS),),
    tolerance=1e-4 if device() == "cpu" else 1e-3,  # a GPU multiplies float32 in another order, or as TF32
    in_turn=((OURS, *FASTER, *PEERS),),
    peer=peer,
    gpu=True,
)
