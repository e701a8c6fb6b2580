"""Where a detector's boxes come from: a detector that runs over the test set first, or a file of results."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from omegaconf import DictConfig, OmegaConf

import sam_d2  # noqa: F401  (makes detectron2 importable)
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from sam_d2.detector import Detector, classes_in
from sam_d2.engine.distributed import in_main_process
from sam_d2.errors import UserError
from sam_d2.evaluation.coco_evaluator import InstanceEvaluator
from sam_d2.evaluation.detections import ImageDetections
from sam_d2.evaluation.detector_prompts import DetectorPrompts, image_sizes
from sam_d2.evaluation.prompt_file import read_prompt_file
from sam_d2.evaluation.results import NO_PROMPT, Result
from sam_d2.model_classes import classes_of
from sam_d2.model_source import find_model

FOLDER = "detector"
"""Of a run folder: where the detector's own results are kept, which ``--prompt-boxes`` reads."""

NO_BOXES = (
    "Name the detector with dataloader.detector.config=RUN_OR_CONFIG, or a COCO results list with --prompt-boxes FILE."
)

_MOST_NAMES = 5
"""Of classes in a message."""

_log = logging.getLogger(__name__)


class BoxSource(Protocol):
    """Makes the prompts of a dataset, and the rows of the report that say how good their maker is by itself."""

    source: str

    def check(self, dataset_name: str) -> None:
        """Raise what :meth:`boxes_for` would of a registered dataset, without finding anything or writing a file."""

    def boxes_for(self, evaluator: InstanceEvaluator) -> tuple[DetectorPrompts, list[Result]]:
        """Find the boxes of the dataset of ``evaluator``; all processes take part, each gets those of all images.

        Args:
            evaluator: After its ``reset``, which reads the ground truth.

        Returns:
            The prompts; in the main process the maker's own results (method ``detector``), elsewhere none.
        """


@dataclass
class DetectorBoxes:
    """Runs a detector over the test set, as an ``--eval-only`` of it does.

    Attributes:
        cfg: Of the detector.
        weights: A file that holds a whole one.
        min_score: Least score of a prompt.
        max_boxes: Most prompts of an image; None for as many of each class as count in the evaluation.
        device: Of the detector.
        num_workers: Processes that read images.
        output_dir: Run folder; the detections are written to its ``detector/coco_instances_results.json``.
        match_classes: Whether the detector's classes must have the names of the dataset's, where its names are known.
    """

    cfg: DictConfig
    weights: Path
    min_score: float
    max_boxes: int | None
    device: torch.device
    num_workers: int
    output_dir: Path
    match_classes: bool = True
    source: str = "detector"

    def boxes_for(self, evaluator: InstanceEvaluator) -> tuple[DetectorPrompts, list[Result]]:
        """Detect; see :class:`BoxSource`.

        Raises:
            UserError: The detector tells other classes apart than the dataset has, or its weights do not fit it.
        """
        _log.info("Detecting the boxes of %s with %s", evaluator.dataset_name, self.weights)
        detector = Detector(self.cfg, self.weights, self.device)
        assumed = self._require_classes(detector.num_classes, evaluator.dataset_name)
        if assumed:
            _log.warning("The detector's classes are taken by their order: %s", assumed)
        cfg = self.cfg.copy()
        cfg.dataloader.test.dataset.names = evaluator.dataset_name
        cfg.dataloader.test.num_workers = self.num_workers
        own: InstanceEvaluator = instantiate(cfg.dataloader.evaluator)
        own.method = "detector"
        own.output_dir = self.output_dir / FOLDER
        own.ground_truth, own.split = evaluator.ground_truth, evaluator.split
        own.pseudo_ground_truth = evaluator.pseudo_ground_truth
        inference_on_dataset(detector.model, instantiate(cfg.dataloader.test), own)
        # scored in the main process; the others get the boxes alone
        found = [ImageDetections(i.image_id, i.scores, i.classes, i.boxes, None) for i in own.detections]
        found = comm.all_gather(found)[0]
        return _prompts(self, found, evaluator), own.results

    def check(self, dataset_name: str) -> None:
        """Refuse weights of another detector or of other classes; see :class:`BoxSource`."""
        self._require_classes(classes_in(self.weights, self.cfg), dataset_name)

    def _require_classes(self, known: int, dataset_name: str) -> str:
        """Refuse other classes than the dataset's; return which are taken for which where no name says so."""
        classes = list(MetadataCatalog.get(dataset_name).get("thing_classes", []))
        if known != len(classes):
            raise UserError(
                f"dataloader.detector: {self.weights} knows {known} classes, {dataset_name} has {len(classes)}. Take a "
                "detector that was trained on these classes."
            )
        own = classes_of(self.cfg, known)
        differ = [(mine, its) for mine, its in zip(own.names, classes, strict=True) if mine != its]
        listed = ", ".join(f"{mine!r} is {its!r}" for mine, its in differ[:_MOST_NAMES])
        listed += f" and {len(differ) - _MOST_NAMES} more" if len(differ) > _MOST_NAMES else ""
        if differ and own.named and self.match_classes:
            raise UserError(
                f"dataloader.detector: {self.weights} has other classes than {dataset_name}: {listed} there. Take a "
                "detector that was trained on these classes, in this order; where only the names differ, add "
                "dataloader.detector.match_classes=false."
            )
        return listed


@dataclass
class FileBoxes:
    """Reads the boxes that another system has found.

    Attributes:
        path: A COCO results list.
        min_score: Least score of a prompt.
        max_boxes: Most prompts of an image; None for as many of each class as count in the evaluation.
    """

    path: Path
    min_score: float
    max_boxes: int | None
    source: str = "file"

    def check(self, dataset_name: str) -> None:
        """Refuse a file that cannot be read or is of another dataset; see :class:`BoxSource`."""
        read_prompt_file(self.path, dataset_name)

    def boxes_for(self, evaluator: InstanceEvaluator) -> tuple[DetectorPrompts, list[Result]]:
        """Read the file; see :class:`BoxSource`.

        Raises:
            UserError: As :func:`~sam_d2.evaluation.prompt_file.read_prompt_file`.
        """
        found = read_prompt_file(self.path, evaluator.dataset_name)
        own = InstanceEvaluator(
            evaluator.dataset_name,
            prompt=NO_PROMPT,
            prompt_source=self.source,
            score="class_score",
            method="detector",
            tasks=("segm", "bbox") if found and all(image.rles is not None for image in found) else ("bbox",),
            engine=evaluator.engine,
            max_dets=evaluator.max_dets,
            split=evaluator.split,
            pseudo_ground_truth=evaluator.pseudo_ground_truth,
            ground_truth=evaluator.ground_truth,
        )
        own.reset()
        own.detections = found if comm.is_main_process() else []
        own.evaluate()
        return _prompts(self, found, evaluator), own.results


def _prompts(
    source: DetectorBoxes | FileBoxes, found: Iterable[ImageDetections], evaluator: InstanceEvaluator
) -> DetectorPrompts:
    """Return the prompts of what a source has found, within its limits or, where it has none, the evaluation's."""
    return DetectorPrompts(
        found,
        image_sizes(evaluator.dataset_name),
        source=source.source,
        min_score=source.min_score,
        max_boxes=source.max_boxes,
        limit=_limit_of(evaluator) if source.max_boxes is None else None,
    )


def _limit_of(evaluator: InstanceEvaluator) -> int:
    """How many detections of an image and class count: in every process what the main one knows."""
    tasks = evaluator.tasks_of(oracle=False)
    return in_main_process(lambda: max(map(evaluator.limit_of, tasks)))


def box_source(cfg: DictConfig, device: torch.device) -> DetectorBoxes | FileBoxes | None:
    """What the config names: the file of ``dataloader.detector.file``, else the detector of ``.config``, else none.

    Args:
        cfg: Of the run; reads ``dataloader.detector``, ``dataloader.test.num_workers`` and ``train.output_dir``.
        device: Of the detector.

    Raises:
        UserError: The detector's config or weights do not exist, or it is no detector.
    """
    asked: Any = OmegaConf.select(cfg, "dataloader.detector") or {}
    limits = {"min_score": asked.get("min_score", 0.0), "max_boxes": asked.get("max_boxes")}
    if asked.get("file"):
        return FileBoxes(Path(asked.file), **limits)
    if not asked.get("config"):
        return None
    detector, weights = find_model(
        asked.config,
        asked.get("weights") or None,
        option="dataloader.detector.weights",
        named="dataloader.detector.config=",
    )
    if "prompts" in detector.model:
        raise UserError(f"dataloader.detector.config={asked.config}: its model takes prompts; name a detector.")
    return DetectorBoxes(
        detector,
        weights,
        **limits,
        device=device,
        num_workers=cfg.dataloader.test.num_workers,
        output_dir=Path(cfg.train.output_dir),
        match_classes=asked.get("match_classes", True),
    )
