"""The losses of instances, in chunks whose memory is bounded and which several images share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from detectron2.structures import Instances
from sam_d2.modeling.clicks import random_corrections
from sam_d2.modeling.heads import of_highest_iou
from sam_d2.modeling.losses import best_mask_losses
from sam_d2.modeling.masks import InstanceMasks, low_res_targets
from sam_d2.modeling.prompt_recipes import PromptRecipe
from sam_d2.modeling.prompts import Prompts


class TrainedImage(NamedTuple):
    """What is trained on of one image.

    Attributes:
        embedding: (C, S/p, S/p).
        instances: N of them, at least one, in the resized frame.
        generator: draws all that is random.
    """

    embedding: Tensor
    instances: Instances
    generator: torch.Generator


class _Part(NamedTuple):
    """Instances of one image in a chunk."""

    image: int
    embedding: Tensor
    masks: InstanceMasks
    size: tuple[int, int]


@dataclass(frozen=True)
class InstanceLosses:
    """Prompts, targets, decoding and losses of instances, chunk by chunk with the memory of one.

    Attributes:
        answer: decodes n prompts of one image's embedding (C, S/p, S/p), or each of an embedding of its own
            (n, C, S/p, S/p): float32 logits (n, M, L, L) and predicted IoU (n, M).
        canvas: S, side of the padded frame in pixels.
        low_res: L, side of the low-res frame in cells.
        focal: weight of the focal loss in the choice of the best of several masks.
        dice: weight of the Dice loss in it.
        chunk: instances that are decoded at once.
        recompute: whether a chunk's activations are made again in the backward pass instead of being kept; those of
            the last chunk never are, since the backward pass begins with it.
        across_images: whether a chunk may hold instances of several images; ``answer`` is then given (n, C, S/p, S/p).
    """

    answer: Callable[[Tensor, Prompts], tuple[Tensor, Tensor]]
    canvas: int
    low_res: int
    focal: float
    dice: float
    chunk: int
    recompute: bool
    across_images: bool

    def __call__(self, images: Sequence[TrainedImage], recipe: PromptRecipe) -> list[Tensor]:
        """Return of each image the (N, 3) unweighted focal, Dice and predicted-IoU losses, means over the clicks.

        Targets, decoding and losses are made inside the chunk and recomputed in the backward pass: of all chunks but
        the last, three numbers per instance are kept between the two. Only prompts of one kind and number of points
        are in one chunk.

        Args:
            images: what is trained on.
            recipe: with prompts for training.
        """
        assert recipe.train is not None  # the model's __init__ refuses such a recipe
        drawn: list[tuple[Prompts, Tensor]] = []
        together: dict[object, list[int]] = {}
        for number, (embedding, instances, generator) in enumerate(images):
            prompts = recipe.train(instances, generator).to(embedding.device)
            # Drawn here, because a chunk that is recomputed must draw the same.
            drawn.append((prompts, torch.rand((len(instances), recipe.train_corrections), generator=generator)))
            together.setdefault(prompts.kind if self.across_images else number, []).append(number)
        chunks: list[tuple[list[_Part], Prompts, Tensor]] = []
        for numbers in together.values():
            prompts = Prompts.cat([drawn[number][0] for number in numbers])
            draws = torch.cat([drawn[number][1] for number in numbers])
            for start in range(0, len(prompts), self.chunk):
                rows = slice(start, start + self.chunk)
                chunks.append((_parts(images, numbers, start, start + self.chunk), prompts[rows], draws[rows]))
        losses: list[list[Tensor]] = [[] for _ in images]
        for chunk in chunks:
            # The backward pass takes the last chunk first and lets go of it: keeping it is within one chunk's memory.
            recomputed = self.recompute and chunk is not chunks[-1]
            found = checkpoint(self._of_chunk, *chunk, use_reentrant=False) if recomputed else self._of_chunk(*chunk)
            parts = chunk[0]
            for part, values in zip(parts, found.split([len(part.masks) for part in parts]), strict=True):
                losses[part.image].append(values)
        return [torch.cat(values) for values in losses]

    def _of_chunk(self, parts: Sequence[_Part], prompts: Prompts, draws: Tensor) -> Tensor:
        stride = self.canvas // self.low_res
        counts = [len(part.masks) for part in parts]
        targets = low_res_targets([(part.masks, part.size) for part in parts], self.low_res, stride)
        targets = targets.to(prompts.device, non_blocking=True)
        embedding = parts[0].embedding
        if len(parts) > 1:
            pairs = zip(parts, counts, strict=True)
            embedding = torch.cat([part.embedding.expand(count, -1, -1, -1) for part, count in pairs])
        logits, predicted_iou = self.answer(embedding, prompts)
        losses = [best_mask_losses(logits, predicted_iou, targets, focal=self.focal, dice=self.dice)]
        for draw in draws.unbind(dim=1):
            previous = of_highest_iou(logits, predicted_iou)[0].detach()
            columns = (previous.split(counts), targets.split(counts), draw.split(counts))
            clicks = [
                random_corrections(logits_, targets_, draws_, stride, part.size)
                for part, logits_, targets_, draws_ in zip(parts, *columns, strict=True)
            ]
            points, labels = (torch.cat(one) for one in zip(*clicks, strict=True))
            prompts = prompts.with_correction(points, labels, previous)
            logits, predicted_iou = self.answer(embedding, prompts)
            losses.append(best_mask_losses(logits, predicted_iou, targets, focal=self.focal, dice=self.dice))
        return torch.stack(losses).mean(dim=0)


def _parts(images: Sequence[TrainedImage], numbers: Sequence[int], start: int, stop: int) -> list[_Part]:
    """Return the instances from ``start`` to ``stop``, counted over some of the images, by image."""
    parts = []
    for number in numbers:
        embedding, instances, _ = images[number]
        # A slice, because that of a bitmap is a view; copies would stay in memory until the backward pass.
        masks = instances.gt_masks[max(start, 0) : max(stop, 0)]
        if len(masks):
            parts.append(_Part(number, embedding, masks, instances.image_size))
        start, stop = start - len(instances), stop - len(instances)
    return parts
