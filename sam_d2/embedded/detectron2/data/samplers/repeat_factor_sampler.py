"""Sampling that shows images of rare categories more often."""

import logging
import math
from collections import Counter
from typing import Any

import torch

from .training_sampler import EndlessSampler

logger = logging.getLogger(__name__)


class RepeatFactorTrainingSampler(EndlessSampler):
    """Index i comes ``repeat_factors[i]`` times per pass on average, without end.

    Args:
        repeat_factors: float tensor of shape (elements,). All ones is a ``TrainingSampler``'s frequency.
        shuffle: whether each pass is in random order.
        seed: must be the same in all processes; None draws one that they share.
    """

    def __init__(self, repeat_factors: torch.Tensor, *, shuffle: bool = True, seed: int | None = None) -> None:
        super().__init__(shuffle, seed)
        self._whole = torch.trunc(repeat_factors)
        self._fraction = repeat_factors - self._whole

    @staticmethod
    def repeat_factors_from_category_frequency(
        dataset_dicts: list[dict[str, Any]], repeat_thresh: float, sqrt: bool = True
    ) -> torch.Tensor:
        """Compute repeat factors as LVIS does (arXiv:1908.03195, version 2, appendix B.2).

        With f(c) the part of the images that have category c, a category's factor is
        max(1, sqrt(repeat_thresh / f(c))), and an image's is the largest of its categories'.

        Args:
            dataset_dicts: Detectron2 dataset dicts with "annotations".
            repeat_thresh: the frequency below which a category is repeated.
            sqrt: False leaves the square root out.

        Returns:
            float32 tensor of shape (images,), 1 for an image without annotations.
        """
        categories = [{ann["category_id"] for ann in record["annotations"]} for record in dataset_dicts]
        images_with = Counter(category for present in categories for category in present)
        factor = {}
        for category, count in sorted(images_with.items()):
            frequency = count / len(dataset_dicts)
            ratio = repeat_thresh / frequency
            factor[category] = max(1.0, math.sqrt(ratio) if sqrt else ratio)
            logger.info(f"Cat ID {category}: freq={frequency:.2f}, rep={factor[category]:.2f}")
        per_image = [max((factor[category] for category in present), default=1.0) for present in categories]
        return torch.tensor(per_image, dtype=torch.float32)

    def _pass_indices(self, generator: torch.Generator) -> torch.Tensor:
        # Rounding up with the probability of the fraction gives the factor on average over the passes.
        up = torch.rand(len(self._fraction), generator=generator) < self._fraction
        return torch.repeat_interleave((self._whole + up.float()).long())
