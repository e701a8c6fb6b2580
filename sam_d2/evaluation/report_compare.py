"""Several runs side by side: one page, and a table for the terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sam_d2.evaluation.report_charts import METHOD_NAMES, Series, line_chart
from sam_d2.evaluation.report_data import Run, flat_config
from sam_d2.evaluation.report_html import breakable, chart_grid, escape, page, table
from sam_d2.evaluation.report_tables import domain_section, metric_head, source_of
from sam_d2.evaluation.results import NO_PROMPT, Result, notes_text, pseudo_text
from sam_d2.evaluation.table import counts_text, domains_table, grouped, metric_text
from sam_d2.visible_text import clean

_CURVES = (
    ("total_loss", "Loss in training", "weighted loss"),
    ("segm/AP", "Average precision of masks", "AP (0-100)"),
    ("bbox/AP", "Average precision of boxes", "AP (0-100)"),
    ("prompt/mIoU", "Mean IoU of the prompted masks", "mean IoU (0-1)"),
)
_OF_THE_RUN = ("train.output_dir",)
"""Settings that differ between any two runs."""
_REFERENCES = ("box_as_mask", "ellipse")
_METRICS = ("AP", "AP50", "AP75", "AR", "mIoU")


def run_names(runs: Sequence[Run]) -> list[str]:
    """A name for each run: its folder's, with as many folders above it as tell the runs apart."""
    parts = [run.folder.resolve().parts for run in runs]
    depth = 1
    while depth < max(map(len, parts)):
        names = Counter(part[-depth:] for part in parts)
        if max(names.values()) == 1:
            break
        depth += 1
    return [str(Path(*part[-depth:])) for part in parts]


def compare_page(runs: Sequence[Run]) -> str:
    """The page of several runs, as HTML that loads nothing."""
    names = run_names(runs)
    oracle = " (oracle)" if any(run.oracle for run in runs) else ""
    title = f"{len(runs)} runs side by side{oracle}"
    parts = [f"<header><h1>{escape(title)}</h1></header>", "<h2>Results</h2>"]
    parts += [f'<p class="alert" role="alert">{escape(line)}</p>' for line in differing_truths(runs)]
    for label, rows in _tables(runs, names):
        parts.append(_table_html(label, rows))
    charts = []
    for metric, heading, unit in _CURVES:
        series = [
            Series(name, run.curves[metric], index)
            for index, (name, run) in enumerate(zip(names, runs, strict=True))
            if metric in run.curves
        ]
        if series:
            charts.append(line_chart(heading, series, unit, from_zero="0-1" in unit))
    if charts:
        parts += ["<h2>Training</h2>", chart_grid(charts)]
    parts += [domain_section(run, f"AP by domain, {name}") for name, run in zip(names, runs, strict=True)]
    parts += [_per_class(runs, names), _differences_html(runs, names)]
    return page(f"{title} - sam_d2 report", "\n".join(parts))


def compare_text(runs: Sequence[Run]) -> list[Table]:
    """A table for the terminal for each ground truth and task, the best of each column in bold."""
    tables = []
    for label, rows in _tables(runs, run_names(runs)):
        shown = Table(title=Text(clean(label)), title_justify="left", box=box.SIMPLE_HEAD, header_style="")
        for name in ("run", "prompts", "method"):
            shown.add_column(name, overflow="fold")
        for name in _METRICS:
            shown.add_column(name, justify="right", no_wrap=True)
        best = _best([row for _, row in rows])
        for name, row in rows:
            cells = [Text(clean(cell)) for cell in (name, _prompts(row), row.method + notes_text(row))]
            for metric in _METRICS:
                value = row.metric(metric)
                cells.append(Text(metric_text(metric, value), style="bold" if value == best[metric] else ""))
            shown.add_row(*cells)
        tables.append(shown)
    return tables


def print_comparison(runs: Sequence[Run]) -> None:
    """Print :func:`compare_text`, and of each run the AP by domain."""
    console = Console()
    if not console.is_terminal:
        console.width = 120
    for line in differing_truths(runs):
        console.print(Text(clean(line)))
    for shown in compare_text(runs):
        console.print(shown)
    for name, run in zip(run_names(runs), runs, strict=True):
        text = domains_table(run.results)
        if text:
            title = f"{name}\n" if len(runs) > 1 else ""
            console.print(Text(f"{clean(title)}{text}\n"), soft_wrap=True)


def differing_truths(runs: Sequence[Run]) -> list[str]:
    """One line for each split whose rows were not all measured on the same ground truth."""
    truths = Counter(split for split, _ in _split_texts(runs))
    return [
        f"{split}: the runs were measured on {count} different ground truths. Their tables stand apart, and their "
        "figures do not compare."
        for split, count in truths.items()
        if count > 1
    ]


def differing_settings(runs: Sequence[Run]) -> dict[str, list[str | None]]:
    """Config key -> its value in each run, of the keys whose values are not all the same; None where absent.

    Raises:
        UserError: A run's config is not YAML.
    """
    configs = [flat_config(run) for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config)
    rows = {key: [config.get(key) for config in configs] for key in keys if key not in _OF_THE_RUN}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _tables(runs: Sequence[Run], names: Sequence[str]) -> list[tuple[str, list[tuple[str, Result]]]]:
    """Of each ground truth and task the (run, row) of models, bases and detectors, and each reference once.

    The references see the instance's box alone, so they are the same whatever the kind of prompt.
    """
    splits = _split_texts(runs)
    tables: dict[str, list[tuple[str, Result]]] = {}
    references: dict[str, dict[str, Result]] = {}
    for name, run in zip(names, runs, strict=True):
        for row in (row for rows in grouped(run.results) for row in rows):
            label = f"{splits[row.split, row.ground_truth]} | {row.task}"
            rows = tables.setdefault(label, [])
            if row.method in _REFERENCES:
                references.setdefault(label, {}).setdefault(row.method, row)
            else:
                rows.append((name, row))
    return [
        (label, rows + [("reference", row) for row in references.get(label, {}).values()])
        for label, rows in tables.items()
    ]


def _split_texts(runs: Sequence[Run]) -> dict[tuple[str, str | None], str]:
    """(split, ground truth) -> the split's name, with what tells the ground truths of one name apart."""
    first: dict[tuple[str, str | None], Result] = {}
    for row in (row for run in runs for row in run.results):
        first.setdefault((row.split, row.ground_truth), row)
    several = Counter(split for split, _ in first)
    return {
        (split, truth): split if several[split] == 1 else f"{split} ({_truth_text(row)})"
        for (split, truth), row in first.items()
    }


def _truth_text(row: Result) -> str:
    if row.ground_truth is None:
        return "ground truth not recorded"
    return f"{counts_text(row)}, ground truth {row.ground_truth}"


def _prompts(row: Result) -> str:
    if row.method in _REFERENCES:
        return "true box"
    if row.prompt == NO_PROMPT:
        return row.prompt
    if row.prompt_source != "ground_truth":
        return f"{row.prompt}, {source_of(row)}"
    return f"{row.prompt} (oracle{', boxes of the masks' if row.prompt_boxes == 'mask' else ''})"


def _best(rows: Sequence[Result]) -> dict[str, float]:
    """The highest value of each metric; NaN, which equals nothing, where there is none."""
    known = {metric: [value for row in rows if not math.isnan(value := row.metric(metric))] for metric in _METRICS}
    return {metric: max(values, default=math.nan) for metric, values in known.items()}


def _table_html(label: str, rows: Sequence[tuple[str, Result]]) -> str:
    best = _best([row for _, row in rows])
    lines = []
    for name, row in rows:
        cells = [
            breakable(name),
            escape(_prompts(row)),
            escape(METHOD_NAMES.get(row.method, row.method) + notes_text(row)),
        ]
        for metric in _METRICS:
            value = row.metric(metric)
            text = metric_text(metric, value)
            cells.append(f"<b>{text}</b>" if value == best[metric] else text)
        lines.append([*cells, escape(row.score), str(row.max_dets)])
    header = ["run", "prompts", "method", *map(metric_head, _METRICS), "ranked by", "detections<br>at most"]
    caption = escape(f"{label} | best of each column in bold")
    classes = ["main" if row.method == "model" else "soft" for _, row in rows]
    return f'<div class="sheet">{table(header, lines, caption=caption, text_columns=3, classes=classes)}</div>'


def _per_class(runs: Sequence[Run], names: Sequence[str]) -> str:
    """AP of each class, one column for each run and prompt."""
    splits = _split_texts(runs)
    columns: dict[str, Result] = {}
    for name, run in zip(names, runs, strict=True):
        for row in run.results:
            if row.method == "model" and row.ranks:
                truth = f"{splits[row.split, row.ground_truth]}, {row.task}{pseudo_text(row)}"
                columns[f"{name}: {_prompts(row)}, {truth}"] = row
    classes = dict.fromkeys(metric for row in columns.values() for metric in row.metrics if metric.startswith("AP-"))
    if len(columns) < 2 or not classes:
        return ""
    lines = []
    for metric in classes:
        values = [row.metric(metric) for row in columns.values()]
        best = max((value for value in values if not math.isnan(value)), default=math.nan)
        cells = [
            f"<b>{metric_text('AP', value)}</b>" if value == best else metric_text("AP", value) for value in values
        ]
        lines.append([escape(metric.removeprefix("AP-")), *cells])
    drawn = table(["class", *map(breakable, columns)], lines, caption="AP (0-100) of each class", tall=True)
    return f'<h2>AP per class</h2><div class="sheet">{drawn}</div>'


def _differences_html(runs: Sequence[Run], names: Sequence[str]) -> str:
    heading = "<h2>Settings that differ</h2>"
    lacking = [name for name, run in zip(names, runs, strict=True) if not run.config]
    note = f"<p>No config is left of: {escape(', '.join(lacking))}.</p>" if lacking else ""
    kept = [(name, run) for name, run in zip(names, runs, strict=True) if run.config]
    rows = differing_settings([run for _, run in kept]) if kept else {}
    if not rows:
        return f"{heading}{note}<p>None.</p>"
    lines = [
        [escape(key), *("-" if value is None else escape(value) for value in values)] for key, values in rows.items()
    ]
    header = ["setting", *(breakable(name) for name, _ in kept)]
    drawn = table(header, lines, caption="Keys of the config", text_columns=len(header), tall=True)
    return f'{heading}{note}<div class="sheet values">{drawn}</div>'
