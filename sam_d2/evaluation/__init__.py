"""What a model is worth: COCO AP and AR, mean IoU per prompt, the baselines beside it, and the report."""

from sam_d2.evaluation.baselines import (
    BASELINES,
    baseline_detections,
    box_as_mask,
    evaluate_baselines,
    inscribed_ellipse,
)
from sam_d2.evaluation.coco_evaluator import InstanceEvaluator, encode_masks
from sam_d2.evaluation.coco_metrics import detection_limit, evaluate_detections
from sam_d2.evaluation.detections import ImageDetections, detections_from_coco, detections_to_coco
from sam_d2.evaluation.gallery import GalleryRow, gallery_rows, write_gallery
from sam_d2.evaluation.ground_truth import GroundTruth
from sam_d2.evaluation.mean_iou import MeanIoU, instance_ious, mean_iou
from sam_d2.evaluation.results import Result, read_report, write_report
from sam_d2.evaluation.table import legend, log_results, results_table, shortfalls

__all__ = [
    "BASELINES",
    "GalleryRow",
    "GroundTruth",
    "ImageDetections",
    "InstanceEvaluator",
    "MeanIoU",
    "Result",
    "baseline_detections",
    "box_as_mask",
    "detection_limit",
    "detections_from_coco",
    "detections_to_coco",
    "encode_masks",
    "evaluate_baselines",
    "evaluate_detections",
    "gallery_rows",
    "inscribed_ellipse",
    "instance_ious",
    "legend",
    "log_results",
    "mean_iou",
    "read_report",
    "results_table",
    "shortfalls",
    "write_gallery",
    "write_report",
]
