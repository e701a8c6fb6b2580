"""Fitting the calibration of a run's scores, and measuring what it is worth."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from omegaconf import DictConfig

from detectron2.config import instantiate
from detectron2.data import DatasetCatalog
from detectron2.evaluation import inference_on_dataset
from sam_d2.errors import UserError
from sam_d2.evaluation.box_source import NO_BOXES, BoxSource
from sam_d2.evaluation.coco_evaluator import InstanceEvaluator
from sam_d2.evaluation.detector_prompts import DetectorPrompts
from sam_d2.evaluation.reliability import prediction_ious, reliability
from sam_d2.evaluation.results import truth_text
from sam_d2.modeling.calibration import Floats, ScoreCalibration
from sam_d2.modeling.prompt_recipes import DETECTOR, GROUND_TRUTH
from sam_d2.modeling.sam import PromptableSAM
from sam_d2.modeling.weights_record import WeightsRecord


@dataclass(frozen=True)
class MeasuredScores:
    """The predictions of a model with one kind of prompt on one dataset.

    Attributes:
        prompt: kind of test prompt.
        dataset: registered name.
        score: name of the score.
        scores: (N,) of it, as it stands.
        ious: (N,) true IoU, 0-1; NaN of predictions that have none.
        pseudo: whether a model made the truth, or some of it.
    """

    prompt: str
    dataset: str
    score: str
    scores: Floats
    ious: Floats
    pseudo: bool = False

    @property
    def words(self) -> str:
        """What was measured on what, for a line of text."""
        return f"{self.dataset}{truth_text(self.pseudo)}, {self.prompt} prompts, {self.score}, {self.known} masks"

    @property
    def known(self) -> int:
        """Predictions that have a true IoU."""
        return int((~np.isnan(self.ious)).sum())

    def fitted(self) -> ScoreCalibration:
        """Return the calibration fitted to these predictions.

        Raises:
            UserError: fewer than two of them have a true IoU and different scores.
        """
        return ScoreCalibration.fit(self.scores, self.ious, score=self.score, dataset=self.dataset)

    def ece(self, calibration: ScoreCalibration | None = None) -> float:
        """Return the expected calibration error (0-1) of the score, calibrated if asked; NaN without predictions."""
        scores = self.scores if calibration is None else calibration(self.scores)
        error = reliability(self.score, scores, self.ious).ece
        return float("nan") if error is None else error


class _Collector(InstanceEvaluator):
    """Keeps predictions and does not rank them."""

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        return OrderedDict()


def measure_scores(
    model: PromptableSAM, cfg: DictConfig, dataset: str, box_source: BoxSource | None = None
) -> Iterator[MeasuredScores]:
    """Predict on a dataset with each test prompt of a model, as an evaluation does.

    Args:
        model: with its weights; of its scores the plain one is measured, calibrated or not.
        cfg: config of its run, of which ``dataloader.test`` and ``dataloader.evaluator`` are read.
        dataset: registered name.
        box_source: of recipes whose prompts are a detector's.

    Raises:
        UserError: no dataset of the name is registered, a score is not finite, or a detector's boxes are needed and
            there is none.
    """
    if dataset not in DatasetCatalog.list():
        own = ", ".join(str(cfg.dataloader[part].dataset.names) for part in ("train", "test"))
        raise UserError(f"{dataset}: no dataset of that name is registered; the run's own are {own}.")
    cfg = cfg.copy()
    cfg.dataloader.test.dataset.names = dataset
    cfg.dataloader.evaluator.dataset_name = dataset
    cfg.dataloader.evaluator._target_ = _Collector
    evaluator = instantiate(cfg.dataloader.evaluator)
    evaluator.reset()  # reads the ground truth, for the boxes too
    boxes: DetectorPrompts | None = None
    for prompt in model.test_prompts:
        recipe, source, loader = model.prompts[prompt], GROUND_TRUTH, instantiate(cfg.dataloader.test)
        if recipe.prompt_source == DETECTOR:
            if box_source is None:
                raise UserError(f"Prompt {prompt} is of a detector's boxes. {NO_BOXES}")
            boxes = boxes or box_source.boxes_for(evaluator)[0]
            source, loader = boxes.source, boxes.attached_to(loader)
        score = recipe.score or model.score
        evaluator.ask(prompt, source=source, score=score)
        with model.tested_with(prompt), _uncalibrated(model), model.encoding_masks():
            inference_on_dataset(model, loader, evaluator)
        truth, found = evaluator.ground_truth, evaluator.detections
        assert truth is not None  # read by reset()
        ious = prediction_ious(truth, found, prompted=evaluator.oracle)
        yield MeasuredScores(
            prompt,
            dataset,
            score,
            np.concatenate([np.zeros(0), *(image.scores for image in found)]),
            np.concatenate([np.zeros(0), *ious]),
            evaluator.truth_is_pseudo,
        )


@contextmanager
def _uncalibrated(model: PromptableSAM) -> Iterator[None]:
    before, model.calibrate = model.calibrate, False
    try:
        yield
    finally:
        model.calibrate = before


def with_calibrations(checkpoint: dict[str, Any], fitted: dict[str, ScoreCalibration], file: str) -> dict[str, Any]:
    """Return a checkpoint's content with calibrations beside its weights; those of other prompts stay.

    Args:
        checkpoint: content of the file.
        fitted: by kind of test prompt.
        file: its name, for the message.

    Raises:
        UserError: it is a file of bare weights, which has no place for them.
    """
    if "model" not in checkpoint:
        raise UserError(
            f"{file}: is a file of bare weights, which has no place for a calibration. Calibrate a checkpoint of a run."
        )
    entries = {prompt: one.entry() for prompt, one in fitted.items()}
    before = checkpoint.get(WeightsRecord.CALIBRATIONS) or {}
    return {**checkpoint, WeightsRecord.CALIBRATIONS: {**before, **entries}}
