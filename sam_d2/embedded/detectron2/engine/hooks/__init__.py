"""Hooks for all that happens around a training step."""

from .best_checkpointer import BestCheckpointer
from .callback import CallbackHook
from .evaluation import EvalHook
from .iteration_timer import IterationTimer
from .lr_scheduler import LRScheduler
from .memory import TorchMemoryStats
from .periodic_checkpointer import PeriodicCheckpointer
from .periodic_writer import PeriodicWriter
from .precise_bn import PreciseBN
from .profiler import AutogradProfiler, TorchProfiler

__all__ = [
    "AutogradProfiler",
    "BestCheckpointer",
    "CallbackHook",
    "EvalHook",
    "IterationTimer",
    "LRScheduler",
    "PeriodicCheckpointer",
    "PeriodicWriter",
    "PreciseBN",
    "TorchMemoryStats",
    "TorchProfiler",
]
