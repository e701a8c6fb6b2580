"""One evaluation of a promptable model: predictions, baselines beside them, report, gallery and page."""

from __future__ import annotations

import datetime
import logging
import math
import platform
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch
from omegaconf import DictConfig
from torch import nn

import sam_d2
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from sam_d2.config import config_text
from sam_d2.detectron2_source import describe_detectron2
from sam_d2.errors import UserError
from sam_d2.evaluation.baselines import evaluate_baselines
from sam_d2.evaluation.box_source import NO_BOXES, BoxSource
from sam_d2.evaluation.coco_evaluator import InstanceEvaluator
from sam_d2.evaluation.detections import ImageDetections
from sam_d2.evaluation.detector_prompts import DetectorPrompts, SampleLoader
from sam_d2.evaluation.gallery import GalleryRow, gallery_rows, write_gallery
from sam_d2.evaluation.gap import explain_gap
from sam_d2.evaluation.ground_truth import GroundTruth
from sam_d2.evaluation.reliability import Reliability
from sam_d2.evaluation.report_data import VERSION, EvaluationInfo, Tile, evaluation_path, write_evaluation
from sam_d2.evaluation.report_images import MOST_BYTES, encode_within
from sam_d2.evaluation.report_instances import evaluation_of
from sam_d2.evaluation.report_page import write_page
from sam_d2.evaluation.report_pair import gap_text
from sam_d2.evaluation.results import Result, prompts_text, read_report, write_report
from sam_d2.evaluation.table import log_results
from sam_d2.modeling.prompt_recipes import DETECTOR, GROUND_TRUTH
from sam_d2.modeling.sam import PromptableSAM
from sam_d2.visible_text import clean

ZOOM_SIDE = 960
"""Pixels of the long side of the page's gallery images."""

logger = logging.getLogger(__name__)


class _Asked:
    """What an evaluation measured: the evaluator's settings of the time."""

    def __init__(self, evaluator: InstanceEvaluator) -> None:
        self.source = evaluator.prompt_source
        self.score = evaluator.score
        self.oracle = evaluator.oracle
        self.prompt_boxes = evaluator.prompt_boxes


class PromptedEvaluation:
    """Evaluates a model on one dataset as often as asked, and keeps the run folder's report up to date.

    Args:
        evaluator: of the dataset.
        loader: test loader of the same dataset.
        output_dir: run folder; ``report.json``, ``instances_<prompt>.npz``, ``gallery.png`` (one for
            each kind of prompt) and ``report.html`` are written there.
        pretrained: whether the training begins with weights of a file; for the hint on a bad result.
        box_source: finds the boxes of recipes whose prompts are a detector's, once, when they are first needed.
    """

    def __init__(
        self,
        evaluator: InstanceEvaluator,
        loader: SampleLoader,
        output_dir: Path,
        *,
        pretrained: bool = False,
        box_source: BoxSource | None = None,
    ) -> None:
        self.evaluator = evaluator
        self.loader = loader
        self.output_dir = output_dir
        self.pretrained = pretrained
        self.box_source = box_source
        self._prompts: DetectorPrompts | None = None
        self._detector: list[Result] = []
        self._asked: dict[str, _Asked] = {}
        self._baselines: list[Result] | None = None
        self._results: dict[tuple[str, str], list[Result]] = {}
        self._detections: dict[str, list[ImageDetections]] = {}
        self._reliability: dict[str, list[Reliability]] = {}
        self._device = torch.device("cpu")

    def __call__(self, model: nn.Module, method: str = "model") -> OrderedDict[str, dict[str, float]]:
        """Evaluate ``model`` with each of its test prompts; all processes take part.

        Args:
            model: in any mode; it is put back into it. Its ``test_prompts``, where it has them, are used in turn; its
                ``test_prompt`` is afterwards what it was.
            method: ``model``, or ``base`` for the model before training.

        Returns:
            The evaluator's metrics by task, in the main process; empty elsewhere. With several test prompts each
            task's name begins with the prompt's, and ``segm`` holds the mean of their AP.
        """
        self._device = next((parameter.device for parameter in model.parameters()), self._device)
        by_prompt: dict[str, OrderedDict[str, dict[str, float]]] = {}
        self.evaluator.method = method
        prompts = model.test_prompts if isinstance(model, PromptableSAM) else [self.evaluator.prompt]
        if isinstance(model, PromptableSAM):
            self._find_boxes([prompt for prompt in prompts if model.prompts[prompt].prompt_source == DETECTOR])
        for prompt in prompts:
            if isinstance(model, PromptableSAM):
                loader = self._ask(model, prompt)
                with model.tested_with(prompt), model.encoding_masks():
                    by_prompt[prompt] = inference_on_dataset(model, loader, self.evaluator)
            else:
                by_prompt[prompt] = inference_on_dataset(model, self.loader, self.evaluator)
            self._asked[prompt] = _Asked(self.evaluator)
            if comm.is_main_process():
                self._results[method, prompt] = self.evaluator.results
                self._detections[prompt] = self.evaluator.detections
                self._reliability[prompt] = list(self.evaluator.reliability.values())
        if not comm.is_main_process():
            return OrderedDict()
        results = [row for rows in self._results.values() for row in rows]
        results += [
            msgspec.structs.replace(row, prompt=prompt, prompt_boxes=self._asked[prompt].prompt_boxes)
            for row in self._score_baselines()
            for prompt in by_prompt
            if self._asked[prompt].oracle
        ]
        results += self._detector
        report = self.output_dir / "report.json"
        write_report(report, results)
        log_results([*results, *_base_from_before(results, read_report(report))], pretrained=self.pretrained)
        if len(by_prompt) == 1:
            return OrderedDict(*by_prompt.values())
        merged = OrderedDict(
            (f"{prompt}/{task}", row) for prompt, rows in by_prompt.items() for task, row in rows.items()
        )
        merged["segm"] = {"AP": sum(rows["segm"]["AP"] for rows in by_prompt.values()) / len(by_prompt)}
        return merged

    def _find_boxes(self, prompts: Sequence[str]) -> None:
        """Find the detector's boxes where some prompts need them: once, and before anything is predicted."""
        if not prompts or self._prompts is not None:
            return
        if self.box_source is None:
            raise UserError(f"Prompt {prompts[0]} is of a detector's boxes. {NO_BOXES}")
        self.evaluator.reset()  # reads the ground truth, for both
        self._prompts, self._detector = self.box_source.boxes_for(self.evaluator)

    def _ask(self, model: PromptableSAM, prompt: str) -> SampleLoader:
        """Tell the evaluator what is measured and return the loader of it."""
        source, loader, recipe = GROUND_TRUTH, self.loader, model.prompts[prompt]
        left_out: dict[str, int] = {}
        if recipe.prompt_source == DETECTOR and self._prompts is not None:
            source, loader = self._prompts.source, self._prompts.attached_to(self.loader)
            left_out = self._prompts.left_out
        self.evaluator.ask(prompt, source=source, score=model.score_name(recipe), left_out=left_out)
        return loader

    def _score_baselines(self) -> list[Result]:
        """Return the baselines' rows, the same for every prompt, scored once; none where there is no oracle."""
        truth = self.evaluator.ground_truth
        if self._baselines is None and truth is not None and any(asked.oracle for asked in self._asked.values()):
            self._baselines = evaluate_baselines(
                truth,
                split=self.evaluator.split,
                max_dets=self.evaluator.max_dets,
                pseudo_ground_truth=self.evaluator.pseudo_ground_truth,
            )
        return self._baselines or []

    def mark_selected(self) -> None:
        """Say in the report that the last scores chose the weights, as where early stop ended a training."""
        rows = [row for (method, _), rows in self._results.items() if method == "model" for row in rows]
        if comm.is_main_process() and rows:
            for row in rows:
                row.selected = True
            write_report(self.output_dir / "report.json", rows)

    def finish(self, checkpoint: str | Path, config: DictConfig | None = None) -> None:
        """Keep what the last evaluation found of each instance, draw its gallery, and rebuild ``report.html``.

        Args:
            checkpoint: what was evaluated, for the report.
            config: of the evaluation; None where the run folder's config.yaml has it.
        """
        truth = self.evaluator.ground_truth
        if not comm.is_main_process() or truth is None:
            return
        self._explain_gaps(truth)
        limit = MOST_BYTES * 2 // max(2, len(self._detections))  # the page has room for two full galleries
        for prompt, detections in self._detections.items():
            rows = gallery_rows(truth, detections, long_side=ZOOM_SIDE)
            self._write_gallery(rows, prompt)
            info = self._info(truth, rows, str(checkpoint), self._config_text(config), prompt)
            evaluation = evaluation_of(truth, detections, info)
            pictures = encode_within([image for row in rows for image in (row.image, row.plain)], limit)
            evaluation.pictures = list(zip(pictures[0::2], pictures[1::2], strict=True))
            write_evaluation(evaluation_path(self.output_dir, prompt), evaluation)
        logger.info("Wrote %s", write_page(self.output_dir))

    def _explain_gaps(self, truth: GroundTruth) -> None:
        """Add to the rows of a detector's boxes what keeps them from 100, against the first oracle of this run."""
        oracle = next((prompt for prompt, asked in self._asked.items() if asked.oracle), None)
        prompts = self._prompts
        if oracle is None or prompts is None:
            return
        rows = []
        for prompt, asked in self._asked.items():
            if asked.oracle:
                continue
            gap = explain_gap(
                truth,
                self._detections[prompt],
                self._detections[oracle],
                lambda image_id: prompts[image_id].pred_boxes.tensor.double().numpy(),
                max_dets=self.evaluator.max_dets,
            )
            for row in self._results.get(("model", prompt), []):
                if (row.task, row.score) == ("segm", asked.score):
                    row.metrics.update(gap.metrics())
                    rows.append(row)
        for row in rows:
            logger.info(gap_text(row))
        write_report(self.output_dir / "report.json", rows)

    def _write_gallery(self, rows: Sequence[GalleryRow], prompt: str) -> None:
        if rows:
            source = "ground-truth " if self._asked[prompt].oracle else ""
            several = f"_{prompt}" if len(self._detections) > 1 else ""
            path = self.output_dir / f"gallery{several}.png"
            title = f"{self.evaluator.split}: {source}{prompts_text(prompt)}"
            write_gallery(path, rows, title, pseudo=self.evaluator.truth_is_pseudo)
            logger.info("Wrote %s", path)

    def _info(
        self, truth: GroundTruth, rows: Sequence[GalleryRow], checkpoint: str, config: str, prompt: str
    ) -> EvaluationInfo:
        asked = self._asked[prompt]
        seconds = [row.seconds for row in self._results.get(("model", prompt), [])]
        return EvaluationInfo(
            version=VERSION,
            split=self.evaluator.split,
            prompt=prompt,
            prompt_source=asked.source,
            score=asked.score,
            written=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            checkpoint=clean(checkpoint),
            device=_describe_device(self._device),
            versions={
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "sam_d2": sam_d2.__version__,
                "detectron2": describe_detectron2().removeprefix("detectron2 "),
            },
            seconds=max(seconds, default=0.0),
            paired=asked.oracle,
            image_names=[clean(image.file_name) for image in truth.images],
            class_names=[clean(name) for name in truth.class_names],
            config=config,
            tiles=[
                Tile(
                    label=row.label,
                    file_name=clean(row.file_name),
                    mean_iou=None if math.isnan(row.mean_iou) else row.mean_iou,
                    instances=row.instances,
                    predictions=row.predictions,
                )
                for row in rows
            ],
            prompt_boxes=asked.prompt_boxes,
            reliability=self._reliability[prompt],
        )

    def _config_text(self, config: DictConfig | None) -> str:
        if config is None:
            saved = self.output_dir / "config.yaml"
            return saved.read_text(encoding="utf-8") if saved.is_file() else ""
        return config_text(config)


def _base_from_before(results: Sequence[Result], saved: Sequence[Result]) -> list[Result]:
    """Return the rows of the model before training where another process scored it, as after a resume.

    Of the same dataset and ground truth, prompt, boxes, task and score as the model's: others would be no comparison.
    """
    scored = {row.key for row in results}
    models = [row for row in results if row.method == "model" and row.ranks]
    compared = {(msgspec.structs.replace(row, method="base").key, row.ground_truth) for row in models}
    return [row for row in saved if (row.key, row.ground_truth) in compared and row.key not in scored]


def _describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
