"""Oracle and detector of the same SAM side by side, and what the gap to 100 is made of, for the log and the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from sam_d2.evaluation.gap import BOX_CAUSES, CAUSES
from sam_d2.evaluation.report_charts import Chart, Step, waterfall_chart
from sam_d2.evaluation.report_html import chart_grid, escape, table
from sam_d2.evaluation.report_tables import metric_head
from sam_d2.evaluation.results import Result, prompts_text, pseudo_text
from sam_d2.evaluation.table import metric_text

_COLUMNS = ("AP", "AP50", "AP75", "AR")
_WORDS = {
    "classes": "wrong classes",
    "boxes": "boxes",
    "imprecise": "boxes: imprecise",
    "false": "boxes: false",
    "ranking": "boxes: ranking",
    "missed": "boxes: missed",
    "masks": "masks of the oracle",
}
_LEAST_SPAN = 0.5
"""AP below the lowest bar's end that the chart shows at least."""
_MARGIN = 0.25
"""Of the range in which the shares lie, shown below it, so that the broken bar has a length."""
_ORDER = (
    "The causes are repaired from above to below, and each is charged with the AP that its repair brings. Another "
    "order would give other shares, and a share may be negative (docs/detector-prompts.md)."
)


def pairs_of(results: Iterable[Result]) -> list[Result]:
    """The rows of masks in boxes of a detector or file whose gap is known."""
    return [row for row in results if row.task == "segm" and "gap" in row.metrics]


def gap_text(row: Result) -> str:
    """One line on a row of :func:`pairs_of`: its AP and the oracle's, and the shares of the gap."""
    share = {cause: f"{cause} {metric_text('AP', row.metric(f'gap_{cause}'))}" for cause in (*CAUSES, *BOX_CAUSES)}
    boxes = f"{share['boxes']} ({', '.join(share[cause] for cause in BOX_CAUSES)})"
    return (
        f"{row.split}, prompt {row.prompt}{pseudo_text(row)}: AP {metric_text('AP', row.metric('AP'))}, oracle "
        f"{metric_text('AP', row.metric('gap_oracle'))}; to 100 are missing {metric_text('AP', row.metric('gap'))}: "
        f"{share['classes']}, {boxes}, {share['masks']}"
    )


def pair_section(results: Sequence[Result]) -> str:
    """The page's section, as HTML; empty where no gap is known."""
    pairs = pairs_of(results)
    if not pairs:
        return ""
    parts = ["<h2>Oracle and detector</h2>"]
    for ground_truth in dict.fromkeys(row.ground_truth for row in pairs):
        mine = [row for row in pairs if row.ground_truth == ground_truth]
        same = [row for row in results if row.ground_truth == ground_truth and row.split == mine[0].split]
        parts.append(f'<div class="sheet">{_side_by_side(mine, same)}</div>')
        parts.append(f'<div class="sheet">{_shares(mine)}</div>')
        parts.append(chart_grid([_chart(row) for row in mine if math.isfinite(row.metric("gap"))]))
    return "\n".join(parts)


def _side_by_side(pairs: Sequence[Result], results: Sequence[Result]) -> str:
    """Masks and boxes of the oracle, of the pair and of the detector by itself."""
    maker = "detector" if pairs[0].prompt_source == "detector" else "file"
    oracle = [
        row
        for row in results
        if row.ranks
        and (row.prompt_source, row.method, row.task) == ("ground_truth", "model", "segm")
        and row.metric("AP") == pairs[0].metric("gap_oracle")
    ]
    alone = [row for row in results if row.method == "detector"]
    lines = []
    for row in pairs:
        boxes = next((one for one in results if one.task == "bbox" and one.key[:5] == row.key[:5]), None)
        lines.append(_line(f"SAM in the {maker}'s boxes, prompt {row.prompt}", row.score, row, boxes))
    lines += [
        _line(f"oracle: SAM with {prompts_text(row.prompt)} of the truth", row.score, row, None) for row in oracle[:1]
    ]
    if alone:
        by_task = {row.task: row for row in alone}
        lines.append(_line(f"the {maker} alone", alone[0].score, by_task.get("segm"), by_task.get("bbox")))
    words = escape(f"{pairs[0].split} · masks and boxes{pseudo_text(pairs[0])}")
    header = ["", "ranked by", *(f"mask {metric_head(name)}" for name in _COLUMNS), f"box {metric_head('AP')}"]
    return table(header, lines, caption=words, text_columns=2)


def _line(words: str, score: str, masks: Result | None, boxes: Result | None) -> list[str]:
    cells = ["-" if masks is None else metric_text(name, masks.metric(name)) for name in _COLUMNS]
    return [escape(words), escape(score), *cells, "-" if boxes is None else metric_text("AP", boxes.metric("AP"))]


def _shares(pairs: Sequence[Result]) -> str:
    causes = ("classes", *BOX_CAUSES, "boxes", "masks")
    lines = [
        [_WORDS[cause] + (", together" if cause == "boxes" else ""), *_cells(pairs, f"gap_{cause}")] for cause in causes
    ]
    lines.append(["to 100", *_cells(pairs, "gap")])
    header = ["missing because of", *(f"{escape(row.prompt)}<br>AP lost" for row in pairs)]
    return table(header, lines, caption=escape(f"{pairs[0].split} · what is missing to a mask AP of 100. {_ORDER}"))


def _cells(pairs: Sequence[Result], metric: str) -> list[str]:
    return [metric_text("AP", row.metric(metric)) for row in pairs]


def _chart(row: Result) -> Chart:
    """From the AP to 100, cause by cause; the axis begins near the lowest of them and ends at 100."""
    steps = [Step("AP", 0, row.metric("AP"), 0, total=True)]
    for colour, cause in enumerate(("classes", *BOX_CAUSES, "masks"), 1):
        steps.append(Step(_WORDS[cause], steps[-1].end, steps[-1].end + row.metric(f"gap_{cause}"), colour))
    lowest = min(step.end for step in steps)
    low = max(0.0, lowest - max(_MARGIN * (100 - lowest), _LEAST_SPAN))
    note = f"The axis begins at {low:.1f}, where the bar of the AP is broken." if low else ""
    if any(step.end < step.start for step in steps):
        note = f"{note} Hollow: a negative share, by which the repair makes the AP lower.".strip()
    title = f"From AP to 100, prompt {row.prompt}"
    return waterfall_chart(title, steps, "mask AP, by cause from AP to 100", limits=(low, 100.0), note=note)
