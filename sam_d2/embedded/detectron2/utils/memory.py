"""What to do when a GPU runs out of memory."""

import functools
import logging
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

__all__ = ["retry_if_cuda_oom"]

P = ParamSpec("P")
R = TypeVar("R")


def _is_cuda_oom(error: RuntimeError) -> bool:
    return "CUDA out of memory. " in str(error)


def _to_cpu(value: Any) -> Any:
    device = getattr(value, "device", None)
    on_gpu = getattr(device, "type", None) == "cuda" and hasattr(value, "to")
    return value.to(device="cpu") if on_gpu else value


def retry_if_cuda_oom(func: Callable[P, R]) -> Callable[P, R]:
    """Make a function try again when CUDA memory is exhausted: with emptied caches, then on the CPU.

    Args:
        func: a function without state, because it may run more than once. For the last try the arguments
            that have ``.device`` and ``.to`` go to the CPU; tensors nested in lists or dicts stay in place.

    Returns:
        a function with the same arguments, whose result may then be on the CPU.
    """

    @functools.wraps(func)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        for _ in range(2):
            try:
                return func(*args, **kwargs)
            except RuntimeError as error:
                if not _is_cuda_oom(error):
                    raise
            # outside of the handler: the traceback would keep the tensors of the failed call alive
            torch.cuda.empty_cache()
        logging.getLogger(__name__).info(f"CUDA is out of memory: {func} runs on the CPU")
        return func(*map(_to_cpu, args), **{name: _to_cpu(value) for name, value in kwargs.items()})

    return wrapped
