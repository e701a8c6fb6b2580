"""The training's loss on images that it does not see."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from detectron2.data import DatasetFromList
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from sam_d2.data.loader import SeededDataset, seeded
from sam_d2.data.shared_records import SharedRecords
from sam_d2.errors import UserError

logger = logging.getLogger(__name__)

_LOSS_GIVING = {"proposal_generator", "roi_heads", "detection"}
"""Packages of Detectron2 and torchvision whose modules decide for themselves whether to give losses."""


class _Numbered:
    """Reads sample ``i`` of a dataset that is read by (position, index) as position ``i``."""

    def __init__(self, dataset: SeededDataset, size: int) -> None:
        self.dataset = dataset
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[index, index]


class ValidationLoss:
    """Mean training loss over a dataset, with prompts that are the same each time.

    Each image is drawn with a seed that depends on its place in the dataset alone, so two values differ by the
    weights and nothing else. It is the loss that one step over the whole dataset would have: the mean over the
    instances of an image, then over the images.

    Args:
        dataset: dataset dicts.
        mapper: makes training samples without augmentation.
        num_workers: processes that read; 0 reads in the training process.
        seed: of the prompts.

    Raises:
        UserError: the dataset has no images.
    """

    def __init__(
        self,
        dataset: list[dict[str, Any]],
        *,
        mapper: Callable[[dict[str, Any]], dict[str, Any]],
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        if not dataset:
            raise UserError("train.validation_loss: the test dataset has no images.")
        self.size = len(dataset)
        samples = SeededDataset(DatasetFromList(dataset, serialize=SharedRecords), mapper, seed)
        self.loader: DataLoader[dict[str, Any]] = DataLoader(
            _Numbered(samples, self.size),  # type: ignore[arg-type]
            batch_size=1,
            sampler=InferenceSampler(self.size),
            num_workers=num_workers,
            collate_fn=trivial_batch_collator,
            generator=torch.Generator(),  # the loader would draw from the global one, which the training may use
        )

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return ``validation_loss`` and its terms, ``validation_loss_*``; every process takes its share of images.

        Args:
            model: returns a dict of scalar losses where its ``training`` is set; it is left in the mode it is in.
        """
        sums: dict[str, float] = {}
        # A detector writes how many regions it has drawn; those of a test are no part of the training's curves.
        with torch.no_grad(), _losses_only(model), EventStorage():
            for batch in self.loader:
                with seeded(batch[0]["seed"]):
                    losses = model(batch)
                for name, loss in losses.items():
                    sums[name] = sums.get(name, 0.0) + float(loss)
        shares = comm.all_gather(sums)
        names = dict.fromkeys(name for share in shares for name in share)
        means = {name: sum(share.get(name, 0.0) for share in shares) / self.size for name in names}
        logger.info(
            "Validation loss %.4g (%s)",
            total := sum(means.values()),
            ", ".join(f"{name} {value:.4g}" for name, value in means.items()),
        )
        return {"validation_loss": total, **{f"validation_{name}": value for name, value in means.items()}}


@contextmanager
def _losses_only(model: nn.Module) -> Iterator[None]:
    """Let the model return losses, with everything in it as at a test: dropout off, running statistics untouched."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    model.training = True
    for module in model.modules():
        if not _LOSS_GIVING.isdisjoint(type(module).__module__.split(".")):
            module.training = True
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
