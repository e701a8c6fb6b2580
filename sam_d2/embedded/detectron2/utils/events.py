"""Metrics of a training: the storage, and the writers that read from it."""

from detectron2.utils.event_storage import EventStorage, get_event_storage, has_event_storage
from detectron2.utils.event_writers import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter

__all__ = [
    "CommonMetricPrinter",
    "EventStorage",
    "EventWriter",
    "JSONWriter",
    "TensorboardXWriter",
    "get_event_storage",
    "has_event_storage",
]
