"""``train.cache_embeddings``: whether a training can have its embeddings cached, and the cache that it gets."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

import detectron2.data.transforms as T
from sam_d2.errors import UserError
from sam_d2.modeling.embedding_cache import EmbeddingCache
from sam_d2.modeling.lora import lora_keys

logger = logging.getLogger(__name__)

_ENCODER = "image_encoder"
FOLDER = "embedding_cache"


def use_embedding_cache(
    cfg: DictConfig, model: Any, mapper: Any = None, images: int | None = None
) -> EmbeddingCache | None:
    """Give a model the cache that ``train.cache_embeddings`` asks for.

    Args:
        cfg: of the run; reads of ``train``: ``cache_embeddings, embedding_cache, output_dir``.
        model: to be trained, or evaluated.
        mapper: of the training images; None for an evaluation, which augments none.
        images: number of the training images; None for an evaluation, which tells its progress itself.

    Returns:
        The cache, which the model now asks; None where there is to be none.

    Raises:
        UserError: embeddings of this training change from step to step, so that there is nothing to cache.
    """
    if not cfg.train.get("cache_embeddings", False):  # a config.yaml of before has no such key
        return None
    _check_encoder(model)
    variants = _variants(mapper)
    options = cfg.train.embedding_cache
    expected = None if images is None else images * variants
    folder = Path(options.folder or Path(cfg.train.output_dir).absolute().parent / FOLDER)
    cache = EmbeddingCache(folder, dtype=options.dtype, max_gib=options.max_gib, expected=expected)
    logger.info("Embeddings of the frozen image encoder are kept in %s", folder)
    model.embedding_cache = cache
    return cache


def _check_encoder(model: Any) -> None:
    encoder = getattr(model, _ENCODER, None)
    if encoder is None:
        raise UserError("train.cache_embeddings=True: this model has no image encoder of its own; only SAM has.")
    if lora_keys(encoder.state_dict()):
        raise UserError(
            "train.cache_embeddings=True: LoRA trains the image encoder, so that an image has another embedding after "
            "each step. Train without the cache, or take a config without LoRA, such as configs/sam.py."
        )
    if _ENCODER not in model.frozen:
        raise UserError(
            "train.cache_embeddings=True: the image encoder is trained, so that an image has another embedding after "
            "each step. Freeze it with model.freeze=[image_encoder,prompt_encoder], or train without the cache."
        )


def _variants(mapper: Any) -> int:
    """Return how many forms of an image a mapper makes.

    Raises:
        UserError: more than it and its mirror image.
    """
    augmentations = getattr(getattr(mapper, "augmentations", None), "augs", [])
    for augmentation in augmentations:
        if not (isinstance(augmentation, T.RandomFlip) and augmentation.horizontal):
            raise UserError(
                f"train.cache_embeddings=True: the augmentation {type(augmentation).__name__} of "
                "dataloader.train.mapper.augmentations makes another image at each visit, whose embedding is of no use "
                "later. Only the horizontal flip can be cached: leave the others out, or train without the cache."
            )
    return 2 if augmentations else 1
