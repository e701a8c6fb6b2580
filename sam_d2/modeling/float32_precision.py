"""What torch makes of float32 where it may be less exact: TF32 on a GPU, bfloat16 on some CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Any: what they have follows the version of torch.
_CUDNN: Any = torch.backends.cudnn
_MKLDNN: Any = torch.backends.mkldnn
_BACKENDS = (torch.backends.cuda.matmul, _MKLDNN.matmul) if hasattr(torch.backends, "fp32_precision") else ()
_EXACT = ("ieee", "none")


def float32_precision() -> list[Any]:
    """Return the settings that decide how exact products and convolutions of float32 are."""
    if _BACKENDS:  # with these settings in use, torch refuses to tell the older ones
        convolutions = (_CUDNN.conv, _MKLDNN.conv)
        return [backend.fp32_precision for backend in (*_BACKENDS, *convolutions)]
    return [torch.get_float32_matmul_precision(), _CUDNN.allow_tf32]


@contextmanager
def exact_products() -> Iterator[None]:
    """Compute products of float32 matrices in float32 inside the block, whatever a run allows."""
    if not _BACKENDS:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
        return
    changed = [(backend, backend.fp32_precision) for backend in _BACKENDS if backend.fp32_precision not in _EXACT]
    for backend, _ in changed:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, precision in changed:
            backend.fp32_precision = precision
