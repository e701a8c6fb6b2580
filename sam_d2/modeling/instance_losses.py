"""The losses of one image's instances, in chunks whose memory is bounded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(frozen=True)
class InstanceLosses:
    """Prompts, targets, decoding and losses of instances, each chunk of them recomputed in the backward pass.

    Attributes:
        answer: decodes prompts of one image's embedding: float32 logits (n, M, L, L) and predicted IoU (n, M).
        canvas: S, side of the padded frame in pixels.
        low_res: L, side of the low-res frame in cells.
        focal: weight of the focal loss in the choice of the best of several masks.
        dice: weight of the Dice loss in it.
        chunk: instances that are decoded at once.
        recompute: whether a chunk's activations are made again in the backward pass instead of being kept.
    """

    answer: Callable[[Tensor, Prompts], tuple[Tensor, Tensor]]
    canvas: int
    low_res: int
    focal: float
    dice: float
    chunk: int
    recompute: bool

    def __call__(
        self, embedding: Tensor, instances: Instances, recipe: PromptRecipe, generator: torch.Generator
    ) -> Tensor:
        """Return the (N, 3) unweighted focal, Dice and predicted-IoU losses, the mean over the rounds of clicks.

        Targets, decoding and losses are made inside the chunk and recomputed in the backward pass: between the
        two only three numbers per instance are kept.

        Args:
            embedding: (C, S/p, S/p) of the image.
            instances: N of them, at least one, in the resized frame.
            recipe: with prompts for training.
            generator: draws all that is random.
        """
        assert recipe.train is not None  # the model's __init__ refuses such a recipe
        prompts = recipe.train(instances, generator).to(embedding.device)
        # Drawn here, because a chunk that is recomputed must draw the same.
        draws = torch.rand((len(instances), recipe.train_corrections), generator=generator)
        losses = []
        for start in range(0, len(prompts), self.chunk):
            # A slice, because that of a bitmap is a view; copies would stay in memory until the backward pass.
            rows = slice(start, start + self.chunk)
            inputs = (embedding, prompts[rows], draws[rows], instances.gt_masks[rows], instances.image_size)
            if self.recompute:
                losses.append(checkpoint(self._of_chunk, *inputs, use_reentrant=False))
            else:
                losses.append(self._of_chunk(*inputs))
        return torch.cat(losses)

    def _of_chunk(
        self, embedding: Tensor, prompts: Prompts, draws: Tensor, masks: InstanceMasks, size: tuple[int, int]
    ) -> Tensor:
        stride = self.canvas // self.low_res
        targets = low_res_targets(masks, size, self.low_res, stride).to(embedding.device)
        logits, predicted_iou = self.answer(embedding, prompts)
        losses = [best_mask_losses(logits, predicted_iou, targets, focal=self.focal, dice=self.dice)]
        for draw in draws.unbind(dim=1):
            previous = of_highest_iou(logits, predicted_iou)[0].detach()
            points, labels = random_corrections(previous, targets, draw, stride, size)
            prompts = prompts.with_correction(points, labels, previous)
            logits, predicted_iou = self.answer(embedding, prompts)
            losses.append(best_mask_losses(logits, predicted_iou, targets, focal=self.focal, dice=self.dice))
        return torch.stack(losses).mean(dim=0)
