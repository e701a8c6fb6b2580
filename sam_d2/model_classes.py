"""What the classes of a model are called: kept in its run's config, so that a run can be used without its dataset."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from sam_d2.data import resolve_dataset
from sam_d2.errors import UserError
from sam_d2.modeling.torchvision_rcnn import coco_categories

KEY = "train.classes"
"""Of a run's config: ``names`` and ``ids`` of its dataset's classes."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelClasses:
    """The classes that a model tells apart, by class index from 0 on.

    Attributes:
        names: of each.
        ids: category id of each in the annotation file.
        named: whether these are names; False of numbers in place of names that nobody knows.
    """

    names: list[str]
    ids: list[int]
    named: bool = True


def record_classes(cfg: DictConfig, dataset: str, names: Sequence[str]) -> None:
    """Write the classes of a dataset into a config, in place of those of another one.

    Args:
        cfg: of a run; changed in place.
        dataset: registered name, already read.
        names: of its classes.
    """
    plain = [name.replace("${", "\\${") for name in names]  # a name is no reference to another key
    OmegaConf.update(cfg, KEY, {"names": plain, "ids": _ids(dataset, len(names))}, merge=False, force_add=True)


def classes_of(cfg: DictConfig, count: int) -> ModelClasses:
    """Return the classes of a model: those that its config has recorded; else those of the config's dataset where it is
    found; else COCO's for 80; else numbers. What has another number of classes is passed over.

    Args:
        cfg: of the model.
        count: of the classes that its weights tell apart.
    """
    recorded = OmegaConf.select(cfg, KEY)
    if recorded is not None and len(recorded.names) == len(recorded.ids) == count:
        return ModelClasses([str(name) for name in recorded.names], [int(one) for one in recorded.ids])
    if recorded is None and cfg.train.dataset:
        try:
            dataset = resolve_dataset(cfg.train.dataset)
        except UserError as error:
            _log.warning("The names of the classes are not known: %s", error)
        else:
            if len(dataset.classes) == count:
                return ModelClasses(dataset.classes, _ids(dataset.test, count))
    categories = coco_categories()
    if count == len(categories):
        return ModelClasses(list(categories.values()), list(categories))
    return ModelClasses([f"class {index}" for index in range(count)], list(range(count)), named=False)


def _ids(dataset: str, count: int) -> list[int]:
    """Return the category ids of a registered dataset by class; the classes themselves where it has none."""
    from detectron2.data import MetadataCatalog

    to_class: dict[int, int] = MetadataCatalog.get(dataset).get("thing_dataset_id_to_contiguous_id", {})
    return sorted(to_class, key=to_class.__getitem__) if to_class else list(range(count))
