"""One evaluation of a promptable model: predictions, baselines beside them, report and gallery."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from sam_d2.evaluation.baselines import evaluate_baselines
from sam_d2.evaluation.coco_evaluator import InstanceEvaluator
from sam_d2.evaluation.gallery import gallery_rows, write_gallery
from sam_d2.evaluation.results import Result, write_report
from sam_d2.evaluation.table import log_results

logger = logging.getLogger(__name__)


class PromptedEvaluation:
    """Evaluates a model on one dataset as often as asked, and keeps the run folder's report up to date.

    Args:
        evaluator: of the dataset.
        loader: test loader of the same dataset.
        output_dir: run folder; ``report.json`` and ``gallery.png`` are written there.
    """

    def __init__(self, evaluator: InstanceEvaluator, loader: Iterable[list[dict[str, Any]]], output_dir: Path) -> None:
        self.evaluator = evaluator
        self.loader = loader
        self.output_dir = output_dir
        self._baselines: list[Result] | None = None
        self._results: dict[str, list[Result]] = {}

    def __call__(self, model: nn.Module, method: str = "model") -> OrderedDict[str, dict[str, float]]:
        """Evaluate ``model``; all processes take part.

        Args:
            model: in any mode; it is put back into it.
            method: ``model``, or ``base`` for the model before training.

        Returns:
            The evaluator's metrics by task, in the main process; empty elsewhere.
        """
        self.evaluator.method = method
        metrics = inference_on_dataset(model, self.loader, self.evaluator)
        if not comm.is_main_process():
            return OrderedDict()
        self._results[method] = self.evaluator.results
        truth = self.evaluator.ground_truth
        if self._baselines is None and truth is not None and self.evaluator.oracle:
            self._baselines = evaluate_baselines(
                truth,
                prompt=self.evaluator.prompt,
                split=self.evaluator.split,
                max_dets=self.evaluator.max_dets,
            )
        results = [row for rows in self._results.values() for row in rows] + (self._baselines or [])
        write_report(self.output_dir / "report.json", results)
        log_results(results)
        return OrderedDict(metrics)

    def write_gallery(self) -> None:
        """Draw the worst, median and best images of the last evaluation."""
        truth = self.evaluator.ground_truth
        if not comm.is_main_process() or truth is None:
            return
        rows = gallery_rows(truth, self.evaluator.detections)
        if rows:
            source = "ground-truth " if self.evaluator.oracle else ""
            title = f"{self.evaluator.split}: {source}{self.evaluator.prompt} prompts"
            write_gallery(self.output_dir / "gallery.png", rows, title)
            logger.info("Wrote %s", self.output_dir / "gallery.png")
