"""``train.compile``: image encoder and mask decoder by torch.compile, where there is a compiler."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from typing import Any

import torch

from sam_d2.errors import UserError

PARTS = ("image_encoder", "mask_decoder")


def compile_parts(model: Any, *, backend: str = "inductor") -> None:
    """Let torch.compile make the kernels of SAM's encoder and decoder; it does so at their first call.

    In place: the weights keep their names.

    Args:
        model: on its device.
        backend: of torch.compile.

    Raises:
        UserError: the model has no such parts, or inductor has no compiler for the device.
    """
    absent = [part for part in PARTS if not hasattr(model, part)]
    if absent:
        raise UserError(f"train.compile=True: this model has no {' and no '.join(absent)}; only SAM has.")
    if backend == "inductor":
        _require_compiler(model.device)
    for part in PARTS:
        getattr(model, part).compile(backend=backend)


def _require_compiler(device: torch.device) -> None:
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise UserError(
                "train.compile=True: torch.compile needs Triton on a GPU, and it is not installed: pip install triton. "
                "Or train without train.compile."
            )
        return
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise UserError(
            f"train.compile=True: torch.compile needs a C++ compiler, and {compiler} is not found. Install it (such as "
            "apt install g++), name another with the environment variable CXX, or train without train.compile."
        )
