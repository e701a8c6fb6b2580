"""What of a config follows from the dataset: the number of classes and, from epochs, the number of steps."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from sam_d2.errors import UserError
from sam_d2.visible_text import clean

logger = logging.getLogger(__name__)

_MOST_NAMES = 10


def set_num_classes(cfg: DictConfig, loaded: DictConfig, classes: Sequence[str]) -> None:
    """Give every ``num_classes`` of the model that the config leaves null the dataset's number.

    A run's config.yaml holds the number of its own dataset, which gives way when another dataset is asked for.

    Args:
        cfg: the config, changed in place.
        loaded: the same as it was loaded, before options and overrides.
        classes: of the dataset.

    Raises:
        UserError: the config says another number than the dataset has.
    """
    other_dataset = cfg.train.dataset != loaded.train.dataset
    for key in class_keys(cfg):
        asked, before = OmegaConf.select(cfg, key), OmegaConf.select(loaded, key)
        if asked is None or (other_dataset and loaded.train.dataset and asked == before):
            OmegaConf.update(cfg, key, len(classes))
        elif asked != len(classes):
            raise UserError(
                f"{key}={asked}, but the dataset {cfg.train.dataset} has {len(classes)} classes ({_names(classes)}). "
                f"Leave it null to follow the dataset ({key}=null)."
            )


def class_keys(cfg: DictConfig) -> list[str]:
    """Return the dotted keys of the model's ``num_classes`` that are no interpolations of one another."""
    return list(_keys(cfg.model, "model"))


def _keys(node: Any, where: str) -> Iterator[str]:
    names = range(len(node)) if isinstance(node, ListConfig) else list(node)
    for name in names:
        key = f"{where}.{name}"
        if OmegaConf.is_interpolation(node, name):
            continue
        if name == "num_classes":
            yield key
        elif isinstance(node[name], DictConfig | ListConfig):
            yield from _keys(node[name], key)


def set_max_iter(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Turn ``train.max_epoch``, where it is set, into ``train.max_iter``: as many steps as see each image so often.

    A step sees ``dataloader.train.total_batch_size`` images, which are those of all processes together,
    ``train.accumulate`` times. A ``train.max_iter`` of the command line wins over the config's epochs.

    Args:
        cfg: the config, whose datasets are registered; changed in place.
        overrides: ``key=value`` of the command line.

    Raises:
        UserError: the command line gives both, or the epochs are no positive number.
    """
    given = {override.lstrip("+").partition("=")[0] for override in overrides}
    if cfg.train.get("max_epoch") is None:
        return
    if "train.max_iter" in given:
        if "train.max_epoch" in given:
            raise UserError("train.max_epoch and train.max_iter are both given: the first is turned into the second.")
        cfg.train.max_epoch = None
        return
    epochs = cfg.train.max_epoch
    if not isinstance(epochs, int | float) or isinstance(epochs, bool) or not 0 < epochs < math.inf:
        raise UserError(f"train.max_epoch={epochs}: expected a positive number, or null for train.max_iter steps.")
    cfg.train.max_iter = max(1, math.ceil(epochs * _training_images(cfg) / _images_per_step(cfg)))


def set_tasks(cfg: DictConfig, dataset: str) -> None:
    """Score boxes alone where no annotation of the test images has a mask, and say so.

    Args:
        cfg: of an evaluation of a detector; changed in place.
        dataset: registered name of its test part.
    """
    from detectron2.data import DatasetCatalog

    annotations = [one for record in DatasetCatalog.get(dataset) for one in record["annotations"]]
    if annotations and not any(one.get("segmentation") for one in annotations):
        print(f"{dataset}: its annotations are boxes alone, so boxes are scored (bbox) and masks are not")
        cfg.dataloader.evaluator.tasks = ["bbox"]


def require_annotations(cfg: DictConfig, records: Sequence[dict[str, Any]]) -> None:
    """Refuse a training that could learn nothing.

    Args:
        cfg: of the run, completed.
        records: the training dataset's dicts.

    Raises:
        UserError: none of them has an annotation.
    """
    from sam_d2.data.findings import plural

    if not any(len(record.get("annotations", ())) for record in records):
        raise UserError(
            f"{cfg.dataloader.train.dataset.names}: none of its {plural(len(records), 'image')} has an annotation, so "
            "there is nothing to learn. Name another dataset, or annotate it."
        )


def log_dataset_settings(cfg: DictConfig, images: int) -> None:
    """Log the number of classes, and the length of the training in epochs.

    Args:
        cfg: of the run, completed.
        images: of the training dataset.
    """
    from detectron2.data import MetadataCatalog

    classes = MetadataCatalog.get(str(cfg.dataloader.train.dataset.names)).get("thing_classes", [])
    for key in class_keys(cfg):
        logger.info("%s=%d: %s", key, OmegaConf.select(cfg, key), _names(classes))
    steps, per_step = cfg.train.max_iter, _images_per_step(cfg)
    logger.info(
        "train.max_iter=%d: %.4g epochs of %d images, %d images a step",
        steps,
        steps * per_step / images,
        images,
        per_step,
    )


def _training_images(cfg: DictConfig) -> int:
    from detectron2.config import instantiate

    return len(instantiate(cfg.dataloader.train.dataset))


def _images_per_step(cfg: DictConfig) -> int:
    return cfg.dataloader.train.total_batch_size * cfg.train.accumulate


def _names(classes: Sequence[str]) -> str:
    return ", ".join(map(clean, classes[:_MOST_NAMES])) + (", ..." if len(classes) > _MOST_NAMES else "")
