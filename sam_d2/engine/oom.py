"""Training steps that a GPU's memory does not suffice for: taken in smaller parts, or else left out."""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from sam_d2.engine.gradient_exchange import GradientExchange, talks_in_forward
from sam_d2.engine.step_batches import StepBatches
from sam_d2.modeling.weights_record import note_skip
from sam_d2.visible_text import clean

logger = logging.getLogger(__name__)

Losses = dict[str, Tensor]

_TEXTS = ("CUDA out of memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED", "ALLOCATION_FAILED")
"""Of the allocator, of the driver, of cuBLAS and cuDNN, of cuDNN 9."""
_WHOLE, _IN_PARTS, _SKIPPED = range(3)
"""What became of a process's step; of several processes the worst counts."""
_WORTH_SAYING = 1
"""Percentage of skipped steps beyond which a run says so at its end."""
_REMEDIES = (
    "What helps: a smaller dataloader.train.total_batch_size (train.accumulate makes up for it), smaller images, for "
    "SAM fewer instances of an image (dataloader.train.mapper.max_instances)."
)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether an error says that a GPU has no memory left: torch's own, the driver's, cuBLAS's or cuDNN's."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _TEXTS)


class OomRetry:
    """Makes the gradients of a step, where memory ends in ever smaller parts, and counts these steps.

    The first try takes whole batches, then come parts of half as many images, down to single ones, then single
    images with the model's ``saving_memory()``, if it has that. Each try begins the step anew; of one that failed
    nothing remains: gradients, running statistics and recorded numbers are thrown away. If all fail, the step is
    skipped.

    Several processes make their gradients without waiting for one another, each with tries of its own. Then they
    exchange how it went, and exchange their gradients or skip the step, all together.

    Args:
        model: returns a dict of losses, means over images; may be wrapped for several processes.
        optimizer: over the trainable parameters.
        enabled: False makes the gradients in one try, exchanged as DDP does it, and lets errors through.

    Attributes:
        enabled: whether an error is dealt with; False also where processes wait for one another in the forward pass.
        retried: steps taken in parts, of all processes and of a run from its beginning.
        skipped: steps that were not taken.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, enabled: bool) -> None:
        self.enabled = enabled
        self.retried = 0
        self.skipped = 0
        self._model = model
        self._optimizer = optimizer
        self._exchange: GradientExchange | None = None
        self._asked = ""
        if enabled and isinstance(model, DistributedDataParallel):
            if reason := talks_in_forward(model):
                logger.warning(
                    "train.oom_retry has no effect: %s, so no process can take its step in parts while the others wait",
                    reason,
                )
                self.enabled = False
            else:
                self._exchange = GradientExchange(model)

    def gradients(self, step: int, batches: StepBatches, backward: Callable[[int | None], Losses]) -> Losses | None:
        """Return the losses of a step whose gradients are in the parameters, or None where it is to be skipped.

        Args:
            step: counted from 1.
            batches: of this step.
            backward: adds the gradients of all batches, taking so many images at once (None: a whole batch), and
                returns the losses, detached. Called from the beginning at each try, without gradients.

        Raises:
            RuntimeError: of any other kind than want of memory.
        """
        if not self.enabled:
            return backward(None)
        statistics = [(buffer, buffer.clone()) for buffer in running_statistics(self._model)]
        for at_once, saving in self._tries(batches):
            with _bare(self._model).saving_memory() if saving else nullcontext():
                losses, recorded = self._try(backward, at_once)
            if losses is not None:
                break
            self._forget(statistics)
        outcome = _SKIPPED if losses is None else _WHOLE if at_once is None else _IN_PARTS
        outcomes = self._exchange.agree(outcome) if self._exchange else [outcome]
        if max(outcomes) == _SKIPPED:
            losses = None
            self._forget(statistics)
            note_skip(self._model)
        else:
            recorded.keep()
            if self._exchange:
                self._exchange.average()
        if max(outcomes) != _WHOLE:
            self._count(step, outcomes, batches, _way(at_once, batches.largest, saving=saving))
        return losses

    def report(self, steps: int) -> None:
        """Say so where too many of a run's steps were skipped.

        Args:
            steps: of the run so far, with those before a resume.
        """
        if 100 * self.skipped > _WORTH_SAYING * steps:
            logger.warning(
                "*** %d of %d steps (%.1f %%) were skipped for want of GPU memory: the model has not learned from "
                "their images. %s ***",
                self.skipped,
                steps,
                100 * self.skipped / steps,
                _REMEDIES,
            )

    def state_dict(self) -> dict[str, int]:
        """Return the counts."""
        return {"retried": self.retried, "skipped": self.skipped}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self.retried, self.skipped = state["retried"], state["skipped"]

    def _try(self, backward: Callable[[int | None], Losses], at_once: int | None) -> tuple[Losses | None, _Draft]:
        """Return the losses, or None where memory did not suffice, and the numbers that the model has recorded."""
        recorded = _Draft(get_event_storage())
        with recorded:
            try:
                return backward(at_once), recorded
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                asked = re.search(r"ried to allocate ([\d.]+ \w+)", str(error))
                self._asked = f", where it needed {asked[1]} more" if asked else ""
        # Nothing is freed in here: until this function is left, the error's traceback may hold what failed.
        return None, recorded

    def _tries(self, batches: StepBatches) -> Iterator[tuple[int | None, bool]]:
        """Yield how many images to take at once, None for whole batches, and whether to save memory otherwise too."""
        yield None, False
        at_once = batches.largest
        while True:
            at_once = (at_once + 1) // 2  # of a single image the same again: what was free may have been in pieces
            yield at_once, False
            if at_once == 1:
                break
        if hasattr(_bare(self._model), "saving_memory"):
            yield 1, True

    def _forget(self, statistics: list[tuple[Tensor, Tensor]]) -> None:
        """Throw away what a try has left, and give its memory back."""
        self._optimizer.zero_grad()
        for buffer, before in statistics:
            buffer.copy_(before)
        gc.collect()
        torch.cuda.empty_cache()

    def _count(self, step: int, outcomes: list[int], batches: StepBatches, way: str) -> None:
        """Count a step that was not taken at the first try, and log it in one line."""
        own, worst = outcomes[comm.get_rank()], max(outcomes)
        skipped = worst == _SKIPPED
        self.skipped += skipped
        self.retried += not skipped
        get_event_storage().put_scalars(oom_retried=self.retried, oom_skipped=self.skipped, smoothing_hint=False)
        if own != worst:
            where, way = f"in process {outcomes.index(worst)}, whose log has more", "in parts there"
        elif skipped:
            where = f"with {_shown(batches.current)} alone{self._asked}"
        else:
            where = f"with {batches.largest} images at once{self._asked}"
        done = "Skipped: the weights stay as they are" if skipped else f"Taken {way}"
        counts = f"{self.retried} steps in parts, {self.skipped} skipped"
        logger.warning("Step %d: out of GPU memory %s. %s. So far %s. %s", step, where, done, counts, _REMEDIES)


def running_statistics(model: nn.Module) -> Iterator[Tensor]:
    """Yield the buffers that a forward pass changes."""
    for module in model.modules():
        if module.training and getattr(module, "track_running_stats", False):
            yield from module.buffers(recurse=False)


class _Draft(EventStorage):
    """Holds what a model records in a try, until it is known that the step counts."""

    def __init__(self, storage: EventStorage) -> None:
        super().__init__(storage.iter)
        self._storage = storage

    def put_image(self, img_name: str, img_tensor: Any) -> None:
        """Hand an image on, because a storage does not give it back; another try draws the same one again."""
        self._storage.put_image(img_name, img_tensor)

    def put_histogram(self, hist_name: str, hist_tensor: Tensor, bins: int = 1000) -> None:
        """Hand a histogram on, as an image."""
        self._storage.put_histogram(hist_name, hist_tensor, bins)

    def keep(self) -> None:
        """Put the numbers into the storage of the training."""
        hints = self.smoothing_hints()
        for name, history in self.histories().items():
            for value, iteration in history.values():
                self._storage.put_scalar(name, value, smoothing_hint=hints[name], cur_iter=iteration)


def _bare(model: nn.Module) -> Any:
    return model.module if isinstance(model, DistributedDataParallel) else model


def _way(at_once: int | None, largest: int, *, saving: bool) -> str:
    if saving:
        return "image by image and instance by instance"
    if at_once == largest:
        return "at a second try, with that memory freed"
    return "image by image" if at_once == 1 else f"in parts of {at_once} images"


def _shown(samples: list[Any]) -> str:
    """Name the image that a part consists of."""
    sample = samples[0] if samples and isinstance(samples[0], dict) else {}
    text = clean(sample.get("file_name", "an image"))
    size = "{2} x {1} pixels".format(*sample["image"].shape) if "image" in sample else ""
    count = f"{len(sample['instances'])} instances" if "instances" in sample else ""
    details = ", ".join(filter(None, (size, count)))
    return f"{text} ({details})" if details else text
