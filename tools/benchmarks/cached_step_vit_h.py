"""A training step of SAM ViT-H with a frozen encoder and cached embeddings, against one without.

As ``cached-step``, with one later step of the peer: each runs the encoder, which takes a CPU a minute.
"""

from benchmarks.cached_step import benchmark

BENCHMARK = benchmark("vit_h", "sam_vit_h.py", at_least=6.0, later=1)
