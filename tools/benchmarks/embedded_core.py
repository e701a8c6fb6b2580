"""The embedded core against Detectron2 itself: time of detectors with the same weights.

Models and weights are those that ``tests/parity`` gives photographs to. A turn is the detections of one made image
of 320 x 416 pixels, or losses and gradients of two; small images and few regions show what a core itself takes,
beside the convolutions, which are torch's on both sides. The first turn, in which libraries warm up, is not counted.
One thread: ``cpu_seconds`` are those of the process, which other work on the machine changes less than ``seconds``.
``embedded-core-others`` has the other architectures.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import Benchmark, Measured, Ratio, measure
from sam_d2.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CHECKOUT = "SAM_D2_DETECTRON2_PATH"
OURS, THEIRS = "embedded", "Detectron2"
TURNS = 8
SIZE = (320, 416)


def peer() -> str:
    """Return which Detectron2 it is."""
    checkout = os.environ.get(CHECKOUT, "")
    if not checkout or not (Path(checkout) / "detectron2" / "__init__.py").is_file():
        raise UserError(
            f"{CHECKOUT}={checkout!r} has no detectron2/__init__.py. Name a checkout to measure against: "
            "git clone https://github.com/facebookresearch/detectron2. It need not be built."
        )
    command = ["git", "-C", checkout, "rev-parse", "--short", "HEAD"]
    return f"Detectron2 {subprocess.run(command, capture_output=True, text=True).stdout.strip() or 'without a commit'}"


def environment(case: str) -> dict[str, str]:
    """Return the variables that choose the core of a case; two cannot be imported by one process."""
    ours = case.endswith(OURS)
    path = [*([] if ours else [os.environ[CHECKOUT]]), str(ROOT), str(ROOT / "tests" / "parity")]
    return {
        "SAM_D2_DETECTRON2": "embedded" if ours else "installed",
        "PYTHONPATH": os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }


def detections(model: Any) -> Callable[[], list[float]]:
    """Return what detects objects in one image; its answer has all of them."""
    import torch
    from detectors import picture

    inputs = [{"image": picture(*SIZE, 0), "height": SIZE[0], "width": SIZE[1]}]
    model.eval()

    def turn() -> list[float]:
        with torch.inference_mode():
            found = model(inputs)[0]["instances"]
        parts = (found.pred_boxes.tensor, found.scores, found.pred_classes, found.pred_masks.sum(dim=(1, 2)))
        return [len(found), *torch.cat([part.flatten().double() for part in parts]).tolist()]

    return turn


def gradients(model: Any) -> Callable[[], list[float]]:
    """Return what computes losses and gradients of two images; its answer has losses and sizes of gradients.

    The optimizer's step, which is torch's, is left out.
    """
    import torch
    from detectors import picture, truth

    from detectron2.utils.events import EventStorage

    inputs = [{"image": picture(*SIZE, seed), "instances": truth(*SIZE, seed=seed)} for seed in range(2)]
    model.train()

    def turn() -> list[float]:
        torch.manual_seed(0)  # of the sampled regions and the dropped paths
        model.zero_grad()
        with EventStorage():
            losses = model(inputs)
            sum(losses.values()).backward()
        sizes = [value.grad.norm() for value in model.parameters() if value.grad is not None]
        return [value.item() for value in (*losses.values(), *sizes)]

    return turn


def in_turns(architecture: str, prepare: Callable[[Any], Callable[[], list[float]]]) -> Iterator[Measured]:
    """Measure an architecture of ``tests/parity/detectors.py``, whose folder is on the path here."""
    from cases_detectors import REAL, REAL_CONFIDENCE
    from detectors import detector

    model = detector(architecture, REAL, REAL_CONFIDENCE.get(architecture, 3.0))
    turn = prepare(model)
    turn()
    for _ in range(TURNS):
        answer, figures = measure(turn)
        yield Measured(figures, answer)


def benchmark(architectures: dict[str, str], *, at_least: float | None = None, limit: float | None = None) -> Benchmark:
    """Return the comparison for some architectures, by what they are called here.

    Args:
        architectures: names of the tables to those of ``tests/parity/detectors.py``.
        at_least: of Detectron2's process time over that of the core.
        limit: or of the core's over Detectron2's.
    """
    pairs = tuple(
        tuple(f"{name}, {task}, {core}" for core in (OURS, THEIRS))
        for name in architectures
        for task in ("detection", "training")
    )
    return Benchmark(
        cases={
            f"{name}, {task}, {core}": partial(in_turns, architecture, prepare)
            for name, architecture in architectures.items()
            for task, prepare in (("detection", detections), ("training", gradients))
            for core in (OURS, THEIRS)
        },
        ratios=tuple(Ratio("cpu_seconds", *pair, limit=limit, at_least=at_least) for pair in pairs)
        + tuple(Ratio(figure, *pair) for pair in pairs for figure in ("seconds", "peak_mib")),
        same_answers=pairs,
        tolerance=1e-5,
        in_turn=pairs,
        environment=environment,
        peer=peer,
    )


BENCHMARK = benchmark({"R_50_FPN": "mask_rcnn_R_50_FPN", "MViTv2-T": "mvitv2_t_mask_rcnn"}, at_least=1.0)
