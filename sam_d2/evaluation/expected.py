"""Results that are known beforehand: a recorded run's, or those published with a file of weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from detectron2.evaluation import verify_results
from sam_d2.engine.weights import PUBLISHED
from sam_d2.errors import UserError

logger = logging.getLogger(__name__)

Expected = tuple[str, str, float, float]
"""Task, metric, value, tolerance."""

_COCO = "coco_2017_val"
_SLACK = 0.05  # AP, 0-100: what other versions of torch and its kernels may change


def published_results(checkpoint: str | Path, split: str) -> list[Expected]:
    """Return the AP that was published with a file of weights; nothing for other files and other datasets.

    Args:
        checkpoint: the file.
        split: registered name of the dataset.
    """
    published = PUBLISHED.get(Path(checkpoint).name)
    if published is None or published.coco_ap is None or split != _COCO:
        return []
    return [
        (task, "AP", value, _SLACK + (0.05 if round(value, 1) == value else 0.0))  # rounded to one decimal
        for task, value in zip(("bbox", "segm"), published.coco_ap, strict=True)
    ]


def check_expected(rows: Sequence[Sequence[Any]], results: Mapping[str, Mapping[str, float]]) -> None:
    """Compare results with what is expected, as Detectron2's ``verify_results`` does; in the main process.

    Args:
        rows: (task, metric, value, tolerance); none expects nothing.
        results: metrics by task, as an evaluation returns them; empty in other processes.

    Raises:
        UserError: a row has another form, or names a task that was not evaluated.
        SystemExit: with code 1, where a metric is off by more than its tolerance.
    """
    if not rows or not results:
        return
    for row in rows:
        if len(row) != 4 or row[0] not in results or not all(isinstance(value, int | float) for value in row[2:]):
            raise UserError(
                f"train.expected_results: {list(row)} is not [task, metric, value, tolerance] with one of the tasks "
                f"{', '.join(results)}, such as [segm, AP, 38.6, 0.1]."
            )
    expected = [tuple(row) for row in rows]
    logger.info("Expected: %s", "; ".join(f"{t} {m} {value:g} +- {slack:g}" for t, m, value, slack in expected))
    verify_results(SimpleNamespace(TEST=SimpleNamespace(EXPECTED_RESULTS=expected)), results)
