"""Where the time of chosen iterations goes."""

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from detectron2.utils import comm

from ..train_loop import HookBase


class TorchProfiler(HookBase):
    """Run ``torch.profiler`` around the steps that a predicate picks.

    The first steps are slower than the rest, so a predicate usually leaves them out::

        TorchProfiler(lambda trainer: 10 < trainer.iter < 20, output_dir)
    """

    _detailed = True  # shapes, memory, stacks and operation counts besides times

    def __init__(
        self,
        enable_predicate: Callable[[Any], bool],
        output_dir: str,
        *,
        activities: Iterable[torch.profiler.ProfilerActivity] | None = None,
        save_tensorboard: bool = True,
    ) -> None:
        """Say which steps, and where to.

        Args:
            enable_predicate: asked before each step, with the trainer.
            output_dir: traces are written here.
            activities: as ``torch.profiler.profile`` takes them.
            save_tensorboard: write ``log/profiler-tensorboard-iter<N>/`` for TensorBoard rather than
                ``profiler-trace-iter<N>.json`` for Chrome's trace viewer.
        """
        self._enable_predicate = enable_predicate
        self._output_dir = Path(output_dir)
        self._activities = activities
        self._save_tensorboard = save_tensorboard
        self._profiler: torch.profiler.profile | None = None

    def before_step(self) -> None:
        """Start profiling where this step is picked."""
        if not self._enable_predicate(self.trainer):
            self._profiler = None
            return
        on_trace_ready = None
        if self._save_tensorboard:
            folder = self._output_dir / "log" / f"profiler-tensorboard-iter{self.trainer.iter}"
            on_trace_ready = torch.profiler.tensorboard_trace_handler(str(folder), f"worker{comm.get_rank()}")
        self._profiler = torch.profiler.profile(
            activities=self._activities,
            on_trace_ready=on_trace_ready,
            record_shapes=self._detailed,
            profile_memory=self._detailed,
            with_stack=self._detailed,
            with_flops=self._detailed,
        )
        self._profiler.__enter__()

    def after_step(self) -> None:
        """Stop, and write the trace."""
        if self._profiler is None:
            return
        self._profiler.__exit__(None, None, None)
        if not self._save_tensorboard:
            self._output_dir.mkdir(parents=True, exist_ok=True)
            trace = self._output_dir / f"profiler-trace-iter{self.trainer.iter}.json"
            self._profiler.export_chrome_trace(str(trace))


class AutogradProfiler(TorchProfiler):
    """The older profiler's name: times of operators only, as a Chrome trace."""

    _detailed = False

    def __init__(self, enable_predicate: Callable[[Any], bool], output_dir: str, *, use_cuda: bool = True) -> None:
        """Say which steps, and where to.

        Args:
            enable_predicate: asked before each step, with the trainer.
            output_dir: ``profiler-trace-iter<N>.json`` are written here.
            use_cuda: time CUDA kernels too, where there is CUDA.
        """
        warnings.warn("AutogradProfiler has been deprecated in favor of TorchProfiler.", stacklevel=2)
        activities = [torch.profiler.ProfilerActivity.CPU]
        if use_cuda and torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        super().__init__(enable_predicate, output_dir, activities=activities, save_tensorboard=False)
