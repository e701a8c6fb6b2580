"""The embedded core against Detectron2 itself, as ``embedded-core``, with the other architectures.

Of the process time 1.05 is allowed: what repeats of equal work differ by on a busy machine.
"""

from benchmarks.embedded_core import benchmark

BENCHMARK = benchmark(
    {
        "R_101_FPN": "mask_rcnn_R_101_FPN",
        "R_18_FPN": "mask_rcnn_R_18_FPN_GN",
        "Cascade MViTv2-T": "cascade_mask_rcnn_mvitv2_t",
    },
    limit=1.05,
)
