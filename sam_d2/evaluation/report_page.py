"""report.html: one run on one page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from sam_d2.atomic import write_atomically
from sam_d2.evaluation.gallery import FILL, RISING
from sam_d2.evaluation.report_charts import (
    METHOD_COLOURS,
    METHOD_NAMES,
    Series,
    line_chart,
    reliability_chart,
    score_chart,
    size_chart,
)
from sam_d2.evaluation.report_data import Evaluation, Run, read_run
from sam_d2.evaluation.report_html import breakable, chart_grid, data_uri, definitions, escape, escape_lines, page
from sam_d2.evaluation.report_pair import pair_section
from sam_d2.evaluation.report_tables import class_table, domain_section, method_table, score_table, source_of
from sam_d2.evaluation.results import NO_PROMPT, PSEUDO, Result, prompts_text
from sam_d2.evaluation.table import by_score, grouped, metric_text, shortfalls

FILE_NAME = "report.html"
MOST_PICTURE_BYTES = 5_000_000
"""Of the page's images as they stand in it; galleries beyond are left out, the oldest first."""

_ORACLE = (
    "Oracle: the prompts were made from the ground truth. These figures say how well the model outlines what it is "
    "pointed at, not how well it finds things."
)
_BOTH = "Where the boxes were a detector's, no ground truth was in the prompts."
_CURVE_COLOURS = {"total_loss": 0, "loss_focal": 1, "loss_dice": 2, "loss_iou": 3}
_SIZES = (
    "<p>APs, APm and APl: AP of small, medium and large instances (under 32 x 32 pixels, between, over 96 x 96 pixels "
    "of mask area).</p>"
)


def write_page(folder: str | Path) -> Path:
    """Rebuild ``report.html`` of a run folder from the folder's own files.

    Returns:
        Path of the page.

    Raises:
        UserError: As :func:`~sam_d2.evaluation.report_data.read_run`.
    """
    path = Path(folder) / FILE_NAME
    write_atomically(path, run_page(read_run(folder)).encode("utf-8"))
    return path


def run_page(run: Run) -> str:
    """The page of one run, as HTML that loads nothing."""
    groups = sorted(grouped(run.results), key=lambda rows: (rows[0].task != "segm", _place(rows[0])))
    evaluations = sorted(run.evaluations, key=lambda one: one.info.prompt_source == "ground_truth")
    title = f"{run.name}: {_title_prompts(run)}"
    parts = [_header(run, title), *_all_cards(groups)]
    parts += [f'<p class="alert" role="alert">{escape(line)}</p>' for line in shortfalls(run.results)]
    parts += [pair_section(run.results), "<h2>Results</h2>", _SIZES]
    parts += [method_table(rows) for rows in groups]
    parts += [_scores(rows) for rows in sorted(by_score(run.results), key=lambda rows: _place(rows[0]))]
    parts.append(domain_section(run))
    parts.append(_curves(run))
    classes = [table for rows in groups if (table := class_table(rows, run.evaluations))]
    parts += ["<h2>AP per class</h2>", *classes] if classes else []
    left = MOST_PICTURE_BYTES
    for evaluation in evaluations:
        parts.append(_instances(evaluation))
        size = sum(len(data_uri(picture)) for pair in evaluation.pictures for picture in pair)
        parts.append(_gallery(evaluation, shown=size <= left))
        left -= size if size <= left else 0
    if not run.evaluations:
        parts.append(
            "<h2>Instances and gallery</h2><p>The run folder holds no values of single instances; "
            "evaluate the run again (--eval-only) to see them here.</p>"
        )
    parts.append(_settings(run))
    parts.append(_DIALOG)
    return page(f"{title} - sam_d2 report", "\n".join(part for part in parts if part))


def is_loss(name: str) -> bool:
    """Whether a metric of metrics.json is a loss."""
    return "loss" in name.rsplit("/", 1)[-1]


def _place(row: Result) -> int:
    """Where a row's table stands: what no truth prompted, then the oracle, then a detector by itself beside a SAM."""
    if row.prompt_source == "ground_truth":
        return 1
    return 2 if row.method == "detector" else 0


def _title_prompts(run: Run) -> str:
    """Kinds of prompt: those of the model where nobody knows the truth first, and the oracle's as such."""
    rows = [row for row in run.results if row.method != "detector"] or run.results
    found = ", ".join(dict.fromkeys(row.prompt for row in rows if row.prompt_source != "ground_truth"))
    oracle = ", ".join(dict.fromkeys(row.prompt for row in rows if row.prompt_source == "ground_truth"))
    if not oracle:
        return prompts_text(found)
    return f"{prompts_text(found)}, beside the oracle ({oracle})" if found else f"{prompts_text(oracle)} (oracle)"


def _header(run: Run, title: str) -> str:
    sources = dict.fromkeys(
        (_place(row), f"prompts {source_of(row)}" if _place(row) == 0 else source_of(row))
        for row in run.results
        if row.method != "detector"
    )
    tags = [f'<span class="tag strong">{escape(words)}</span>' for _, words in sorted(sources)] if run.oracle else []
    if any(row.pseudo_ground_truth for row in run.results):
        tags.append(f'<span class="tag strong">{PSEUDO}</span>')
    tags += [f'<span class="tag">{escape(split)}</span>' for split in dict.fromkeys(row.split for row in run.results)]
    if run.evaluations:
        tags.append(f'<span class="tag">{escape(run.evaluations[0].info.written.replace("T", " "))}</span>')
    oracle = ""
    if run.oracle:
        both = any(row.method == "model" and row.prompt_source != "ground_truth" for row in run.results)
        oracle = f'<p class="soft">{f"{_BOTH} " if both else ""}{_ORACLE}</p>'
    return f"<header><h1>{breakable(title)}</h1><p>{' '.join(tags)}</p>{oracle}</header>"


def _all_cards(groups: Sequence[Sequence[Result]]) -> list[str]:
    """The cards of the first table; of a pair those of the detector's boxes, then those of the oracle."""
    first = groups[0]
    mine = [rows for rows in groups if (rows[0].task, rows[0].split) == (first[0].task, first[0].split)]
    oracle = next((rows for rows in mine if _place(rows[0]) == 1), first)
    if oracle is first:
        return [_cards(first, several=len(groups) > 1)]
    references = [(rows[0], "the detector alone") for rows in mine if rows[0].method == "detector"]
    references.append((oracle[0], "the oracle"))
    return [_cards(first, several=True, references=references), _cards(oracle, several=True)]


def _cards(rows: Sequence[Result], *, several: bool, references: Sequence[tuple[Result, str]] = ()) -> str:
    """The model's headline figures in the first table, and how far they lie from the references."""
    by_method = {row.method: row for row in rows}
    shown = by_method.get("model") or rows[0]
    cards = [("AP50", "AP50 (0-100)"), ("AP", "AP (0-100)"), ("mIoU", "mean IoU (0-1)")]
    if shown.prompt_source != "ground_truth":
        cards.pop()  # no prediction belongs to an instance
    items = [(metric_text(name, shown.metric(name)), words) for name, words in reversed(cards)]
    measure = "AP" if math.isnan(shown.metric("mIoU")) else "mIoU"
    for method, words in (("base", "the base"), ("box_as_mask", "the box"), ("ellipse", "the ellipse")):
        if method in by_method and shown.method != method:
            gap = shown.metric(measure) - by_method[method].metric(measure)
            if not math.isnan(gap):
                text = metric_text(measure, abs(gap))
                items.append((f"{'+' if gap >= 0 else '&minus;'}{text}", f"{measure} against {words}"))
    for reference, words in references:
        gap = shown.metric("AP") - reference.metric("AP")
        if not math.isnan(gap):
            items.append((f"{'+' if gap >= 0 else '&minus;'}{metric_text('AP', abs(gap))}", f"AP against {words}"))
    cells = "".join(f'<div class="card sheet"><b>{value}</b><span>{words}</span></div>' for value, words in items)
    which = f'<p class="soft">{escape(_cards_words(rows[0]))}:</p>' if several else ""
    return f'{which}<div class="cards">{cells}</div>'


def _cards_words(row: Result) -> str:
    source = f" ({source_of(row)})" if row.prompt != NO_PROMPT else ""
    return f"With {prompts_text(row.prompt)}{source} on {row.split}"


def _curves(run: Run) -> str:
    charts = []
    losses = [name for name in run.curves if is_loss(name)]
    losses.sort(key=lambda name: (name != "total_loss", name))
    if losses:
        series = [Series(name, run.curves[name], _CURVE_COLOURS.get(name, index)) for index, name in enumerate(losses)]
        charts.append(line_chart("Loss in training", series, "weighted loss", log=_spans_decades(series)))
    ap = _series(run, "segm/AP")
    if len(ap) == 1:
        ap += _series(run, "segm/AP50", 1) + _series(run, "segm/AP75", 2)
    if ap:
        charts.append(line_chart("Average precision", ap + _levels(run, "AP"), "AP (0-100)", from_zero=True))
    iou = _series(run, "prompt/mIoU")
    if iou:
        levels = _levels(run, "mIoU")
        charts.append(line_chart("Mean IoU of the prompted masks", iou + levels, "mean IoU (0-1)", from_zero=True))
    if "lr" in run.curves:
        charts.append(line_chart("Learning rate", [Series("learning rate", run.curves["lr"], 5)], "learning rate"))
    if not charts:
        return ""
    return f"<h2>Training</h2>{chart_grid(charts)}"


def _scores(rows: Sequence[Result]) -> str:
    heading = f"<h2>Scores, {escape(prompts_text(rows[0].prompt))}</h2>"
    words = (
        "The masks are the same; what changes is their order. A score that puts bad masks first loses AP, not recall. "
        "ECE: how far the score lies from the true IoU on average."
    )
    return f'{heading}<p class="soft">{words}</p>{score_table(rows)}'


def _series(run: Run, metric: str, colour: int = 0) -> list[Series]:
    """A metric's curve; of several kinds of prompt a curve each (``point/segm/AP``) beside their mean."""
    names = [name for name in run.curves if name == metric or name.endswith(f"/{metric}")]
    word = metric.rpartition("/")[2]
    series = []
    for index, name in enumerate(names):
        prompt = name.removesuffix(metric).rstrip("/")
        label = f"{word}, {prompt or 'mean'}" if len(names) > 1 else word
        series.append(Series(label, run.curves[name], colour + index))
    return series


def _levels(run: Run, metric: str) -> list[Series]:
    """The references of the run's first table: baselines as level lines, the base as the point before training."""
    rows = [row for row in grouped(run.results)[0] if row.method in ("base", "box_as_mask", "ellipse")]
    return [
        Series(
            f"{metric} of {METHOD_NAMES[row.method]}",
            [(0, row.metric(metric))],
            METHOD_COLOURS[row.method] if row.method == "base" else METHOD_COLOURS[row.method] + 3,
            dashed=row.method != "base",
        )
        for row in rows
        if not math.isnan(row.metric(metric))
    ]


def _spans_decades(series: Sequence[Series]) -> bool:
    values = [value for one in series for _, value in one.points]
    return min(values) > 0 and max(values) > 20 * min(values)


def _instances(evaluation: Evaluation) -> str:
    drawn = (score_chart(evaluation), reliability_chart(evaluation.info.reliability), size_chart(evaluation))
    charts = [chart for chart in drawn if chart is not None]
    if not charts:
        return ""
    words = (
        ""
        if evaluation.info.paired
        else (
            '<p class="soft">Each instance stands with the prediction of its class that overlaps it most; '
            "predictions on no instance are not in these charts.</p>"
        )
    )
    return f"<h2>Instances, {escape(prompts_text(evaluation.info.prompt))}</h2>{words}{chart_grid(charts)}"


def _gallery(evaluation: Evaluation, *, shown: bool) -> str:
    info = evaluation.info
    order = "" if any(tile.label for tile in info.tiles) else f", {RISING}"
    heading = f"<h2>Gallery, {escape(prompts_text(info.prompt))}{order}</h2>"
    if not info.tiles:
        return ""
    if not shown:
        return f"{heading}<p>Left out to keep the page small; it is in the run folder as a PNG.</p>"
    items = []
    for tile, (overlay, plain) in zip(info.tiles, evaluation.pictures, strict=True):
        name = Path(tile.file_name).name
        counts = f"{tile.instances} instances, {tile.predictions} predicted"
        iou = "" if tile.mean_iou is None else f"mean IoU {tile.mean_iou:.3f}, "
        caption = escape(f"{tile.label}: {name} · {iou}{counts}".removeprefix(": "))
        label = f"<b>{escape(tile.label)}</b> " if tile.label else ""
        items.append(
            f'<li><button type="button" class="tile sheet" data-caption="{caption}">'
            f'<img src="{data_uri(overlay)}" alt="{caption}: outlines of prediction and ground truth">'
            f'<img src="{data_uri(plain)}" alt="{escape(name)}: the image itself" hidden>'
            f"<span>{label}{escape(iou.removesuffix(', '))}<em>{escape(name)}</em>"
            f"<em>{counts}</em></span></button></li>"
        )
    legend = (
        '<ul class="legend"><li><span class="key area" style="color: var(--truth); background: '
        f'color-mix(in srgb, var(--truth) {FILL:.0%}, transparent)"></span>ground truth</li>'
        '<li><span class="key" style="color: var(--prediction)"></span>prediction</li></ul>'
    )
    hint = '<p class="soft">Click an image to enlarge it beside the photograph; arrow keys go on.</p>'
    return f'{heading}{legend}{hint}<ul class="gallery">{"".join(items)}</ul>'


def _settings(run: Run) -> str:
    parts = ["<h2>Settings</h2>"]
    for evaluation in run.evaluations:
        info = evaluation.info
        facts = [
            (
                "prompts",
                info.prompt if info.prompt == NO_PROMPT else f"{info.prompt} ({info.prompt_source.replace('_', ' ')})",
            ),
            ("dataset", info.split),
            ("images", f"{len(info.image_names)}"),
            ("instances", f"{len(evaluation.iou)}"),
            ("classes", f"{len(info.class_names)}"),
            ("checkpoint", info.checkpoint),
            ("score", info.score),
            ("device", info.device),
            ("time", f"{info.seconds:.1f} s"),
            ("evaluated", info.written.replace("T", " ")),
            *info.versions.items(),
        ]
        parts.append(f'<div class="sheet">{definitions(facts)}</div>')
    configs = {"Config of the run": run.config}
    for evaluation in run.evaluations:
        if evaluation.info.config != run.config:
            configs[f"Config of the evaluation with {prompts_text(evaluation.info.prompt)}"] = evaluation.info.config
    for words, text in configs.items():
        if text:
            shown = f'<pre tabindex="0">{escape_lines(text)}</pre>'
            parts.append(f'<details class="sheet"><summary>{escape(words)}</summary>{shown}</details>')
    return "\n".join(parts)


_DIALOG = """<dialog id="zoom" aria-label="Enlarged image">
<p></p>
<div class="views"><img alt=""><img alt=""></div>
<nav><button type="button" class="previous" aria-label="previous image">←</button>
<span class="place"></span>
<button type="button" class="next" aria-label="next image">→</button>
<button type="button" class="close">Close</button></nav>
</dialog>"""
