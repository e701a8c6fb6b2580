"""Charts of a report: drawn by matplotlib, as SVG that takes its colours from the page.

No text of the user's enters a chart: names stand in the legend, which is HTML.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Literal

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from sam_d2.evaluation.reliability import Reliability
from sam_d2.evaluation.report_data import Evaluation, Floats

INK, GRID = "#16202a", "#c3ccd6"
SERIES = ("#2a63d4", "#c2410c", "#0b8457", "#9333c6", "#b0123b", "#0b7c94", "#8a6d00", "#5b6472")
"""Line colours in light mode; the page has one of each for dark mode."""
METHOD_NAMES = {
    "model": "model",
    "base": "base",
    "detector": "detector",
    "box_as_mask": "box as mask",
    "ellipse": "ellipse in the box",
}
METHOD_COLOURS = {"model": 0, "box_as_mask": 1, "ellipse": 2, "base": 7, "detector": 3}
MOST_POINTS = 400
"""Points of a line; more are averaged in groups."""
MOST_DOTS = 1500
"""Instances that are drawn one by one; more become a histogram."""
_SIZE = (4.7, 3.3)
"""Inches; 338 x 238 in the SVG's own units, so that 10 point text is readable on a telephone."""
_COCO_SIZES = (32, 96)
_QUANTILES = 12
_FEW_POINTS = 10
_MARGIN = 0.03
"""Of an axis, beyond its first and last value, so that no mark is cut."""

LegendKind = Literal["line", "dashed", "dot"]


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        label: For the legend.
        points: (x, y).
        colour: Index into ``SERIES``, modulo its length.
        dashed: A reference rather than a measurement.
    """

    label: str
    points: Sequence[tuple[float, float]]
    colour: int
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """A drawn chart.

    Attributes:
        title: What it shows.
        svg: Inline SVG without text of the user's.
        legend: (label, index into ``SERIES``, kind) of each line.
        note: What to read from it.
    """

    title: str
    svg: str
    legend: list[tuple[str, int, LegendKind]]
    note: str = ""


@dataclass(frozen=True)
class Step:
    """A bar of a waterfall.

    Attributes:
        label: Beside the bar; not the user's.
        start: Where it begins.
        end: Where it ends, and the next begins; below ``start`` where it takes away.
        colour: Index into ``SERIES``.
        total: Whether it is what the others add to, and its foot, from 0, may be cut off.
    """

    label: str
    start: float
    end: float
    colour: int
    total: bool = False


def waterfall_chart(
    title: str, steps: Sequence[Step], xlabel: str, *, limits: tuple[float, float], note: str = ""
) -> Chart:
    """Bars below one another, each from where the last ended: a stacked bar whose parts may be negative.

    Args:
        title: Above the chart.
        steps: From above to below.
        xlabel: With its unit.
        limits: First and last value of the axis; a total that begins before it is drawn broken there.
        note: What to read from it.
    """
    figure, axes = _axes(xlabel, "")
    low, high = limits
    span = high - low
    for row, step in enumerate(steps):
        start, colour = max(step.start, low) if step.total else step.start, SERIES[step.colour % len(SERIES)]
        negative = step.end < step.start
        # what takes away is hollow, so that it differs without its colour too
        style = {"facecolor": "none", "linewidth": 1.4} if negative else {"color": colour}
        axes.barh(row, step.end - start, left=start, height=0.7, edgecolor=colour, **style)
        if step.total and step.start < low:
            slant = [low + span * x for x in (0.02, 0.035)], [row + 0.5, row - 0.5]
            for shift in (0, 0.02):
                axes.plot([x + shift * span for x in slant[0]], slant[1], color=INK, linewidth=1.4, clip_on=False)
        value = f"{step.end:.2f}" if step.total else f"{step.end - step.start:+.2f}"
        right, left = max(start, step.end), min(start, step.end)
        room = right + 0.16 * span < high + _MARGIN * span
        place = {"x": right + 0.015 * span, "ha": "left"} if room else {"x": left - 0.015 * span, "ha": "right"}
        if not room and left - 0.16 * span < low:  # the bar fills the width: upon it
            place = {"x": (left + right) / 2, "ha": "center"}
        axes.text(y=row, s=value, va="center", fontsize=10, color=INK, **place)  # type: ignore[arg-type]
        if row + 1 < len(steps):
            axes.plot([step.end, step.end], [row, row + 1], color=INK, linewidth=0.8)
    axes.set_yticks(range(len(steps)), [step.label for step in steps])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(low, high + _MARGIN * span)
    axes.set_xticks([high - value for value in MaxNLocator(5).tick_values(0, span) if value <= span])
    return Chart(title, _svg(figure, xlabel), [], note)


def line_chart(
    title: str, series: Sequence[Series], ylabel: str, *, log: bool = False, from_zero: bool = False
) -> Chart:
    """Values over the steps of a training, from step 0.

    A series of one point is drawn as a level over the whole width where it is dashed, as a dot elsewhere; the fewer
    points, the larger they are.

    Args:
        title: Above the chart.
        series: At least one with points.
        ylabel: With its unit.
        log: Whether the value axis is logarithmic; values from 0 down are then left out.
        from_zero: Whether the value axis begins at 0, with a margin that shows what lies there.
    """
    figure, axes = _axes("step", ylabel)
    for index, one in enumerate(series):
        x, y = _thinned(one.points)
        style = {"color": SERIES[one.colour % len(SERIES)], "linewidth": 1.3 if one.dashed else 1.9}
        if one.dashed and len(x) == 1:
            axes.axhline(y[0], linestyle=(0, (4, 3)), **style)  # type: ignore[arg-type]
        else:
            line = (0, (4, 3)) if one.dashed else ("-", (0, (6, 1.5)), (0, (1, 1)))[index // len(SERIES) % 3]
            size = 7 if len(x) == 1 else 5 if len(x) <= _FEW_POINTS else 3
            axes.plot(x, y, linestyle=line, marker="o" if len(x) <= 40 else "", markersize=size, **style)  # type: ignore[arg-type]
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    last = max(1.0, *(x for one in series for x, _ in one.points))
    axes.set_xlim(-_MARGIN * last, (1 + _MARGIN) * last)
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=7))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if from_zero:
        top = max(0.05, *(y for one in series for _, y in one.points))
        axes.set_ylim(-_MARGIN * top, 1.06 * top)
    legend: list[tuple[str, int, LegendKind]] = [
        (one.label, one.colour % len(SERIES), "dashed" if one.dashed else "dot" if len(one.points) == 1 else "line")
        for one in series
    ]
    return Chart(title, _svg(figure, title), legend)


def score_chart(evaluation: Evaluation) -> Chart | None:
    """Score against true IoU, with the mean IoU of ten groups of rising score; None without predictions."""
    known = np.isfinite(evaluation.score) & np.isfinite(evaluation.iou)
    score, iou = np.clip(evaluation.score[known], 0, 1), evaluation.iou[known]
    if not len(score):
        return None
    figure, axes = _axes(f"score ({_plain(evaluation.info.score)})", "true IoU")
    _cloud(axes, score, iou)
    axes.plot([0, 1], [0, 1], color=SERIES[7], linewidth=1.2, linestyle=(0, (4, 3)))
    groups = _groups(score, 10)
    means = [(float(score[rows].mean()), float(iou[rows].mean())) for rows in groups]
    axes.plot(*zip(*means, strict=True), color=SERIES[1], linewidth=2, marker="o", markersize=4)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    gap = float(np.mean(score - iou))
    word = "above" if gap > 0 else "below"
    note = f"On average the score lies {abs(gap):.3f} {word} the true IoU. {_rank_note(score, iou)}"
    legend: list[tuple[str, int, LegendKind]] = [
        (f"{len(score)} instances", 0, "dot"),
        ("mean of a tenth of them", 1, "line"),
        ("score = IoU", 7, "dashed"),
    ]
    title = "Score against true IoU"
    return Chart(title, _svg(figure, title), legend, note)


def reliability_chart(measured: Sequence[Reliability]) -> Chart | None:
    """Mean true IoU of each bin of each score; the more predictions a bin holds, the larger its dot.

    The axes begin where the lowest of them lies.

    Args:
        measured: Of several scores; None is drawn where none has predictions.
    """
    shown = [one for one in measured if one.bins]
    if not shown:
        return None
    figure, axes = _axes("mean score of a bin", "mean true IoU")
    axes.plot([-1, 2], [-1, 2], color=SERIES[7], linewidth=1.2, linestyle=(0, (4, 3)))
    legend: list[tuple[str, int, LegendKind]] = []
    for index, one in enumerate(shown):
        colour = index % (len(SERIES) - 1)
        x, y = [one.score for one in one.bins], [one.iou for one in one.bins]
        count = np.array([one.count for one in one.bins])
        axes.plot(x, y, color=SERIES[colour], linewidth=2.2 if index == 0 else 1.3)
        axes.scatter(x, y, s=8 + 92 * count / count.sum(), color=SERIES[colour], linewidths=0, zorder=3)
        ece = "" if one.ece is None else f", ECE {one.ece:.3f}"
        legend.append((f"{one.score}{ece}", colour, "line"))
    bins = [one for score in shown for one in score.bins]
    low = math.floor(10 * min(0.9, *(min(one.score, one.iou) for one in bins))) / 10
    axes.set(xlim=(low - 0.02, max(1.0, *(one.score for one in bins)) + 0.02), ylim=(low - 0.02, 1.02))
    legend.append(("score = IoU", 7, "dashed"))
    title = "Reliability of the scores"
    note = (
        "Ten bins of equal width; the larger a dot, the more predictions are in its bin. Above the dashed line masks "
        "fit better than their score says. ECE: mean distance from the line, 0-1."
    )
    return Chart(title, _svg(figure, title), legend, note)


def size_chart(evaluation: Evaluation) -> Chart | None:
    """Instance size against true IoU, with running medians of model and baselines; None without instances."""
    known = np.isfinite(evaluation.iou) & (evaluation.size > 0)
    size, iou = evaluation.size[known], evaluation.iou[known]
    if not len(size):
        return None
    figure, axes = _axes("instance size (√area, px)", "true IoU")
    axes.set_xscale("log")
    for edge in _COCO_SIZES:
        if size.min() < edge < size.max():
            axes.axvline(edge, color=GRID, linewidth=1.6)
            axes.text(edge, 1.03, f"{edge} px", ha="center", va="bottom", fontsize=9, color=INK)
    _cloud(axes, size, iou)
    legend: list[tuple[str, int, LegendKind]] = [(f"{len(size)} instances", 0, "dot")]
    groups = _groups(size, _QUANTILES)
    lines = {"model": iou, **{name: values[known] for name, values in evaluation.baselines.items()}}
    for name, values in lines.items():
        colour = METHOD_COLOURS.get(name, 6) if name != "model" else 3
        medians = [(float(np.median(size[rows])), float(np.median(values[rows]))) for rows in groups]
        dashed = name != "model"
        style = {"linestyle": (0, (4, 3)), "linewidth": 1.5} if dashed else {"linewidth": 2.2}
        axes.plot(*zip(*medians, strict=True), color=SERIES[colour], marker="o", markersize=3, **style)
        legend.append((f"median, {METHOD_NAMES.get(name, name)}", colour, "dashed" if dashed else "line"))
    axes.set_ylim(-0.02, 1.02)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    third = max(1, len(size) // 3)
    order = np.argsort(size, kind="stable")
    small, large = float(np.median(iou[order[:third]])), float(np.median(iou[order[-third:]]))
    note = f"Median IoU of the smallest third {small:.3f}, of the largest third {large:.3f}."
    if any(size.min() < edge < size.max() for edge in _COCO_SIZES):
        note += " Upright lines: COCO's limits of small, medium and large."
    title = "Instance size against true IoU"
    return Chart(title, _svg(figure, title), legend, note)


def _axes(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel, color=INK, fontsize=11)
    axes.set_ylabel(ylabel, color=INK, fontsize=11)
    axes.tick_params(colors=INK, labelsize=10, length=3, which="major")
    axes.tick_params(length=0, which="minor")
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
    return figure, axes


def _cloud(axes: Axes, x: Floats, y: Floats) -> None:
    """All instances: dots, or from ``MOST_DOTS`` on cells that are the fuller the more lie in them."""
    if len(x) <= MOST_DOTS:
        axes.scatter(x, y, s=9, color=SERIES[0], alpha=0.45, linewidths=0)
        return
    log = axes.get_xscale() == "log"
    low, high = float(x.min()), float(x.max()) * 1.0001 + 1e-6
    edges = np.geomspace(low, high, 41) if log else np.linspace(0, 1, 41)
    counts, xs, ys = np.histogram2d(x, y, bins=(edges, np.linspace(0, 1, 41)))
    strength = np.log1p(counts) / np.log1p(counts.max())
    for column, row in np.argwhere(counts > 0):
        box = (xs[column], xs[column + 1], ys[row], ys[row + 1])
        axes.fill(
            [box[0], box[1], box[1], box[0]],
            [box[2], box[2], box[3], box[3]],
            color=SERIES[0],
            alpha=round(float(0.08 + 0.82 * strength[column, row]), 2),
            linewidth=0,
        )


def _groups(values: Floats, count: int) -> list[npt.NDArray[np.intp]]:
    """Rows in groups of equal number and rising value; as few groups as leave 5 in each where possible."""
    order = np.argsort(values, kind="stable")
    return np.array_split(order, max(1, min(count, len(values) // 5)))


def _rank_note(score: Floats, iou: Floats) -> str:
    if len(score) < 3 or score.min() == score.max() or iou.min() == iou.max():
        return ""
    from scipy.stats import spearmanr

    correlation = float(spearmanr(score, iou).statistic)
    return f"Rank correlation {correlation:.2f} (1: the score orders masks by their fit)."


def _thinned(points: Sequence[tuple[float, float]]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    array = np.array(points, dtype=np.float64).reshape(-1, 2)
    if len(array) > MOST_POINTS:
        array = np.array([part.mean(axis=0) for part in np.array_split(array, MOST_POINTS)])
    return array[:, 0], array[:, 1]


def _plain(text: str) -> str:
    """A name that may stand in a chart: letters, digits and a few signs that mean nothing to matplotlib or XML."""
    return re.sub(r"[^A-Za-z0-9_.*^() -]", "?", text)[:60]


def _svg(figure: Figure, title: str) -> str:
    """The figure as inline SVG: text as text, ids its own, colours those of the page."""
    buffer = StringIO()
    no_metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata=no_metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # its style sheet would hold for the whole page
    svg = re.sub(r"<style.*?</style>|<metadata.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="(?![mp][0-9a-f]{10}")[^"]*"', "", svg)  # only markers and clips are referred to
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None  # matplotlib always writes it
    svg = re.sub(r"<svg[^>]*>", f'<svg {view[0]} role="img" aria-label="{title}">', svg, count=1)
    svg = svg.replace("xlink:href", "href")
    for index, colour in enumerate(SERIES):
        svg = svg.replace(colour, f"var(--c{index})")
    svg = svg.replace(INK, "currentColor").replace(GRID, "var(--line)")
    return re.sub(r"\n\s*", "\n", svg).strip()
