"""SAM as a Detectron2 meta-architecture: losses in training, instances at a test.

Segment Anything, arXiv 2304.02643. The modules are segment_anything's own, injected by the config and kept under
SAM's names, so official checkpoints load without a mapping of keys.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from detectron2.structures import Boxes, ImageList, Instances
from sam_d2.errors import UserError
from sam_d2.modeling.losses import iou_prediction_loss, mask_dice_loss, mask_focal_loss, mask_iou
from sam_d2.modeling.masks import InstanceMasks, low_res_targets
from sam_d2.modeling.postprocess import boxes_of_masks, resize_logits
from sam_d2.modeling.prompt_samplers import PromptRecipe, PromptSampler
from sam_d2.modeling.prompts import Prompts
from sam_d2.modeling.scoring import combine_scores, mean_probability, parse_score, stability_score

logger = logging.getLogger(__name__)

PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")
LOSSES = ("loss_focal", "loss_dice", "loss_iou")


class PromptableSAM(nn.Module):
    """Image encoder, prompt encoder and mask decoder, trained and run with prompts made from annotations.

    Any image encoder will do that has ``img_size`` and maps (B, 3, S, S) to (B, C, S/p, S/p). The decoder runs
    over the instances of an image in chunks whose activations are recomputed in the backward pass, so memory is
    bounded whatever their number.

    Args:
        image_encoder: (B, 3, S, S) normalised images to (B, C, S/p, S/p) embeddings; called once per image.
        prompt_encoder: segment_anything's, or one with its signature.
        mask_decoder: segment_anything's, or one with its signature.
        prompts: how each kind of prompt is drawn, by the name that ``--prompt`` knows it by.
        prompt: which of them trains the model, and tests it.
        loss_weights: weight of ``loss_focal``, ``loss_dice`` and ``loss_iou``; applied here and nowhere else.
        freeze: parts that are not trained; they stay in eval mode and need no gradients.
        score: the score of a mask, see :mod:`sam_d2.modeling.scoring`.
        instances_per_chunk: instances that the decoder takes at once.
        activation_checkpointing: recompute a chunk in the backward pass instead of keeping its activations.
        pixel_mean: mean of each channel, 0-255.
        pixel_std: standard deviation of each channel, 0-255.
        input_format: channel order of the images, RGB or BGR; the mapper reads it.

    Raises:
        UserError: ``prompt``, ``score``, ``freeze`` or ``loss_weights`` names something that does not exist.
    """

    # Any: these are modules with more than nn.Module's attributes, and of a class that the config chooses.
    image_encoder: Any
    prompt_encoder: Any
    mask_decoder: Any
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        image_encoder: nn.Module,
        prompt_encoder: nn.Module,
        mask_decoder: nn.Module,
        prompts: dict[str, PromptRecipe],
        prompt: str,
        loss_weights: dict[str, float],
        freeze: Iterable[str] = (),
        score: str = "predicted_iou",
        instances_per_chunk: int = 32,
        activation_checkpointing: bool = True,
        pixel_mean: Iterable[float] = (123.675, 116.28, 103.53),
        pixel_std: Iterable[float] = (58.395, 57.12, 57.375),
        input_format: str = "RGB",
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.register_buffer("pixel_mean", torch.tensor(list(pixel_mean)).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(list(pixel_std)).view(-1, 1, 1), persistent=False)
        if prompt not in prompts:
            raise UserError(f"model.prompt={prompt!r}: this config has the prompts {', '.join(prompts)}.")
        if set(loss_weights) != set(LOSSES):
            raise UserError(f"model.loss_weights: expected {', '.join(LOSSES)}, got {', '.join(loss_weights)}.")
        if instances_per_chunk < 1:
            raise UserError(f"model.instances_per_chunk={instances_per_chunk}: expected at least 1.")
        self.prompts = prompts
        self.prompt = prompt
        self.loss_weights = dict(loss_weights)
        self.instances_per_chunk = instances_per_chunk
        self.activation_checkpointing = activation_checkpointing
        self.score_factors = parse_score(score)
        self.score = score
        self.input_format = input_format
        self.canvas: int = self.image_encoder.img_size
        self.low_res: int = self.prompt_encoder.mask_input_size[0]
        self._freeze(tuple(freeze))

    @property
    def device(self) -> torch.device:
        """Device that the model's parameters are on."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Return losses in training mode, predictions in eval mode.

        Args:
            batched_inputs: as :class:`sam_d2.data.mapper.PromptableMapper` makes them. ``image`` is (3, H, W)
                0-255 in the resized frame; ``instances`` has ``gt_boxes``, ``gt_masks`` and ``gt_classes`` in
                that frame in training and in the original frame at a test (``image_size`` says which);
                ``height`` and ``width`` are the original size; ``seed`` makes the training prompts.

        Returns:
            In training a dict of the weighted ``loss_focal``, ``loss_dice`` and ``loss_iou``: scalars, the mean
            over the instances of an image and then over the images, zero with a graph where there are none.
            Otherwise one ``{"instances": Instances}`` per image, original frame, one row per prompt: ``pred_masks``
            (N, H0, W0) bool, ``pred_boxes``, ``scores`` (N,), ``pred_classes`` (N,), ``prompt_index`` (N,) the
            input instance that the row answers.

        Raises:
            UserError: an image does not fit the canvas.
        """
        images = self.preprocess(batched_inputs)
        embeddings = self.encode(images.tensor)
        if self.training:
            return self._losses(batched_inputs, embeddings, images.image_sizes)
        recipe = self.prompts[self.prompt].test
        return [
            {"instances": self.predict(embedding, self._test_prompts(sample, recipe), size, sample)}
            for sample, embedding, size in zip(batched_inputs, embeddings, images.image_sizes, strict=True)
        ]

    def preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise the images and pad them bottom-right to (B, 3, S, S).

        Raises:
            UserError: an image is larger than the canvas; SAM would have it cropped and its masks stretched.
        """
        for sample in batched_inputs:
            height, width = sample["image"].shape[-2:]
            if max(height, width) > self.canvas:
                raise UserError(
                    f"{sample.get('file_name', 'image')}: {width} x {height} pixels after the mapper do not fit the "
                    f"canvas of {self.canvas}. Set dataloader.*.mapper.image_size to model.image_encoder.img_size."
                )
        images = [
            (sample["image"].to(self.device).float() - self.pixel_mean) / self.pixel_std for sample in batched_inputs
        ]
        return ImageList.from_tensors(images, padding_constraints={"square_size": self.canvas})

    def encode(self, images: Tensor) -> Tensor:
        """Return the (B, C, S/p, S/p) embeddings of (B, 3, S, S) preprocessed images; no graph where frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and "image_encoder" not in self.frozen):
            return self.image_encoder(images)

    def decode(self, embedding: Tensor, prompts: Prompts, multimask: bool = False) -> tuple[Tensor, Tensor]:
        """Decode the prompts of one image, all at once.

        Args:
            embedding: (C, S/p, S/p) of one image.
            prompts: N prompts in the padded frame.
            multimask: True for SAM's three masks of an ambiguous prompt, False for the single one.

        Returns:
            Mask logits (N, M, L, L) in the low-res frame and predicted IoU (N, M); M is 3 or 1.
        """
        if len(prompts) == 0:
            masks = 3 if multimask else 1
            return embedding.new_zeros((0, masks, self.low_res, self.low_res)), embedding.new_zeros((0, masks))
        points = None if prompts.points is None else (prompts.points, prompts.labels)
        sparse, dense = self.prompt_encoder(points=points, boxes=prompts.boxes, masks=prompts.masks)
        return self.mask_decoder(
            image_embeddings=embedding[None],
            image_pe=self.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
        )

    @torch.no_grad()
    def predict(
        self, embedding: Tensor, prompts: Prompts, resized: tuple[int, int], sample: dict[str, Any]
    ) -> Instances:
        """Return the masks of one image's prompts in its original frame.

        Args:
            embedding: (C, S/p, S/p) of the image.
            prompts: N prompts in the padded frame, on any device.
            resized: (H, W) of the resized frame.
            sample: the image's ``height`` and ``width``; classes come from its ``instances`` where it has them.
        """
        original = (int(sample["height"]), int(sample["width"]))
        masks, boxes, scores = [], [], []
        for chunk in _chunks(prompts.to(self.device), self.instances_per_chunk):
            logits, predicted_iou = self.decode(embedding, chunk)
            full = resize_logits(logits[:, 0].float(), self.canvas, resized, original)
            masks.append(full > 0)
            boxes.append(boxes_of_masks(masks[-1]))
            scores.append(self._scores(full, predicted_iou[:, 0].float()))
        result = Instances(original)
        result.pred_masks = (
            torch.cat(masks) if masks else torch.zeros((0, *original), dtype=torch.bool, device=self.device)
        )
        result.pred_boxes = Boxes(torch.cat(boxes) if boxes else torch.zeros((0, 4), device=self.device))
        result.scores = torch.cat(scores) if scores else torch.zeros(0, device=self.device)
        if "instances" in sample:
            result.pred_classes = sample["instances"].gt_classes.to(self.device)
        else:
            result.pred_classes = torch.zeros(len(prompts), dtype=torch.int64, device=self.device)
        result.prompt_index = torch.arange(len(prompts), device=self.device)
        return result

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that must not decay.

        The last layer of the IoU head also holds the rows of the three multimask outputs: they get no gradient
        from a single-mask loss, and decay would shrink them nevertheless.
        """
        head = "mask_decoder.iou_prediction_head."
        names = [name for name, _ in self.named_parameters() if name.startswith(head)]
        last = max((name.rsplit(".", 1)[0] for name in names), default=None)
        return {name for name in names if name.rsplit(".", 1)[0] == last}

    def train(self, mode: bool = True) -> PromptableSAM:
        """Set training mode, except for frozen parts, which stay in eval mode."""
        super().train(mode)
        for part in self.frozen:
            getattr(self, part).eval()
        return self

    def _freeze(self, parts: tuple[str, ...]) -> None:
        unknown = set(parts) - set(PARTS)
        if unknown:
            raise UserError(f"model.freeze: {', '.join(sorted(unknown))} is not one of {', '.join(PARTS)}.")
        self.frozen = parts
        for part in parts:
            getattr(self, part).requires_grad_(False)
        # One mask is trained: the hypernetworks of the multimask outputs get no gradient, so they get no step either.
        for network in self.mask_decoder.output_hypernetworks_mlps[1:]:
            network.requires_grad_(False)
        self.train(self.training)

    def _test_prompts(self, sample: dict[str, Any], sampler: PromptSampler) -> Prompts:
        """Return one image's test prompts in the padded frame; they are made in the original frame."""
        if "instances" not in sample:
            raise UserError(
                f"{sample.get('file_name', 'image')}: no instances to make prompts from. The test mapper must keep "
                "annotations (sam_d2.data.mapper.PromptableMapper does)."
            )
        instances = sample["instances"]
        prompts = sampler(instances, torch.Generator().manual_seed(0))
        return prompts.rescaled(instances.image_size, tuple(sample["image"].shape[-2:]))

    def _scores(self, logits: Tensor, predicted_iou: Tensor) -> Tensor:
        """Return the (n,) score of each mask from its (n, H0, W0) logits in the original frame."""
        values = {"predicted_iou": predicted_iou, "class_score": torch.ones_like(predicted_iou)}
        if "stability" in self.score_factors:
            values["stability"] = stability_score(logits)
        if "mean_probability" in self.score_factors:
            values["mean_probability"] = mean_probability(logits)
        return combine_scores(self.score_factors, values)

    def _losses(
        self, batched_inputs: list[dict[str, Any]], embeddings: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> dict[str, Tensor]:
        sampler = self.prompts[self.prompt].train
        per_image = []
        for sample, embedding, size in zip(batched_inputs, embeddings, sizes, strict=True):
            instances: Instances = sample["instances"]
            if len(instances) == 0:
                continue
            if instances.image_size != tuple(size):
                raise ValueError(
                    f"training instances must be in the resized frame {tuple(size)}, got {instances.image_size}"
                )
            generator = torch.Generator().manual_seed(int(sample.get("seed", torch.initial_seed() % 2**63)))
            prompts = sampler(instances, generator).to(self.device)
            per_instance = self._instance_losses(embedding, prompts, instances.gt_masks, size)
            per_image.append(per_instance.mean(dim=0))
        # Every trainable parameter takes part in every step, also those that this step's prompts do not touch, and
        # also where there is no instance: so DDP never waits for a gradient that one rank does not make.
        zero = 0.0 * sum(parameter.sum() for parameter in self.parameters() if parameter.requires_grad)
        total = torch.stack(per_image).sum(dim=0) / len(batched_inputs) if per_image else embeddings.new_zeros(3)
        total = total.float() + zero
        return {name: self.loss_weights[name] * value for name, value in zip(LOSSES, total.unbind(), strict=True)}

    def _instance_losses(
        self, embedding: Tensor, prompts: Prompts, masks: InstanceMasks, size: tuple[int, int]
    ) -> Tensor:
        """Return the (N, 3) unweighted losses of one image's instances.

        Targets, decoding and losses are made inside the chunk and recomputed in the backward pass: between the
        two only three numbers per instance are kept.
        """
        rows = torch.arange(len(prompts))
        losses = []
        for index, chunk in zip(
            rows.split(self.instances_per_chunk), _chunks(prompts, self.instances_per_chunk), strict=True
        ):
            inputs = (embedding, chunk, masks[index], size)
            if self.activation_checkpointing:
                losses.append(checkpoint(self._chunk_losses, *inputs, use_reentrant=False))
            else:
                losses.append(self._chunk_losses(*inputs))
        return torch.cat(losses)

    def _chunk_losses(self, embedding: Tensor, prompts: Prompts, masks: InstanceMasks, size: tuple[int, int]) -> Tensor:
        targets = low_res_targets(masks, size, self.low_res, self.canvas // self.low_res).to(self.device)
        logits, predicted_iou = self.decode(embedding, prompts)
        logits, predicted_iou = logits[:, 0].float(), predicted_iou[:, 0].float()
        return torch.stack(
            [
                mask_focal_loss(logits, targets),
                mask_dice_loss(logits, targets),
                iou_prediction_loss(predicted_iou, mask_iou(logits, targets)),
            ],
            dim=1,
        )


def _chunks(prompts: Prompts, size: int) -> Iterable[Prompts]:
    for start in range(0, len(prompts), size):
        yield prompts[start : start + size]
