"""SAM's mask decoder, 100 box prompts of one image: sam_d2's against segment_anything's.

The shapes are those of every official SAM: 64 x 64 positions of 256 channels, two layers of 8 heads. The same random
weights and prompts; float32, no gradient. The answers are predicted IoU and, of each mask, logits at 32 of its cells;
those of ours in bfloat16 and compiled, which a GPU adds, are not compared.
"""

from __future__ import annotations

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer

from benchmarks import Benchmark, Measured, Ratio, device, measure
from sam_d2.modeling.mask_decoder import SharedMaskDecoder

PROMPTS, WIDTH, SIDE, CANVAS = 100, 256, 64, 1024


@torch.no_grad()
def decode(kind: type[MaskDecoder], *, bfloat16: bool = False, compiled: bool = False) -> Measured:
    torch.manual_seed(0)
    transformer = TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=2048, num_heads=8)
    decoder = kind(num_multimask_outputs=3, transformer=transformer, transformer_dim=WIDTH).eval()
    encoder = PromptEncoder(WIDTH, (SIDE, SIDE), (CANVAS, CANVAS), mask_in_chans=16)
    image, boxes = torch.randn(1, WIDTH, SIDE, SIDE), (torch.rand(PROMPTS, 2, 2) * CANVAS).sort(dim=1).values.flatten(1)
    decoder, encoder, image = decoder.to(device()), encoder.to(device()), image.to(device())
    sparse, dense = encoder(points=None, boxes=boxes.to(device()), masks=None)
    if compiled:
        decoder.compile()

    def run(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(device(), dtype=torch.bfloat16, enabled=bfloat16):
            return decoder(
                image_embeddings=image,
                image_pe=encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse[:count],
                dense_prompt_embeddings=dense[:count],
                multimask_output=False,
            )

    run(PROMPTS if device() == "cuda" else 1)  # warm up; a GPU also chooses its kernels by shape
    (logits, iou), figures = measure(lambda: run(PROMPTS))
    return Measured(figures, [*iou.flatten().tolist(), *logits.flatten(1)[:, :: 2 * CANVAS].flatten().tolist()])


OURS, PEER = "sam_d2", "segment_anything"
FASTER = {}
if device() == "cuda":
    FASTER = {
        "sam_d2, bfloat16": lambda: decode(SharedMaskDecoder, bfloat16=True),
        "sam_d2, bfloat16 and torch.compile": lambda: decode(SharedMaskDecoder, bfloat16=True, compiled=True),
    }

BENCHMARK = Benchmark(
    cases={OURS: lambda: decode(SharedMaskDecoder), **FASTER, PEER: lambda: decode(MaskDecoder)},
    ratios=(
        Ratio("seconds", OURS, PEER, at_least=1.3),
        *(Ratio(figure, OURS, PEER) for figure in ("cpu_seconds", "step_mib")),
        *(Ratio("seconds", one, PEER) for one in FASTER),
    ),
    same_answers=((OURS, PEER),),
    tolerance=1e-5 if device() == "cpu" else 1e-3,
    gpu=True,
)
