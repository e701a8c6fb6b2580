"""The results of a run as a table for the log, with the words that keep its numbers honest."""

from __future__ import annotations

import logging
import math
import textwrap
from collections.abc import Iterable
from io import StringIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sam_d2.evaluation.domains import PREFIX, Lines, domain_lines, table_words
from sam_d2.evaluation.results import NO_PROMPT, PSEUDO, Result, notes_text, prompts_text, pseudo_text
from sam_d2.evaluation.short_training import short_training_hint, training_losses
from sam_d2.visible_text import clean

SCORE_COLUMNS = ("AP", "AP50", "AP75", "ECE")
"""Of the table of the same masks ranked by several scores."""
COLUMNS = ("AP", "AP50", "AP75", "AR", "mIoU")
METHODS = ("model", "base", "detector", "box_as_mask", "ellipse")
"""Order of the rows."""

OF_ONE = ("mIoU", "ECE")
"""Metrics of 0-1, the others being of 0-100."""
_SOURCES = {
    "ground_truth": "oracle: ground-truth prompts",
    "detector": "a detector's boxes as prompts",
    "file": "prompts from a file",
}
_REFERENCES = {
    "base": "its base",
    "box_as_mask": "the box as mask",
    "ellipse": "the inscribed ellipse",
}

_TERMS = {
    "AP": "AP, AR: average precision and recall, 0-100",
    "AP@100": "AP@100: AP where 100 detections count per image and class",
    "mIoU": "mIoU: mean IoU of the prompts' masks, 0-1",
    "ECE": "ECE: expected calibration error of the score against the true IoU, 0-1",
    "base": "base: the model before training",
    "box_as_mask": "box_as_mask: no model, the box filled",
    "ellipse": "ellipse: no model, the ellipse in the box",
    PSEUDO: f"{PSEUDO}: a model made the annotations, or some of them",
    PREFIX: "AP by domain: on the images of one domain, all classes; their mean counts every domain alike",
    "selected": "selected on this split: its scores chose the weights, so they flatter",
}

_log = logging.getLogger(__name__)


def grouped(results: Iterable[Result]) -> list[list[Result]]:
    """Rows that can be compared with one another, in the order of ``METHODS``; segm before bbox.

    Args:
        results: Rows of a report, in any order.

    Returns:
        One list per split, ground truth, prompt, source of prompt and box, and task; the lists in the order of their
        first row. Rows that rank a method's masks by another score than its own are left to :func:`by_score`, but for
        a base's by the score of the model, which compare.
    """
    results = list(results)
    of_models = {(_group_key(row), row.score) for row in results if row.method == "model" and row.ranks}
    groups: dict[tuple[str | None, ...], list[Result]] = {}
    for row in sorted(results, key=lambda row: row.task != "segm"):
        if row.ranks or (row.method == "base" and (_group_key(row), row.score) in of_models):
            groups.setdefault(_group_key(row), []).append(row)
    order = {method: index for index, method in enumerate(METHODS)}
    return [sorted(rows, key=lambda row: order.get(row.method, len(order))) for rows in groups.values()]


def by_score(results: Iterable[Result]) -> list[list[Result]]:
    """The rows of each model whose masks were ranked by several scores, its own score first.

    Args:
        results: Rows of a report, in any order.

    Returns:
        One list per group of :func:`grouped`: the model's, or of a training that has just begun its base's.
    """
    groups: dict[tuple[str | None, ...], dict[str, list[Result]]] = {}
    for row in sorted(results, key=lambda row: not row.ranks):
        groups.setdefault(_group_key(row), {}).setdefault(row.method, []).append(row)
    shown = [rows.get("model") or rows.get("base") or [] for rows in groups.values()]
    return [rows for rows in shown if any(not row.ranks for row in rows)]


def _group_key(row: Result) -> tuple[str | None, ...]:
    return (row.split, row.ground_truth, row.prompt, row.prompt_source, row.prompt_boxes, row.task)


def counts_text(row: Result) -> str:
    """What a row was measured on, in numbers."""
    return f"{row.images} images, {row.instances} instances"


def metric_text(name: str, value: float) -> str:
    """AP and AR with two decimals, IoU and ECE with three, a dash where undefined."""
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" if name in OF_ONE else f"{value:.2f}"


def results_table(results: Iterable[Result]) -> str:
    """One table per group of :func:`grouped`, one row per method.

    AP at COCO's limit of 100 has a column of its own where a row has it. The title says ``oracle`` where the
    prompts come from the ground truth, names the score that ranks the masks, and says where the truth is a
    model's.

    Args:
        results: Rows of a report, in any order.

    Returns:
        Plain text of several lines; AP and AR 0-100, mIoU 0-1, a dash where undefined.
    """
    console = _plain_console()
    for rows in grouped(results):
        columns = [*COLUMNS]
        if any("AP@100" in row.metrics for row in rows):
            columns.insert(1, "AP@100")
        if not any("mIoU" in row.metrics for row in rows):
            columns.remove("mIoU")
        table = Table(box=box.SIMPLE_HEAD, header_style="")
        table.add_column("method")
        for name in (*columns, "max dets", "seconds"):
            table.add_column(name, justify="right")
        for row in rows:
            cells = [metric_text(name, row.metric(name)) for name in columns]
            table.add_row(row.method + notes_text(row), *cells, str(row.max_dets), f"{row.seconds:.1f}")
        console.print(_title(rows), soft_wrap=True, markup=False, highlight=False)
        console.print(table)
    return _text_of(console)


def scores_table(results: Iterable[Result]) -> str:
    """One table per list of :func:`by_score`: what the same masks reach with each score; empty without one.

    Args:
        results: Rows of a report, in any order.

    Returns:
        Plain text of several lines; AP 0-100, ECE 0-1, a dash where undefined.
    """
    console = _plain_console()
    for rows in by_score(results):
        first = rows[0]
        table = Table(box=box.SIMPLE_HEAD, header_style="")
        table.add_column("score")
        for name in SCORE_COLUMNS:
            table.add_column(name, justify="right")
        for row in rows:
            table.add_row(row.score, *(metric_text(name, row.metric(name)) for name in SCORE_COLUMNS))
        words = ["AP by score", first.split, first.task, prompts_text(first.prompt)]
        words.append(f"the {first.method}'s masks{pseudo_text(first)}")
        console.print(" | ".join(words), soft_wrap=True, markup=False, highlight=False)
        console.print(table)
    return _text_of(console)


def domains_table(results: Iterable[Result]) -> str:
    """One table per group of :func:`grouped` with AP by domain, one column per method.

    Args:
        results: Rows of a report, in any order.

    Returns:
        Plain text of several lines; 0-100, a dash where undefined; empty where there is nothing to show.
    """
    console = _plain_console()
    for rows, lines in by_domain(results):
        first = rows[0]
        table = Table(box=box.SIMPLE_HEAD, header_style="")
        table.add_column("domain")
        for row in rows:
            table.add_column(row.method + pseudo_text(row), justify="right")
        for label, values in lines:
            table.add_row(Text(clean(label)), *(metric_text("AP", value) for value in values))
        console.print(" | ".join(table_words(first, lines)), soft_wrap=True, markup=False, highlight=False)
        console.print(table)
    return _text_of(console)


def by_domain(results: Iterable[Result]) -> list[tuple[list[Result], Lines]]:
    """The groups of :func:`grouped` with their lines of AP by domain and effective robustness, where there are any."""
    lines = [(rows, domain_lines(rows)) for rows in grouped(results)]
    return [(rows, shown) for rows, shown in lines if shown]


def _plain_console() -> Console:
    return Console(file=StringIO(), width=120, color_system=None)


def _text_of(console: Console) -> str:
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")


def legend(results: Iterable[Result]) -> str:
    """The words that the tables of this module show for these rows, in some lines.

    Args:
        results: Rows of a report, in any order.
    """
    rows = list(results)
    used = {"AP", *(row.method for row in rows), *(name for row in rows for name in row.metrics)}
    if not by_score(rows):
        used.discard("ECE")
    if any(name.startswith(PREFIX) for name in used):
        used.add(PREFIX)
    if any(row.pseudo_ground_truth for row in rows):
        used.add(PSEUDO)
    if any(row.selected for row in rows):
        used.add("selected")
    terms = "; ".join(words for term, words in _TERMS.items() if term in used)
    return textwrap.fill(f"{terms}. More in docs/report.md", 120, break_on_hyphens=False)


def shortfalls(results: Iterable[Result]) -> list[str]:
    """One line for each kind of prompt with which the model does not beat a reference (base, box as mask, ellipse).

    Args:
        results: Rows of a report, in any order.

    Returns:
        Lines that name the references, of each the metrics (AP, mIoU) and both values, and the split, prompt and
        task; none where the model wins.
    """
    lines = []
    for rows in grouped(results):
        models = [row for row in rows if row.method == "model"]
        for model in models:
            better = []
            for reference in rows:
                if reference.method not in _REFERENCES or (
                    reference.method == "base" and reference.score != model.score
                ):
                    continue
                worse = [
                    f"{name} {metric_text(name, model.metric(name))} < {metric_text(name, reference.metric(name))}"
                    for name in ("AP", "mIoU")
                    if model.metric(name) < reference.metric(name)
                ]
                if worse:
                    better.append(f"{_REFERENCES[reference.method]} ({', '.join(worse)})")
            if better:
                *others, last = better
                names = f"{', '.join(others)} and {last}" if others else last
                where = f"{model.split}, prompt {model.prompt}, {model.task}"
                lines.append(f"WORSE than {names}: {where}{pseudo_text(model)}")
    return lines


def log_results(results: Iterable[Result], *, pretrained: bool = False) -> None:
    """Log the table with its legend, as a warning the references that the model does not beat, and a hint why.

    Args:
        results: Rows of a report, in any order.
        pretrained: Whether the training that runs now began with weights of a file.
    """
    rows = list(results)
    if rows:
        tables = [table for table in (results_table(rows), scores_table(rows), domains_table(rows)) if table]
        _log.info("results\n%s\n\n%s", "\n\n".join(tables), legend(rows))
    for line in shortfalls(rows):
        _log.warning("*** %s ***", line)
    losses = training_losses()
    hints = (short_training_hint(group, losses, pretrained=pretrained) for group in grouped(rows))
    for hint in dict.fromkeys(hint for hint in hints if hint is not None):
        _log.info(hint)


def _title(rows: list[Result]) -> str:
    first = rows[0]
    source = _SOURCES.get(first.prompt_source, first.prompt_source)
    if first.prompt_boxes == "mask":
        source += ", the masks' own boxes"
    # the baselines have no score of their own: the name shown is the models'
    scores = dict.fromkeys(row.score for row in rows if row.score != "constant") or {"constant": None}
    prompt = ["no prompts"] if first.prompt == NO_PROMPT else [f"prompt {first.prompt}", source]
    parts = [first.split, first.task, *prompt, f"score {' / '.join(scores)}"]
    if any(row.pseudo_ground_truth for row in rows):
        parts.append(f"{PSEUDO}, made by a model")
    if first.images is not None:
        parts.append(counts_text(first))
    return " | ".join(parts)
