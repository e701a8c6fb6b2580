"""report.json: every figure of a run, with what it was measured on and how."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import msgspec

from sam_d2.atomic import write_atomically
from sam_d2.data.findings import plural
from sam_d2.errors import UserError

VERSION = 1
NO_PROMPT = "none"
"""Kind of prompt of a model that takes none."""
PSEUDO = "pseudo ground truth"
"""Said wherever figures stand that were measured on annotations which a model made."""

LEFT_OUT = {
    "min_score": "below min_score",
    "max_boxes": "beyond max_boxes",
    "limit": "beyond max dets",
}
"""Why boxes of a detector or a file are no prompts, by what leaves them out."""


def prompts_text(prompt: str) -> str:
    """Name a kind of prompt in a sentence: ``box prompts``, ``no prompts``."""
    return "no prompts" if prompt == NO_PROMPT else f"{prompt} prompts"


class Result(msgspec.Struct, kw_only=True):
    """One row of report.json: the metrics of one method on one split with one kind of prompt.

    Attributes:
        split: Registered name of the dataset.
        images: Of the dataset; None in a row that does not say.
        instances: To be found by the task, in all images; likewise.
        ground_truth: What tells it from another dataset of the name, or from this one after a change of its
            annotations: :attr:`~sam_d2.evaluation.ground_truth.GroundTruth.digest`; likewise.
        prompt: Kind of prompt, such as ``box`` or ``point``; ``none`` of a model that takes none.
        prompt_source: ``ground_truth`` (an oracle), ``detector`` (also of a detector itself) or ``file``.
        prompt_boxes: Boxes that ground-truth prompts are made from: ``file`` (as annotated; also of a row that does
            not say) or ``mask`` (recomputed, tight); None where prompts are from elsewhere. For the baselines, which
            know the mask's box alone, that of the model beside them.
        method: ``model``, ``base`` (the model before this training), ``box_as_mask``, ``ellipse`` or
            ``detector``.
        task: ``segm`` or ``bbox``.
        score: Name of the score that ranks the masks; ``constant`` for the baselines.
        ranks: Whether it is the one that ranks the method's results; False of another score that the same masks were
            ranked by for comparison.
        max_dets: Detections that count per image and class.
        pseudo_ground_truth: Whether a model made the truth itself, or some of it.
        prompts_left_out: How many boxes of a detector or a file were no prompts because of ``min_score``, ``max_boxes``
            or the ``limit`` of detections that count; by what left them out. Their maker's own rows are with them.
        selected: Whether the weights were chosen by scores on this very split, as those of ``model_best.pth`` or where
            early stop ended the training.
        seconds: Wall-clock time of prediction and evaluation.
        metrics: AP and AR 0-100, IoU and ECE 0-1; NaN where undefined, null in the file.
    """

    split: str
    images: int | None = None
    instances: int | None = None
    ground_truth: str | None = None
    prompt: str
    prompt_source: str
    prompt_boxes: str | None = None
    method: str
    task: str
    score: str
    ranks: bool = True
    max_dets: int
    pseudo_ground_truth: bool
    prompts_left_out: dict[str, int] = {}
    selected: bool = False
    seconds: float
    metrics: dict[str, float | None]

    def __post_init__(self) -> None:
        if self.prompt_boxes is None and self.prompt_source == "ground_truth":
            self.prompt_boxes = "file"
        self.metrics = {name: math.nan if value is None else value for name, value in self.metrics.items()}

    @property
    def key(self) -> tuple[str | None, ...]:
        """What tells one row from another."""
        return (self.split, self.prompt, self.prompt_source, self.prompt_boxes, self.method, self.task, self.score)

    def metric(self, name: str) -> float:
        """A metric's value, NaN where the row does not have it."""
        value = self.metrics.get(name)
        return math.nan if value is None else value


def truth_text(pseudo: bool) -> str:
    """What to put behind figures whose truth a model made; else nothing."""
    return f" ({PSEUDO})" if pseudo else ""


def pseudo_text(row: Result) -> str:
    """:func:`truth_text` of a row."""
    return truth_text(row.pseudo_ground_truth)


def notes_text(row: Result) -> str:
    """What to put behind a row's method: its split chose the weights, a model's truth, boxes left out; or nothing."""
    notes = ["selected on this split"] if row.selected else []
    notes += [PSEUDO] if row.pseudo_ground_truth else []
    notes += [
        f"without {plural(count, 'box', 'boxes')} {LEFT_OUT.get(why, why)}"
        for why, count in row.prompts_left_out.items()
    ]
    return f" ({', '.join(notes)})" if notes else ""


class _Report(msgspec.Struct):
    version: int
    results: list[Result]


def read_report(path: str | Path) -> list[Result]:
    """The rows of a report.json.

    Args:
        path: Of the file.

    Raises:
        UserError: There is no such file, or it is damaged, of another version, or something else altogether.
    """
    path = Path(path)
    try:
        report = msgspec.json.decode(path.read_bytes(), type=_Report)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a run writes it when it evaluates") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise UserError(f"{path}: not a report that can be read ({error}); move it away and evaluate again") from None
    if report.version != VERSION:
        raise UserError(
            f"{path}: is of version {report.version}, and this sam_d2 reads version {VERSION}; "
            "move it away and evaluate again"
        )
    return report.results


def write_report(path: str | Path, results: Iterable[Result]) -> None:
    """Add rows to a report.json, or begin it; a row that is there already is replaced in its place.

    Args:
        path: Of the file; its folder is made where absent.
        results: Rows to add.

    Raises:
        UserError: What stands there cannot be read; it is left as it is.
    """
    path = Path(path)
    rows = {row.key: row for row in (read_report(path) if path.exists() else [])}
    rows.update({row.key: row for row in results})
    document = msgspec.json.encode(_Report(VERSION, list(rows.values())))
    write_atomically(path, msgspec.json.format(document, indent=1))
