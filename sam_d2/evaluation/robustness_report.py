"""What worse prompts cost, as a file, a table and a plot."""

from __future__ import annotations

import math
from io import BytesIO
from pathlib import Path

import msgspec
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from msgspec import Struct
from rich.table import Table

from sam_d2.atomic import write_atomically
from sam_d2.evaluation.report_charts import SERIES
from sam_d2.evaluation.results import truth_text

VERSION = 1
AXES = {"shift": "shift of the box, % of its side", "scale": "box longer or shorter, % of its side", "points": "points"}
"""Kinds of prompt, and what their levels are."""


class Measured(Struct, frozen=True):
    """A checkpoint at one level.

    Attributes:
        checkpoint: What it is called.
        kind: ``shift``, ``scale`` or ``points``.
        level: Share of the side, or number of points.
        AP: Of masks, 0-100; None where undefined.
        mIoU: 0-1; None where undefined.
        seed: Of the boxes' noise.
    """

    checkpoint: str
    kind: str
    level: float
    AP: float | None
    mIoU: float | None
    seed: int


class Robustness(Struct, kw_only=True):
    """All that was measured on one dataset.

    Attributes:
        dataset: Registered name.
        images: Of it.
        instances: Of it.
        pseudo_ground_truth: Whether a model made some of the annotations.
        seed: Of the boxes' noise.
        checkpoints: File of each checkpoint, by what it is called.
        scores: Name of the score that ranks the masks of each checkpoint.
        max_dets: Detections that count per image and class.
        results: By checkpoint, kind and rising level.
        version: Of this form.
    """

    dataset: str
    images: int
    instances: int
    pseudo_ground_truth: bool
    seed: int
    checkpoints: dict[str, str]
    scores: dict[str, str]
    max_dets: int
    results: list[Measured]
    version: int = VERSION

    @property
    def title(self) -> str:
        """What it was measured on, what the truth is, what ranks the masks and how many of them count."""
        counts = f"{self.images} images, {self.instances} instances"
        scores = " / ".join(dict.fromkeys(self.scores.values()))
        truth = f"{self.dataset}{truth_text(self.pseudo_ground_truth)}"
        return f"{truth}: {counts}, ranked by {scores}, max dets {self.max_dets}"

    def label(self, name: str) -> str:
        """What a checkpoint is called: with its score, where those of the checkpoints differ."""
        return name if len(set(self.scores.values())) == 1 else f"{name}, {self.scores[name]}"


def robustness_json(robustness: Robustness) -> bytes:
    """Return the file's content, a result a line."""
    return msgspec.json.format(msgspec.json.encode(robustness), indent=1) + b"\n"


def robustness_table(robustness: Robustness) -> Table:
    """Return the terminal's table: a row for each kind and level, AP and mIoU of each checkpoint."""
    table = Table(title=robustness.title, title_justify="left")
    table.add_column("prompt")
    table.add_column("level", justify="right")
    for name in robustness.checkpoints:
        table.add_column(f"{_plain(robustness.label(name))}\nAP", justify="right", overflow="fold")
        table.add_column("\nmIoU", justify="right")
    levels = dict.fromkeys((row.kind, row.level) for row in robustness.results)
    by_key = {(row.checkpoint, row.kind, row.level): row for row in robustness.results}
    before = ""
    for kind, level in levels:
        cells = []
        for name in robustness.checkpoints:
            row = by_key[name, kind, level]
            cells += ["-" if row.AP is None else f"{row.AP:.2f}", "-" if row.mIoU is None else f"{row.mIoU:.4f}"]
        if before and kind != before:
            table.add_section()
        table.add_row(kind, f"{level:.0f}" if kind == "points" else f"{100 * level:g} %", *cells)
        before = kind
    return table


def _plain(text: str) -> str:
    """Return a name that rich does not take for markup."""
    return text.replace("[", r"\[")


def write_plot(path: Path, robustness: Robustness) -> None:
    """Draw AP and mean IoU over the levels of each kind, a line for each checkpoint, as a PNG that is there whole."""
    kinds = [kind for kind in AXES if any(row.kind == kind for row in robustness.results)]
    figure = Figure(figsize=(4.0 * len(kinds) + 0.6, 6.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(kinds), squeeze=False, sharey="row", sharex="col")
    for column, kind in enumerate(kinds):
        for line, metric in enumerate(("AP", "mIoU")):
            axes = grid[line][column]
            for number, name in enumerate(robustness.checkpoints):
                rows = [row for row in robustness.results if (row.checkpoint, row.kind) == (name, kind)]
                x = [row.level if kind == "points" else 100 * row.level for row in rows]
                y = [math.nan if getattr(row, metric) is None else getattr(row, metric) for row in rows]
                style = {"color": SERIES[number % len(SERIES)], "marker": "o", "markersize": 4}
                axes.plot(x, y, **style)
            axes.set_ylim(0, 100 if metric == "AP" else 1)
            axes.grid(alpha=0.4)
            if kind == "points":
                axes.set_xticks(x)
            if line:
                axes.set_xlabel(AXES[kind])
            if not column:
                axes.set_ylabel("mask AP" if metric == "AP" else "mean IoU")
    # names are a user's: a _ before one hides it, a $ in it would be a formula
    names = [f" {name}" if name.startswith("_") else name for name in map(robustness.label, robustness.checkpoints)]
    legend = figure.legend(grid[0][0].lines, names, loc="outside lower center", ncols=min(3, len(names)))
    for text in (*legend.get_texts(), figure.suptitle(robustness.title, fontsize=11)):
        text.set_parse_math(False)
    content = BytesIO()
    figure.savefig(content, dpi=110, format="png")
    write_atomically(path, content.getvalue())
