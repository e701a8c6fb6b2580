"""Tables of a report's page."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sam_d2.evaluation.domains import Lines, table_words
from sam_d2.evaluation.report_charts import METHOD_NAMES
from sam_d2.evaluation.report_data import Evaluation, Run
from sam_d2.evaluation.report_html import breakable, escape, table
from sam_d2.evaluation.results import NO_PROMPT, PSEUDO, Result, notes_text, prompts_text, pseudo_text
from sam_d2.evaluation.table import COLUMNS, OF_ONE, SCORE_COLUMNS, by_domain, counts_text, metric_text

_WORDS = {"base": "base, before training"}
_SOURCES = {"detector": "from a detector", "file": "from a file"}


def metric_names(rows: Sequence[Result]) -> list[str]:
    """The columns of a table of results: those of which some row has a value."""
    names = [*COLUMNS]
    names[1:1] = ["AP@100"]
    names[-1:-1] = ["APs", "APm", "APl"]
    return [name for name in names if name in COLUMNS[:4] or any(not math.isnan(row.metric(name)) for row in rows)]


def metric_head(name: str) -> str:
    """A metric's name with its unit as HTML."""
    return f"{name}<br>{'0-1' if name in OF_ONE else '0-100'}"


def source_of(row: Result) -> str:
    """Where the prompts came from, in words."""
    if row.prompt == NO_PROMPT:
        return "a detector"
    if row.prompt_source == "ground_truth":
        return "oracle: from the ground truth" + (", the masks' own boxes" if row.prompt_boxes == "mask" else "")
    return _SOURCES.get(row.prompt_source, row.prompt_source)


def method_table(rows: Sequence[Result]) -> str:
    """One table of rows that can be compared."""
    names = metric_names(rows)
    first = rows[0]
    scores = " / ".join(dict.fromkeys(row.score for row in rows if row.score != "constant")) or "constant"
    words = [first.split, first.task, f"{prompts_text(first.prompt)}, {source_of(first)}", f"ranked by {scores}"]
    if any(row.pseudo_ground_truth for row in rows):
        words.append(f"{PSEUDO}, made by a model")
    if first.images is not None:
        words.append(counts_text(first))
    lines = [
        [
            escape(_WORDS.get(row.method, METHOD_NAMES.get(row.method, row.method)) + notes_text(row)),
            *(metric_text(name, row.metric(name)) for name in names),
            str(row.max_dets),
            f"{row.seconds:.1f} s",
        ]
        for row in rows
    ]
    header = ["method", *map(metric_head, names), "detections<br>at most", "time"]
    classes = ["main" if row.method == "model" else "" for row in rows]
    return f'<div class="sheet">{table(header, lines, caption=escape(" · ".join(words)), classes=classes)}</div>'


def score_table(rows: Sequence[Result]) -> str:
    """One table of the same masks ranked by several scores."""
    first = rows[0]
    words = [first.split, first.task, f"{prompts_text(first.prompt)}, {source_of(first)}"]
    method = METHOD_NAMES.get(first.method, first.method) + pseudo_text(first)
    words.append(f"the same masks of the {method}, ranked by each score")
    lines = [[escape(row.score), *(metric_text(name, row.metric(name)) for name in SCORE_COLUMNS)] for row in rows]
    header = ["ranked by", *map(metric_head, SCORE_COLUMNS)]
    classes = ["main" if row.ranks else "" for row in rows]
    return f'<div class="sheet">{table(header, lines, caption=escape(" · ".join(words)), classes=classes)}</div>'


def domain_section(run: Run, heading: str = "AP by domain") -> str:
    """AP by domain of a run, and its effective robustness where it is known; or nothing."""
    tables = [_domain_table(rows, lines) for rows, lines in by_domain(run.results)]
    return "\n".join([f"<h2>{breakable(heading)}</h2>", *tables]) if tables else ""


def _domain_table(rows: Sequence[Result], lines: Lines) -> str:
    header = ["domain", *(escape(METHOD_NAMES.get(row.method, row.method) + pseudo_text(row)) for row in rows)]
    cells = [[escape(label), *(metric_text("AP", value) for value in values)] for label, values in lines]
    return f'<div class="sheet">{table(header, cells, caption=escape(" · ".join(table_words(rows[0], lines))))}</div>'


def class_table(rows: Sequence[Result], evaluations: Sequence[Evaluation]) -> str:
    """AP and AR of each class by falling AP, with its instances where an evaluation of these rows is kept."""
    first = rows[0]
    shown = next((row for row in rows if row.method == "model"), first)
    references = [row for row in rows if row is not shown]
    names = [name.removeprefix("AP-") for name in shown.metrics if name.startswith("AP-")]
    if not names:
        return ""
    mine = next((one for one in evaluations if _is_of(one, first)), None)
    # how many there are does not depend on the prompt
    counted = mine or next(
        (one for one in evaluations if (one.info.split, len(one.iou)) == (first.split, first.instances)), None
    )
    fits = first.task == "segm" and mine is not None
    names.sort(key=lambda name: (math.isnan(shown.metric(f"AP-{name}")), -shown.metric(f"AP-{name}")))
    lines = []
    for name in names:
        ap = shown.metric(f"AP-{name}")
        count, iou = "-", "-"
        if counted is not None and name in counted.info.class_names:
            of_class = counted.category == counted.info.class_names.index(name)
            count = str(int(of_class.sum()))
            if counted is mine and np.isfinite(mine.iou[of_class]).any():
                iou = f"{np.nanmean(mine.iou[of_class]):.3f}"
        width = 0 if math.isnan(ap) else ap
        bar = f'<span class="bar" aria-hidden="true"><i style="width: {width:.1f}%"></i></span>'
        others = [metric_text("AP", row.metric(f"AP-{name}")) for row in references]
        line = [
            count,
            metric_text("AP", ap),
            bar,
            metric_text("AR", shown.metric(f"AR-{name}")),
            *([iou] if fits else []),
            *others,
        ]
        lines.append([escape(name), *line])
    heads = [f"AP of {escape(METHOD_NAMES.get(row.method, row.method))}" for row in references]
    header = ["class", "instances", "AP<br>0-100", "", "AR<br>0-100", *(["mean IoU<br>0-1"] if fits else []), *heads]
    prompts = prompts_text(first.prompt)
    method = shown.method + pseudo_text(shown)
    words = f"{first.split} · {first.task} · {prompts} · {method}, {len(names)} classes by falling AP"
    drawn = table(header, lines, caption=escape(words), tall=True)
    return f'<div class="sheet">{drawn}</div>'


def _is_of(evaluation: Evaluation, row: Result) -> bool:
    """Whether the instances of an evaluation were measured with the prompts of a row."""
    info = evaluation.info
    return (info.split, info.prompt) == (row.split, row.prompt) and info.prompt_boxes in (None, row.prompt_boxes)
