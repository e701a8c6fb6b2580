"""What is wrong with a dataset file: one record per problem, and the message that a user sees."""

import logging
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sam_d2.data.finding_kinds import KINDS, Severity
from sam_d2.errors import UserError
from sam_d2.visible_text import clean

MAX_LISTED = 20
_MOST_ALIKE = 5

RecordId = int | str | None


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem of a dataset file.

    Attributes:
        severity: ``error`` where the record cannot be interpreted, ``warning`` where it can still be used.
        file: the dataset file.
        image_id: the image's id; its position, as ``images[3]``, where it has none; None where no image is
            meant.
        annotation_id: the same for the annotation.
        field: key of the record, or of the file.
        found: what stands there.
        fix: what to write instead, or what is done about it. It holds no ids, so that findings of one kind
            can be grouped by (field, fix).
        rows: of a file that is a list, the rows that it is on, from 0 on, rising.
        row_of: what the one row says of its image, such as ``image_id 17``.
        kind: name of what is wrong, a key of :data:`sam_d2.data.finding_kinds.KINDS`; empty of files that the doctor
            does not look at.
    """

    severity: Severity
    file: Path
    image_id: RecordId
    annotation_id: RecordId
    field: str
    found: str
    fix: str
    rows: tuple[int, ...] = ()
    row_of: str = ""
    kind: str = ""

    def describe(self) -> str:
        """Return the finding in one line, without the file."""
        return f"{self.place_and_found()}; {self.fix}"

    def place_and_found(self) -> str:
        """Return where in the file it is, and what was found there."""
        place = [f"image {self.image_id}"] if self.image_id is not None else []
        if self.annotation_id is not None:
            place.append(f"annotation {self.annotation_id}")
        if self.rows:
            told = not self.row_of or self.row_of.startswith(f"{self.field} ")
            place.append(_rows_text(self.rows) + ("" if told else f" ({self.row_of})"))
        return clean(f"{', '.join([*place, self.field])}: {self.found}")


def grouped_rows(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings on rows with one for all rows that have the same, so that a frequent kind hides no other.

    Of a kind (field and fix) of which many different things are found there is one as well, with the first of these.
    """
    kinds: dict[tuple[str, str], dict[str, list[Finding]]] = {}
    for finding in findings:
        kinds.setdefault((finding.field, finding.fix), {}).setdefault(finding.found, []).append(finding)
    grouped = []
    for same in kinds.values():
        if len(same) > _MOST_ALIKE:
            found = f"{', '.join([*same][:_MOST_ALIKE])}, ..."
            same = {found: [finding for one in same.values() for finding in one]}
        for found, alike in same.items():
            rows = tuple(sorted(row for one in alike for row in one.rows))
            grouped.append(replace(alike[0], found=found, rows=rows, row_of=alike[0].row_of if len(rows) == 1 else ""))
    return sorted(grouped, key=lambda finding: finding.rows[:1])


def _rows_text(rows: Sequence[int]) -> str:
    """Rows with runs of them drawn together, such as ``rows 0-29, 31 (31 rows)``."""
    if len(rows) == 1:
        return f"row {rows[0]}"
    runs: list[list[int]] = []
    for row in rows:
        if runs and row == runs[-1][1] + 1:
            runs[-1][1] = row
        else:
            runs.append([row, row])
    shown = [f"{first}" if first == last else f"{first}-{last}" for first, last in runs[:_MOST_ALIKE]]
    return f"rows {', '.join(shown)}{', ...' * (len(runs) > _MOST_ALIKE)} ({len(rows)} rows)"


def raise_findings(findings: Sequence[Finding], logger: logging.Logger | None = None, *, doctor: bool = False) -> None:
    """Log the warnings as counts per kind, and raise one error with all that is wrong.

    Args:
        findings: problems of one or more files.
        logger: where the warnings go; this module's logger by default.
        doctor: whether the error says how to check the dataset files, which the findings are on.

    Raises:
        UserError: there is an error among the findings. The message lists the first 20 and says how many
            there are.
    """
    logger = logger or logging.getLogger(__name__)
    for line in grouped_warnings(findings):
        logger.warning(line)
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return
    lines: list[str] = []
    file: Path | None = None
    for error in errors[:MAX_LISTED]:
        if error.file != file:
            file = error.file
            count = sum(1 for other in errors if other.file == file)
            lines.append(f"{file}: {plural(count, 'error')}" + (":" if count <= MAX_LISTED else ", the first:"))
        lines.append(f"  {error.describe()}")
    if len(errors) > MAX_LISTED:
        lines.append(f"  ... and {len(errors) - MAX_LISTED} more errors ({len(errors)} in all)")
    if doctor:
        lines.append("All that is wrong, and a copy in which what can be is mended (--fix):")
        lines += [f"  {doctor_command(file)}" for file in dict.fromkeys(error.file for error in errors)]
    raise UserError("\n".join(lines))


def doctor_command(*words: str | Path) -> str:
    """Return the command line that checks a dataset."""
    return shlex.join(["python", "tools/check_dataset.py", *map(str, words)])


def grouped_warnings(findings: Iterable[Finding]) -> list[str]:
    """Return one line for each kind of warning: how many, what is wrong, an example, and what is done about it."""
    counts = WarningCounts()
    counts.add(findings)
    return counts.lines()


class WarningCounts:
    """How many warnings there are of each kind, with the first of each: for findings that are too many to keep."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[Path, str, str]] = Counter()
        self._firsts: dict[tuple[Path, str, str], Finding] = {}

    def add(self, findings: Iterable[Finding]) -> None:
        """Count the warnings among findings."""
        for finding in findings:
            if finding.severity == "warning":
                alike = (finding.file, finding.kind or finding.field, finding.fix)
                self._counts[alike] += 1
                self._firsts.setdefault(alike, finding)

    def lines(self) -> list[str]:
        """Return one line for each kind."""
        return [_warning_line(count, self._firsts[alike]) for alike, count in self._counts.items()]


def _warning_line(count: int, first: Finding) -> str:
    what = KINDS[first.kind].title if first.kind else f"on {first.field}"
    example = f"{'first: ' if count > 1 else ''}{first.place_and_found()}"
    return f"{first.file}: {plural(count, 'warning')}, {what}; {example}; {first.fix}"


def plural(count: int, one: str, several: str = "") -> str:
    """A number and what is counted, such as ``2 images``; ``several`` is ``one`` with an s by default."""
    return f"{count} {one}" if count == 1 else f"{count} {several or one + 's'}"


def shortened(value: Any, limit: int = 60) -> str:
    """Return a value of a file as a message shows it, at most ``limit`` characters."""
    text = repr(value[:8] if isinstance(value, list) else value[:limit] if isinstance(value, str) else value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
