"""Detectron2's evaluator interface for SAM and detectors: COCO AP, AR and per-prompt mean IoU."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pycocotools.mask as mask_utils
import torch

import sam_d2  # noqa: F401  (makes detectron2 importable)
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from sam_d2.atomic import write_atomically
from sam_d2.errors import UserError
from sam_d2.evaluation.coco_metrics import Engine, Task, detection_limit, evaluate_detections, evaluate_rankings
from sam_d2.evaluation.detections import ImageDetections, detections_to_coco
from sam_d2.evaluation.domains import domain_metrics
from sam_d2.evaluation.ground_truth import RLE, GroundTruth, image_id_of
from sam_d2.evaluation.mean_iou import mean_iou
from sam_d2.evaluation.reliability import Reliability, prediction_ious, reliabilities
from sam_d2.evaluation.results import Result
from sam_d2.modeling.calibration import Floats
from sam_d2.modeling.scoring import SCORES, combine_scores, parse_score

ENCODE_CHUNK = 32
"""Masks that are copied at a time to be run-length encoded."""

_log = logging.getLogger(__name__)


class InstanceEvaluator(DatasetEvaluator):
    """Score instance masks, and boxes where the prompts did not come from the ground truth.

    Predictions are kept as run-length codes, gathered from all processes, and scored in the main one.
    With ground-truth prompts the AP is an oracle's (the model is told where every instance is) and bbox AP is
    left out; in its place stands the mean IoU of each mask with the instance it was prompted for.
    Metrics are those of :func:`~sam_d2.evaluation.coco_metrics.evaluate_detections`, ``AP@domain=NAME`` where images
    have a domain (:mod:`~sam_d2.evaluation.domains`), and of the masks ``ECE``
    (:mod:`~sam_d2.evaluation.reliability`). Where predictions carry the scores of
    :data:`~sam_d2.modeling.scoring.SCORES`, the same masks are ranked by each of ``scores`` too.

    Attributes:
        selected: Whether the weights were chosen by scores on this split, for the report; set it before
            :meth:`evaluate`.
        results: After :meth:`evaluate`, in the main process: one :class:`Result` per task, for report.json, and one
            for each other score that the masks were ranked by; segm rows hold ``mIoU`` too.
        reliability: After :meth:`evaluate`, in the main process: each score against the true IoU, by its name.
        detections: After :meth:`evaluate`, in the main process: what was scored, for the gallery.

    Example:
        >>> evaluator = InstanceEvaluator("iwp_test", "experiments/output/run", prompt="box")
        >>> print_csv_format(inference_on_dataset(model, loader, evaluator))
        >>> write_report("experiments/output/run/report.json", evaluator.results)
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | Path | None = None,
        *,
        prompt: str = "box",
        prompt_source: str = "ground_truth",
        recompute_boxes: bool = False,
        score: str = "predicted_iou",
        scores: Sequence[str] | None = None,
        method: str = "model",
        tasks: Sequence[Task] | None = None,
        engine: Engine = "faster_coco_eval",
        max_dets: int | None = None,
        split: str | None = None,
        pseudo_ground_truth: bool = False,
        ground_truth: GroundTruth | None = None,
    ) -> None:
        """Remember what is measured; the dataset is read at the first :meth:`reset`.

        Args:
            dataset_name: Registered name.
            output_dir: Where coco_instances_results.json is written (the dataset's own ids, XYWH, RLE); no
                file where None.
            prompt: Kind of prompt, for the report.
            prompt_source: ``ground_truth``, ``detector`` or ``file``.
            recompute_boxes: Whether the test mapper takes ground-truth boxes from the masks, for the report.
            score: Name of the score that ranks the masks, for the report.
            scores: Others to rank the same masks by, such as ``predicted_iou*stability``; by default every single
                one, and ``class_score*predicted_iou`` where the prompts are not from the ground truth.
            method: ``model``, ``base`` or ``detector``, for the report.
            tasks: ``("segm",)`` by default with ground-truth prompts, else ``("segm", "bbox")``.
            engine: ``faster_coco_eval`` or the slow reference ``pycocotools``; both give the same figures.
            max_dets: Detections that count per image and class; by default
                :func:`~sam_d2.evaluation.coco_metrics.detection_limit`.
            split: Name in the report; the dataset's by default.
            pseudo_ground_truth: Whether a model made the truth, for the report; of annotations with a
                ``provenance`` that is known.
            ground_truth: Of the dataset, where it is read already.

        Raises:
            UserError: One of ``scores`` is no score.
            ValueError: bbox AP is asked for with ground-truth prompts, whose boxes it would measure.
        """
        self.dataset_name = dataset_name
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.scores = None if scores is None else [scores] if isinstance(scores, str) else list(scores)
        for one in self.scores or ():
            parse_score(one, key="dataloader.evaluator.scores")
        self.method = method
        self._oracle_boxes = "mask" if recompute_boxes else "file"
        self._tasks = None if tasks is None else tuple(tasks)
        self.ask(prompt, source=prompt_source, score=score)
        self.engine = engine
        self.max_dets = max_dets
        self.split = dataset_name if split is None else split
        self.pseudo_ground_truth = pseudo_ground_truth
        self.selected = False
        self.ground_truth = ground_truth
        self.results: list[Result] = []
        self.detections: list[ImageDetections] = []
        self.reliability: dict[str, Reliability] = {}
        self._begin = time.perf_counter()

    def ask(self, prompt: str, *, source: str, score: str, left_out: Mapping[str, int] | None = None) -> None:
        """Say what is measured from now on: call it before :meth:`reset`.

        Args:
            prompt: Kind of prompt, for the report.
            source: ``ground_truth``, ``detector`` or ``file``.
            score: Name of the score that ranks the masks, for the report.
            left_out: Boxes that are no prompts, for the report: how many, by what left them out.

        Raises:
            ValueError: bbox AP is asked for with ground-truth prompts, whose boxes it would measure.
        """
        self.left_out = dict(left_out or {})
        self.prompt = prompt
        self.prompt_source = source
        self.score = score
        self.oracle = source == "ground_truth"
        self.prompt_boxes = self._oracle_boxes if self.oracle else None
        self.tasks: tuple[Task, ...] = self.tasks_of(oracle=self.oracle)
        if self.oracle and "bbox" in self.tasks:
            raise ValueError("bbox AP with ground-truth prompts would measure the prompts; leave 'bbox' out of tasks")

    def tasks_of(self, *, oracle: bool) -> tuple[Task, ...]:
        """What is scored where the prompts are the ground truth's, and where they are not."""
        if self._tasks is not None:
            return self._tasks
        return ("segm",) if oracle else ("segm", "bbox")

    @property
    def truth_is_pseudo(self) -> bool:
        """Whether a model made the truth or some of it; in the main process, after :meth:`reset`."""
        return self.pseudo_ground_truth or (self.ground_truth is not None and self.ground_truth.pseudo > 0)

    def limit_of(self, task: Task) -> int:
        """How many detections count per image and class; in the main process, after :meth:`reset`."""
        assert self.ground_truth is not None  # read by reset()
        return detection_limit(self.ground_truth, task) if self.max_dets is None else self.max_dets

    def reset(self) -> None:
        """Forget all predictions; the time of the next round counts from here."""
        if self.ground_truth is None and comm.is_main_process():
            self.ground_truth = GroundTruth.from_catalog(self.dataset_name)
        self.results = []
        self.detections = []
        self.reliability = {}
        self._begin = time.perf_counter()

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Take the predictions of a batch.

        Args:
            inputs: The mapper's dicts, with ``image_id`` (``file_name`` serves where absent).
            outputs: Dicts with ``instances``: ``pred_masks`` (N, H0, W0) bool or ``pred_masks_rle``, N
                compressed run lengths; ``pred_boxes`` XYXY,
                ``scores`` (N,) 0-1, ``pred_classes`` (N,), all in the original frame; with ground-truth
                prompts ``prompt_index`` (N,), the row of the image's non-crowd instances in file order; and where
                the model has them the scores ``class_score``, ``predicted_iou``, ``stability`` and
                ``mean_probability``, (N,) each.

        Raises:
            UserError: A score is not finite.
            ValueError: Masks are of another size than the image, or a field that the tasks need is absent.
        """
        for record, output in zip(inputs, outputs, strict=True):
            instances = output["instances"]
            image_id = image_id_of(record)
            if instances.image_size != (record["height"], record["width"]):
                raise ValueError(
                    f"predictions on image id {image_id!r} are {instances.image_size} (height, width), "
                    f"the original image is {(record['height'], record['width'])}"
                )
            self.detections.append(self._encode(image_id, instances))

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Score the predictions of all processes.

        Returns:
            In the main process ``{"segm": {...}, "bbox": {...}, "prompt": {"mIoU": ...}}`` as the tasks and
            the prompt source have it, AP and AR 0-100 and IoU 0-1, NaN where undefined; elsewhere empty.

        Raises:
            UserError: A prediction is of an image or class that the dataset does not have, or predictions lack what
                one of ``scores`` is made of.
            ValueError: A prediction with ground-truth prompts has no valid ``prompt_index``.
        """
        gathered = comm.gather(self.detections)
        if not comm.is_main_process():
            return OrderedDict()
        truth = self.ground_truth
        if truth is None:
            raise RuntimeError("evaluate() before reset(): there is no ground truth yet")
        self.detections = self._distinct([image for part in gathered for image in part], truth)
        if self.output_dir is not None:
            rows = msgspec.json.encode(detections_to_coco(self.detections, truth))
            write_atomically(self.output_dir / "coco_instances_results.json", rows)

        limits = {task: self.limit_of(task) for task in self.tasks}
        scores: OrderedDict[str, dict[str, float]] = OrderedDict()
        others: dict[str, dict[str, float]] = {}
        rankings = self._rankings()
        for task, limit in limits.items():
            _log.info(
                "%s %s: at most %d detections count per image and class (most instances in an image: %d)",
                self.split,
                task,
                limit,
                truth.most_instances(boxes=task == "bbox"),
            )
            if task == "segm":
                others = evaluate_rankings(truth, self.detections, rankings, engine=self.engine, max_dets=limit)
                scores[task] = others.pop(self.score)
                ious = prediction_ious(truth, self.detections, prompted=self.oracle)
                self.reliability = reliabilities(rankings, ious)
            else:
                scores[task] = evaluate_detections(
                    truth, self.detections, task=task, engine=self.engine, max_dets=limit
                )
            scores[task].update(domain_metrics(truth, self.detections, task=task, engine=self.engine, max_dets=limit))
        if self.oracle:
            scores["prompt"] = {"mIoU": self._mean_iou(truth)}
        self.results = self._rows(truth, scores, others, limits, time.perf_counter() - self._begin)
        return scores

    def _rankings(self) -> dict[str, list[Floats]]:
        """Of each score's name the (N,) scores on each image; the model's own comes first."""
        rankings = {self.score: [image.scores for image in self.detections]}
        for score in self._other_scores():
            factors = parse_score(score, key="dataloader.evaluator.scores")
            ranking = []
            for image in self.detections:
                lacking = set(factors) - set(image.factors or ())
                if lacking and len(image):
                    raise UserError(
                        f"dataloader.evaluator.scores: {score!r} cannot rank these masks, because the model gives them "
                        f"no {', '.join(sorted(lacking))}; leave it out."
                    )
                values = {name: torch.from_numpy(column) for name, column in (image.factors or {}).items()}
                ranking.append(combine_scores(factors, values).double().numpy() if len(image) else np.zeros(0))
            rankings.setdefault(score, ranking)
        return rankings

    def _other_scores(self) -> list[str]:
        if self.scores is not None:
            return self.scores
        known = set[str]().union(*(image.factors or () for image in self.detections))
        product = [] if self.oracle else ["class_score*predicted_iou"]
        return [score for score in (*SCORES, *product) if set(parse_score(score)) <= known]

    def _encode(self, image_id: int | str, instances: Instances) -> ImageDetections:
        boxes = instances.pred_boxes.tensor if instances.has("pred_boxes") else torch.zeros(len(instances), 4)
        rles: list[RLE] | None = None
        if instances.has("pred_masks_rle"):
            rles = list(instances.pred_masks_rle)
        elif instances.has("pred_masks"):
            rles = encode_masks(instances.pred_masks)
        # of a detector's prompts the index is of its boxes, which are no instances
        index = instances.prompt_index if self.oracle and instances.has("prompt_index") else None
        if len(instances) and (("segm" in self.tasks and rles is None) or (self.oracle and index is None)):
            raise ValueError(
                f"predictions on image id {image_id!r} have the fields {sorted(instances.get_fields())}; "
                f"tasks {self.tasks} need pred_masks, and ground-truth prompts need prompt_index"
            )
        scores = _float64(instances.scores)
        factors = {name: _float64(instances.get(name)) for name in SCORES if instances.has(name)}
        if not all(np.isfinite(values).all() for values in (scores, *factors.values())):
            raise UserError(
                f"{self.split}: predictions on image id {image_id!r} have scores that are not finite, as those of a "
                "training that diverged; evaluate an earlier checkpoint, or train with a lower optimizer.lr"
            )
        return ImageDetections(
            image_id,
            scores,
            instances.pred_classes.detach().cpu().numpy().astype(np.int64),
            _float64(boxes),
            rles,
            None if index is None else index.detach().cpu().numpy().astype(np.int64),
            factors or None,
        )

    def _distinct(self, detections: list[ImageDetections], truth: GroundTruth) -> list[ImageDetections]:
        """The detections in image order, each image once: a sampler may repeat some to fill a batch."""
        by_number: dict[int, ImageDetections] = {}
        for image in detections:
            by_number.setdefault(truth[image.image_id].number, image)
        if len(by_number) < len(truth.images):
            _log.warning(
                "%s: only %d of %d images were predicted; the instances of the others count as missed",
                self.split,
                len(by_number),
                len(truth.images),
            )
        return [by_number[number] for number in sorted(by_number)]

    def _mean_iou(self, truth: GroundTruth) -> float:
        fit = mean_iou(truth, self.detections)
        if fit.missing:
            _log.warning(
                "%s: of %d instances %d have no prediction and count as IoU 0", self.split, fit.instances, fit.missing
            )
        return fit.value

    def _rows(
        self,
        truth: GroundTruth,
        scores: Mapping[str, Mapping[str, float]],
        others: Mapping[str, Mapping[str, float]],
        limits: Mapping[Task, int],
        seconds: float,
    ) -> list[Result]:
        rows = []
        measured = [(task, self.score, scores[task]) for task in limits]
        measured += [("segm", name, values) for name, values in others.items()]
        for task, score, values in measured:
            metrics: dict[str, float | None] = dict(values)
            if task == "segm":
                metrics.update(scores.get("prompt", {}))
                metrics["ECE"] = self.reliability[score].ece
            rows.append(
                Result(
                    split=self.split,
                    images=len(truth.images),
                    instances=truth.count_instances(boxes=task == "bbox"),
                    ground_truth=truth.digest,
                    prompt=self.prompt,
                    prompt_source=self.prompt_source,
                    prompt_boxes=self.prompt_boxes,
                    method=self.method,
                    task=task,
                    score=score,
                    ranks=score == self.score,
                    max_dets=limits[task],
                    pseudo_ground_truth=self.truth_is_pseudo,
                    prompts_left_out=self.left_out,
                    selected=self.selected,
                    seconds=seconds,
                    metrics=metrics,
                )
            )
        return rows


def _float64(values: torch.Tensor) -> Floats:
    return values.detach().cpu().numpy().astype(np.float64)


def encode_masks(masks: torch.Tensor) -> list[RLE]:
    """Run-length codes of masks, with memory for a few dense ones beside those given.

    Args:
        masks: (N, H, W) bool.

    Returns:
        N codes of size (H, W).
    """
    rles: list[RLE] = []
    for chunk in masks.detach().split(ENCODE_CHUNK):
        # pycocotools wants (H, W, N) in Fortran order, which is (N, W, H) in C order seen from the other end
        columns = chunk.transpose(1, 2).contiguous().to("cpu", torch.uint8).numpy()
        rles += mask_utils.encode(columns.transpose(2, 1, 0))
    return rles
