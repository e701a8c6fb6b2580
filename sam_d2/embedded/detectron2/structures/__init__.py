"""Containers for what an image holds: boxes, masks, instances, and images of several sizes as a batch."""

from detectron2.structures.box_mode import BoxMode
from detectron2.structures.boxes import Boxes, pairwise_ioa, pairwise_iou, pairwise_point_box_distance

__all__ = ["BoxMode", "Boxes", "pairwise_ioa", "pairwise_iou", "pairwise_point_box_distance"]
