"""SAM's mask decoder, 100 box prompts of one image: sam_d2's against segment_anything's.

The shapes are those of every official SAM: 64 x 64 positions of 256 channels, two layers of 8 heads. The same random
weights and prompts; float32, no gradient. The answers are predicted IoU and, of each mask, logits at 32 of its cells.
"""

from __future__ import annotations

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer

from benchmarks import Benchmark, Measured, Ratio, measure
from sam_d2.modeling.mask_decoder import SharedMaskDecoder

PROMPTS, WIDTH, SIDE, CANVAS = 100, 256, 64, 1024


@torch.no_grad()
def decode(kind: type[MaskDecoder]) -> Measured:
    torch.manual_seed(0)
    transformer = TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=2048, num_heads=8)
    decoder = kind(num_multimask_outputs=3, transformer=transformer, transformer_dim=WIDTH).eval()
    encoder = PromptEncoder(WIDTH, (SIDE, SIDE), (CANVAS, CANVAS), mask_in_chans=16)
    image, boxes = torch.randn(1, WIDTH, SIDE, SIDE), (torch.rand(PROMPTS, 2, 2) * CANVAS).sort(dim=1).values.flatten(1)
    sparse, dense = encoder(points=None, boxes=boxes, masks=None)

    def run(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        return decoder(
            image_embeddings=image,
            image_pe=encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse[:count],
            dense_prompt_embeddings=dense[:count],
            multimask_output=False,
        )

    run(1)
    (logits, iou), figures = measure(lambda: run(PROMPTS))
    return Measured(figures, [*iou.flatten().tolist(), *logits.flatten(1)[:, :: 2 * CANVAS].flatten().tolist()])


OURS, PEER = "sam_d2", "segment_anything"

BENCHMARK = Benchmark(
    cases={OURS: lambda: decode(SharedMaskDecoder), PEER: lambda: decode(MaskDecoder)},
    ratios=(
        Ratio("seconds", OURS, PEER, limit=1 / 1.3),
        *(Ratio(figure, OURS, PEER) for figure in ("cpu_seconds", "step_mib")),
    ),
    same_answers=((OURS, PEER),),
    tolerance=1e-5,
)
