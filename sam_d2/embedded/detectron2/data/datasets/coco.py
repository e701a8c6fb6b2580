"""COCO's JSON under the name by which projects import it (``detectron2.data.datasets.coco``)."""

from .coco_loading import load_coco_json, register_coco_instances
from .coco_writing import convert_to_coco_dict, convert_to_coco_json

__all__ = ["convert_to_coco_dict", "convert_to_coco_json", "load_coco_json", "register_coco_instances"]
