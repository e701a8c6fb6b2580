"""Boxes of a detector or of a file as SAM's prompts at a test, image by image."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch

import sam_d2  # noqa: F401  (makes detectron2 importable)
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances
from sam_d2.data.findings import plural
from sam_d2.evaluation.detections import ImageDetections
from sam_d2.evaluation.ground_truth import ImageId, image_id_of
from sam_d2.evaluation.results import LEFT_OUT

Samples = list[dict[str, Any]]
COUNTS = {
    **{why: f"{words}: left out" for why, words in LEFT_OUT.items()},
    "empty": "without area in their image: left out",
    "clipped": "clipped at the border of their image",
}
"""What is counted while boxes become prompts."""

_log = logging.getLogger(__name__)


class SampleLoader(Protocol):
    """A test loader: batches of the mapper's samples, as many as its length."""

    def __iter__(self) -> Iterator[Samples]: ...

    def __len__(self) -> int: ...


class DetectorPrompts:
    """The boxes that prompt SAM in each image of a dataset; no ground truth enters them.

    They are clipped to their image; those without area there are dropped, as are those below ``min_score``, and of
    the rest the ``limit`` surest of each class and then the ``max_boxes`` surest are kept. What is dropped, cut or
    clipped is counted and logged.

    Attributes:
        source: ``detector`` or ``file``, for the report.
        counts: How many boxes were ``empty`` or ``clipped``, or left out because of ``min_score``, ``max_boxes`` or
            ``limit``.

    Args:
        found: Boxes, scores and classes of each image, at most once per image; an image may be absent.
        sizes: (H0, W0) of each image of the dataset.
        source: ``detector`` or ``file``.
        min_score: Least score of a prompt.
        max_boxes: Of an image, by falling score, the first of equals; None for all.
        limit: Of an image and class, likewise: how many detections count in the evaluation.
    """

    def __init__(
        self,
        found: Iterable[ImageDetections],
        sizes: Mapping[ImageId, tuple[int, int]],
        *,
        source: str,
        min_score: float = 0.0,
        max_boxes: int | None = None,
        limit: int | None = None,
    ) -> None:
        self.source = source
        self.counts: Counter[str] = Counter()
        self._sizes = sizes
        self._by_id: dict[ImageId, Instances] = {}
        for image in found:
            prompts, counts = prompt_instances(
                image, sizes[image.image_id], min_score=min_score, max_boxes=max_boxes, limit=limit
            )
            self._by_id[image.image_id] = prompts
            self.counts += counts
        total = sum(map(len, self._by_id.values()))
        level = logging.INFO if total else logging.WARNING
        _log.log(level, "prompts: %d boxes in %d images, from the %s", total, len(sizes), source)
        for kind, words in COUNTS.items():
            if self.counts[kind]:
                level = logging.INFO if kind == "min_score" else logging.WARNING
                _log.log(level, "prompts: %s %s", plural(self.counts[kind], "box", "boxes"), words)

    @property
    def left_out(self) -> dict[str, int]:
        """How many boxes each limit left out; limits that left out none are absent."""
        return {why: self.counts[why] for why in LEFT_OUT if self.counts[why]}

    def __getitem__(self, image_id: ImageId) -> Instances:
        """The prompts of an image, by falling score: ``pred_boxes``, ``scores`` and ``pred_classes``, original frame.

        An image in which nothing was found has none.
        """
        if image_id in self._by_id:
            return self._by_id[image_id]
        nothing = ImageDetections(image_id, np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros((0, 4)), None)
        return prompt_instances(nothing, self._sizes[image_id])[0]

    def attached_to(self, loader: SampleLoader) -> SampleLoader:
        """The loader, each sample with its image's prompts as ``prompt_instances``."""
        return _WithPrompts(loader, self)


class _WithPrompts:
    """A loader that adds each sample's prompts to it."""

    def __init__(self, loader: SampleLoader, prompts: DetectorPrompts) -> None:
        self._loader = loader
        self._prompts = prompts

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Samples]:
        for batch in self._loader:
            yield [{**sample, "prompt_instances": self._prompts[image_id_of(sample)]} for sample in batch]


def image_sizes(dataset_name: str) -> dict[ImageId, tuple[int, int]]:
    """(H0, W0) of each image of a registered dataset."""
    records = DatasetCatalog.get(dataset_name)
    return {image_id_of(record): (int(record["height"]), int(record["width"])) for record in records}


def prompt_instances(
    found: ImageDetections,
    size: tuple[int, int],
    *,
    min_score: float = 0.0,
    max_boxes: int | None = None,
    limit: int | None = None,
) -> tuple[Instances, Counter[str]]:
    """Make the prompts of one image from what was found in it, as :class:`DetectorPrompts` says.

    Args:
        found: N boxes with scores and classes.
        size: (H0, W0) of the image.
        min_score: Least score of a prompt.
        max_boxes: Most prompts; None for all.
        limit: Most prompts of one class; None for all.

    Returns:
        By falling score ``pred_boxes`` (M, 4) float32 XYXY, ``scores`` (M,) and ``pred_classes`` (M,), and how many
        of the N boxes were left out or clipped, by kind.
    """
    clipped = np.clip(found.boxes, 0, [size[1], size[0], size[1], size[0]])
    boxes = clipped.astype(np.float32)  # as SAM gets them: what is no wider than its rounding has no area
    order = np.argsort(-found.scores, kind="stable")
    sure = found.scores[order] >= min_score
    filled = (boxes[order, 2:] > boxes[order, :2]).all(axis=1)
    usable = order[sure & filled]
    earlier = np.zeros(len(usable), dtype=np.int64)  # surer ones of the class
    for category in np.unique(found.classes[usable]):
        mine = found.classes[usable] == category
        earlier[mine] = np.arange(mine.sum())
    counted = usable if limit is None else usable[earlier < limit]
    rows = counted[:max_boxes]
    prompts = Instances(size)
    prompts.pred_boxes = Boxes(torch.from_numpy(boxes[rows]))
    prompts.scores = torch.from_numpy(found.scores[rows].astype(np.float32))
    prompts.pred_classes = torch.from_numpy(found.classes[rows])
    counts = Counter(
        min_score=int((~sure).sum()),
        empty=int((sure & ~filled).sum()),
        limit=len(usable) - len(counted),
        max_boxes=len(counted) - len(rows),
        clipped=int((clipped[rows] != found.boxes[rows]).any(axis=1).sum()),
    )
    return prompts, counts
