"""Pieces of a report's page: escaped text, tables, charts, and the page around them."""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files

from sam_d2.evaluation.report_charts import Chart
from sam_d2.visible_text import clean

_NUMBER = ' class="number"'


def escape(text: object) -> str:
    """Text of the user's as HTML, for an element or a quoted attribute."""
    return html.escape(clean(text), quote=True)


def breakable(text: object) -> str:
    """A name as HTML for an element, that may go on in the next line after an underscore."""
    return escape(text).replace("_", "_<wbr>")


def escape_lines(text: str) -> str:
    """The same for a text of several lines."""
    return "\n".join(escape(line) for line in text.splitlines())


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str,
    text_columns: int = 1,
    classes: Sequence[str] = (),
    tall: bool = False,
) -> str:
    """A table in a box of its own that scrolls where it is too wide.

    Args:
        header: HTML of the column heads.
        rows: HTML of the cells.
        caption: Escaped text; what the table shows.
        text_columns: Columns from the left that are text; the others are numbers, to the right.
        classes: CSS class of each row; none where left out.
        tall: Scroll down, too, where there are many rows.
    """
    heads = "".join(
        f'<th scope="col"{"" if column < text_columns else _NUMBER}>{cell}</th>' for column, cell in enumerate(header)
    )
    lines = []
    for number, row in enumerate(rows):
        cells = [f'<th scope="row">{row[0]}</th>']
        for column, cell in enumerate(row[1:], 1):
            cells.append(f"<td{'' if column < text_columns else _NUMBER}>{cell}</td>")
        mark = f' class="{classes[number]}"' if number < len(classes) and classes[number] else ""
        lines.append(f"<tr{mark}>{''.join(cells)}</tr>")
    body = "\n".join(lines)
    return (
        f'<p class="caption">{caption}</p><div class="scroll{" tall" if tall else ""}" tabindex="0" role="region" '
        f'aria-label="{caption}"><table><thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
    )


def definitions(items: Iterable[tuple[str, str]]) -> str:
    """A list of names and values; both are text of the user's."""
    return (
        '<dl class="facts">'
        + "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in items)
        + "</dl>"
    )


def figure(chart: Chart) -> str:
    """A chart with its title, legend and note."""
    legend = "".join(
        f'<li><span class="key {kind}" style="color: var(--c{colour})"></span>{escape(label)}</li>'
        for label, colour, kind in chart.legend
    )
    note = f"<p>{escape(chart.note)}</p>" if chart.note else ""
    return (
        f'<figure class="chart sheet"><figcaption>{escape(chart.title)}</figcaption>{chart.svg}'
        f'<ul class="legend">{legend}</ul>{note}</figure>'
    )


def chart_grid(charts: Sequence[Chart]) -> str:
    """Charts beside one another where there is room."""
    return f'<div class="charts">{"".join(map(figure, charts))}</div>'


def data_uri(jpeg: bytes) -> str:
    """A JPEG inside the page."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def page(title: str, body: str) -> str:
    """The whole page: one file that loads nothing, and in which only its own script can run.

    Args:
        title: Text of the user's.
        body: HTML.
    """
    folder = files("sam_d2.evaluation")
    style = folder.joinpath("report.css").read_text(encoding="utf-8")
    script = folder.joinpath("report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    number = itertools.count()
    body = re.sub(r"<svg.*?</svg>", lambda found: _with_own_ids(found[0], next(number)), body, flags=re.DOTALL)
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""


def _with_own_ids(svg: str, number: int) -> str:
    """An SVG whose ids no other one of the page has."""
    return re.sub(r'( id="| href="#|url\(#)', rf"\g<1>s{number}-", svg)
