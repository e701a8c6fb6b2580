"""What a benchmark is: one file in this folder that defines ``BENCHMARK``; its name and docstring are the command's.

``tools/benchmark.py`` runs the cases in turn, each in a process of its own, and repeats that. A comparison with a
peer is two cases on the same inputs, a ``Ratio`` between them, and an entry in ``same_answers``; where the two are
close, a function that yields a figure per turn and an entry in ``in_turn``.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 2**20
DEVICE = "SAM_D2_BENCHMARK_DEVICE"
"""Variable with which the tool tells the processes of the cases what ``--device`` is."""


def device() -> str:
    """Return where models run: ``cpu`` or ``cuda``."""
    return os.environ.get(DEVICE, "cpu")


@dataclass(frozen=True)
class Measured:
    """What one run of a case found.

    Attributes:
        figures: numbers by name, the unit at the end of the name (``peak_mib``, ``seconds``).
        answer: numbers that the case worked out, to be compared with those of other cases.
    """

    figures: dict[str, float]
    answer: list[float]


@dataclass(frozen=True)
class Ratio:
    """A figure of one case over that of another: the median over the repeats and turns, each of which has a ratio.

    Attributes:
        figure: name in both cases' ``figures``.
        case: above the line.
        base: below it.
        limit: the most that it may be; None where it is only reported.
        at_least: instead of ``limit`` for a ratio that is told as "so many times faster": the least that the base's
            figure over the case's must be. It is that ratio, of which higher is better, that is then shown and kept.
    """

    figure: str
    case: str
    base: str
    limit: float | None = None
    at_least: float | None = None

    def of(self, case: float, base: float) -> float:
        """Return the ratio of two figures, the way round that it is told."""
        return case / base if self.at_least is None else base / case

    @property
    def name(self) -> str:
        """The two cases in the order in which they are divided."""
        return " / ".join([self.case, self.base] if self.at_least is None else [self.base, self.case])

    @property
    def bound(self) -> str:
        """What is asked of it, in words; empty where it is only reported."""
        if self.at_least is not None:
            return f"at least {self.at_least}"
        return "" if self.limit is None else f"at most {self.limit}"

    def holds(self, value: float) -> bool:
        """Tell whether a ratio is as asked for; NaN never is."""
        return (self.limit is None or value <= self.limit) and (self.at_least is None or value >= self.at_least)


@dataclass(frozen=True)
class Benchmark:
    """Cases and how they are compared.

    Attributes:
        cases: name to function; each call runs in a fresh process. One that yields measures once per turn.
        ratios: what is compared.
        same_answers: groups of cases that must have the same answer.
        tolerance: largest difference of two answers, relative to the larger and at least to 1.
        in_turn: groups of cases whose processes exist at the same time and take equally many turns, one after
            another, so that what else the machine does hits all of them alike.
        environment: variables that the process of a case gets beside those of the tool.
        peer: says what the cases are compared with; raises a UserError that says how to get it where it is absent.
        gpu: whether its cases take :func:`device`; the others have nothing to do on a GPU.
    """

    cases: dict[str, Callable[[], Measured | Iterator[Measured]]]
    ratios: tuple[Ratio, ...] = ()
    same_answers: tuple[tuple[str, ...], ...] = ()
    tolerance: float = 1e-4
    in_turn: tuple[tuple[str, ...], ...] = ()
    environment: Callable[[str], dict[str, str]] = lambda case: {}
    peer: Callable[[], str | None] = lambda: None
    gpu: bool = False

    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Return all cases in the order in which they are run: those that take turns together, others alone."""
        together = {case for group in self.in_turn for case in group}
        return *self.in_turn, *((case,) for case in self.cases if case not in together)


def measure(function: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Call a function and return its result with its time and memory.

    The figures are ``seconds``, ``cpu_seconds`` (of this process, all threads), ``peak_mib`` (the most resident memory
    of the process during the call) and ``step_mib`` (by how much that is above the memory before it). On a GPU the
    seconds are those between two events on the device, and memory is what tensors take there.
    """
    if device() == "cuda":
        return _measure_on_gpu(function)
    before = _reset_peak()
    start, cpu_start = time.perf_counter(), time.process_time()
    result = function()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak = _peak()
    return result, {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mib": peak, "step_mib": peak - before}


def _measure_on_gpu(function: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    cpu_start = time.process_time()
    begin.record()
    result = function()
    end.record()
    torch.cuda.synchronize()
    cpu_seconds, peak = time.process_time() - cpu_start, torch.cuda.max_memory_allocated()
    memory = {"peak_mib": peak / MIB, "step_mib": (peak - before) / MIB}
    return result, {"seconds": begin.elapsed_time(end) / 1000, "cpu_seconds": cpu_seconds, **memory}


def _reset_peak() -> float:
    """Forget the peak so far, where the system can, and return the resident memory in MiB."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return _peak()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not allowed everywhere; then an earlier, higher peak would stay the peak
        return _peak()
    return _kilobytes(status, "VmRSS") * 1024 / MIB


def _peak() -> float:
    """Return the most resident memory so far, in MiB."""
    status = Path("/proc/self/status")
    if status.is_file():
        return _kilobytes(status, "VmHWM") * 1024 / MIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def _kilobytes(status: Path, field: str) -> int:
    return int(next(line for line in status.read_text().splitlines() if line.startswith(field)).split()[1])
