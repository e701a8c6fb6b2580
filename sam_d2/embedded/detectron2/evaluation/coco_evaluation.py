"""AP of boxes and masks as COCO defines it."""

import contextlib
import io
import itertools
import json
import logging
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

from detectron2.data import MetadataCatalog
from detectron2.data.datasets import convert_to_coco_json
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from .coco_max_dets import COCOevalMaxDets
from .coco_results import instances_to_coco_json
from .evaluator import DatasetEvaluator

__all__ = ["COCOEvaluator", "COCOevalMaxDets", "instances_to_coco_json"]

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_TASKS = ("bbox", "segm")


class COCOEvaluator(DatasetEvaluator):
    """Scores predicted boxes and masks with pycocotools. Metrics are 0-100; NaN cannot be computed."""

    def __init__(
        self,
        dataset_name: str,
        tasks: Collection[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
        kpt_oks_sigmas: Sequence[float] = (),
        allow_cached_coco: bool = True,
    ) -> None:
        """Load the ground truth.

        Args:
            dataset_name: registered dataset. Its metadata have ``json_file``, a COCO file; otherwise it is
                converted to ``<output_dir>/<dataset_name>_coco_format.json``, which becomes their
                ``json_file``.
            tasks: ``bbox``, ``segm`` or both; None takes boxes, and masks where predictions have them.
            distributed: gather the predictions of all ranks and score them on the main one.
            output_dir: ``instances_predictions.pth`` and ``coco_instances_results.json`` are written here.
            max_dets_per_image: limit of detections per image; COCO's 100 where None.
            use_fast_impl: accepted; pycocotools computes the same numbers.
            kpt_oks_sigmas: accepted where empty: keypoints are not scored here.
            allow_cached_coco: use a converted file that exists already, though the dataset may have changed.

        Raises:
            ValueError: the dataset must be converted and there is no ``output_dir``.
            NotImplementedError: ``kpt_oks_sigmas`` is not empty.
        """
        if len(kpt_oks_sigmas):
            raise NotImplementedError("COCOEvaluator of the embedded core does not score keypoints.")
        self._logger = logging.getLogger(__name__)
        if use_fast_impl:
            self._logger.info("COCO metrics are computed by pycocotools; there is no compiled variant here.")
        self._distributed = distributed
        self._output_dir = output_dir
        self._tasks = tasks
        self._max_dets_per_image = [1, 10, 100 if max_dets_per_image is None else max_dets_per_image]
        self._predictions: list[dict[str, Any]] = []
        self._results: dict[str, dict[str, float]] = {}

        self._metadata = MetadataCatalog.get(dataset_name)
        if not hasattr(self._metadata, "json_file"):
            if output_dir is None:
                raise ValueError(
                    f"output_dir must be provided to COCOEvaluator: dataset {dataset_name!r} has no COCO "
                    "file, and the converted one needs a place."
                )
            self._metadata.json_file = str(Path(output_dir) / f"{dataset_name}_coco_format.json")
            convert_to_coco_json(dataset_name, self._metadata.json_file, allow_cached=allow_cached_coco)
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco_api = COCO(PathManager.get_local_path(self._metadata.json_file))
        # The images of a test server come without annotations: results are written, and nothing is scored.
        self._do_evaluation = "annotations" in self._coco_api.dataset

    def reset(self) -> None:
        """Forget the predictions."""
        self._predictions = []

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Take in one batch.

        Args:
            inputs: dicts with ``image_id``.
            outputs: dicts with ``instances`` in the original frame, see :func:`instances_to_coco_json`.
        """
        for item, output in zip(inputs, outputs, strict=False):
            if "instances" in output:
                image_id = item["image_id"]
                results = instances_to_coco_json(output["instances"].to(torch.device("cpu")), image_id)
                self._predictions.append({"image_id": image_id, "instances": results})

    def evaluate(self, img_ids: Sequence[int] | None = None) -> dict[str, dict[str, float]]:
        """Score the predictions.

        Args:
            img_ids: images to score; the whole dataset where None.

        Returns:
            task -> AP, AP50, AP75, APs, APm, APl and, with two classes or more, AP-<class>. Empty on other
            ranks than the main one, where no prediction came in, and where the dataset has no annotations.
        """
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            predictions = list(itertools.chain.from_iterable(comm.gather(predictions, dst=0)))
            if not comm.is_main_process():
                return {}
        if not predictions:
            self._logger.warning("[COCOEvaluator] Did not receive valid predictions.")
            return {}
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            with PathManager.open(self._in_output_dir("instances_predictions.pth"), "wb") as stream:
                torch.save(predictions, stream)
        self._results = {}
        self._eval_predictions(predictions, img_ids)
        return {task: dict(metrics) for task, metrics in self._results.items()}

    def _in_output_dir(self, name: str) -> str:
        assert self._output_dir is not None
        return str(Path(self._output_dir) / name)

    def _eval_predictions(self, predictions: Sequence[dict[str, Any]], img_ids: Sequence[int] | None = None) -> None:
        """Fill ``self._results``."""
        results = list(itertools.chain.from_iterable(prediction["instances"] for prediction in predictions))
        tasks = sorted(self._tasks or self._tasks_of(results))
        results = self._with_dataset_categories(results)
        if self._output_dir:
            path = self._in_output_dir("coco_instances_results.json")
            self._logger.info(f"Saving results to {path}")
            with PathManager.open(path, "w") as stream:
                json.dump(results, stream)
        if not self._do_evaluation:
            self._logger.info("The dataset has no annotations: nothing is scored.")
            return
        for task in tasks:
            assert task in _TASKS, f"Got unknown task: {task}!"
            # pycocotools fails on an empty list of results.
            coco_eval = self._run_cocoeval(results, task, img_ids) if results else None
            self._results[task] = self._derive_coco_results(
                coco_eval, task, class_names=self._metadata.get("thing_classes")
            )

    @staticmethod
    def _tasks_of(results: Sequence[dict[str, Any]]) -> tuple[str, ...]:
        return _TASKS if any("segmentation" in result for result in results) else _TASKS[:1]

    def _with_dataset_categories(self, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the results with the category ids of the file in place of contiguous ones."""
        to_contiguous = getattr(self._metadata, "thing_dataset_id_to_contiguous_id", None)
        if to_contiguous is None:
            return results
        to_dataset = {contiguous: dataset_id for dataset_id, contiguous in to_contiguous.items()}
        count = len(to_contiguous)
        assert set(to_dataset) == set(range(count)), f"class ids are not 0 to {count - 1}: {sorted(to_dataset)}"
        for result in results:
            assert result["category_id"] < count, (
                f"A prediction of image {result['image_id']} has class={result['category_id']}, but the "
                f"dataset has {count} classes, so predicted ids should be in [0, {count - 1}]."
            )
        return [{**result, "category_id": to_dataset[result["category_id"]]} for result in results]

    def _run_cocoeval(self, results: Sequence[dict[str, Any]], task: str, img_ids: Sequence[int] | None) -> COCOeval:
        """Return the evaluation of one task, summarised."""
        # loadRes writes into the dicts that it is given. For masks the box is left out, or it would take the
        # area of the box, and small, medium and large would mean something else.
        dropped = "bbox" if task == "segm" else None
        own = [{key: value for key, value in result.items() if key != dropped} for result in results]
        coco_dt = self._coco_api.loadRes(own)
        evaluation = COCOeval if self._max_dets_per_image[2] == 100 else COCOevalMaxDets
        coco_eval = evaluation(self._coco_api, coco_dt, task)
        coco_eval.params.maxDets = list(self._max_dets_per_image)
        if img_ids is not None:
            coco_eval.params.imgIds = img_ids
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
        return coco_eval

    def _derive_coco_results(
        self, coco_eval: COCOeval | None, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Return, and log, the metrics of one task.

        Args:
            coco_eval: summarised evaluation; None where there was no prediction at all, which gives NaN.
            iou_type: task, for the log.
            class_names: in the order of the category ids; two or more add AP-<class>.
        """
        if coco_eval is None:
            self._logger.warning("No predictions from the model!")
            return dict.fromkeys(_METRICS, math.nan)
        metrics = {
            name: float(value * 100) if value >= 0 else math.nan
            for name, value in zip(_METRICS, coco_eval.stats, strict=False)
        }
        self._logger.info(f"Evaluation results for {iou_type}: \n" + create_small_table(metrics))
        if not math.isfinite(sum(metrics.values())):
            self._logger.info("Some metrics cannot be computed and is shown as NaN.")
        if class_names is None or len(class_names) <= 1:
            return metrics

        # (threshold, recall, category, area, limit): all areas come first, the largest limit last.
        precision = coco_eval.eval["precision"][:, :, :, 0, -1]
        assert len(class_names) == precision.shape[2], (
            f"{len(class_names)} class names, but {precision.shape[2]} categories in the ground truth"
        )
        per_class = {name: _mean_precision(precision[:, :, k]) for k, name in enumerate(class_names)}
        self._logger.info(f"Per-category {iou_type} AP: \n" + _table(per_class))
        return {**metrics, **{f"AP-{name}": value for name, value in per_class.items()}}


def _mean_precision(precision: np.ndarray) -> float:
    """Return the mean of the entries that exist, in percent; NaN where none does."""
    known = precision[precision > -1]
    return float(np.mean(known) * 100) if known.size else math.nan


def _table(per_class: dict[str, float]) -> str:
    """Return the APs as a table of up to three pairs of columns, filled row by row."""
    pairs = list(per_class.items())
    width = min(3, len(pairs))
    rows = [sum(pairs[start : start + width], ()) for start in range(0, len(pairs), width)]
    headers = ["category", "AP"] * width
    return tabulate(rows, headers=headers, tablefmt="pipe", floatfmt=".3f", numalign="left")
