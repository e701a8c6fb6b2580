"""Random state and versions of the environment."""

import logging
import os
import random

import numpy as np
import torch

__all__ = ["TORCH_VERSION", "seed_all_rng"]

TORCH_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])
"""(major, minor) of PyTorch."""


def seed_all_rng(seed: int | None = None) -> None:
    """Seed Python's, numpy's and torch's random numbers, the GPUs' included.

    Args:
        seed: in [0, 2**32); a fresh one from the operating system, written to the log, where None is given.
    """
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "big")
        logging.getLogger(__name__).info(f"Using a generated random seed {seed}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # seeds every GPU as well
    os.environ["PYTHONHASHSEED"] = str(seed)
