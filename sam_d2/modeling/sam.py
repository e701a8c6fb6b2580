"""SAM as a Detectron2 meta-architecture: losses in training, instances at a test.

Segment Anything, arXiv 2304.02643. The modules are segment_anything's own, injected by the config and kept under
SAM's names, so official checkpoints load without a mapping of keys.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from detectron2.structures import ImageList, Instances
from sam_d2.errors import UserError
from sam_d2.modeling.calibration import calibrated_name
from sam_d2.modeling.clicks import innermost_corrections
from sam_d2.modeling.embedding_cache import EmbeddingCache
from sam_d2.modeling.heads import of_highest_iou
from sam_d2.modeling.instance_losses import InstanceLosses, TrainedImage
from sam_d2.modeling.lora import lora_keys
from sam_d2.modeling.mask_decoder import SharedMaskDecoder
from sam_d2.modeling.postprocess import MaskCodes, encode_logits, instances_of
from sam_d2.modeling.prompt_recipes import DETECTOR, PromptRecipe, recipe_name
from sam_d2.modeling.prompt_samplers import may_be_ambiguous
from sam_d2.modeling.prompts import Prompts
from sam_d2.modeling.scoring import SCORES, combine_scores, parse_score
from sam_d2.modeling.weights_record import WeightsRecord

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
        prompt: which of them trains the model; its recipe says what tests it.
        loss_weights: weight of ``loss_focal``, ``loss_dice`` and ``loss_iou``; applied here and nowhere else.
        freeze: parts that are not trained; they stay in eval mode and need no gradients.
        multimask: answer a single point with SAM's three masks: the best one is trained, and the one with the
            highest predicted IoU is the prediction. Every other prompt has one mask.
        draw_boxes: give each box as a mask prompt too, drawn into the low-res frame: the same knowledge, where the
            decoder need not learn to read positions to a fraction of a token. For models trained with it, and
            objects of few tokens.
        score: the score that ranks a mask, see :mod:`sam_d2.modeling.scoring`, where the prompt's recipe has none of
            its own.
        calibrate: pass it through the calibration that ``tools/calibrate_scores.py`` has put into the checkpoint, so
            that it says what IoU to expect; for tests, not for a training.
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
        multimask: bool = False,
        draw_boxes: bool = False,
        score: str = "predicted_iou",
        calibrate: bool = False,
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
        trainable = [name for name, recipe in prompts.items() if recipe.train is not None]
        if prompt not in trainable:
            raise UserError(f"model.prompt={prompt!r}: this config has the prompts {', '.join(trainable)}.")
        if set(loss_weights) != set(LOSSES):
            raise UserError(f"model.loss_weights: expected {', '.join(LOSSES)}, got {', '.join(loss_weights)}.")
        if instances_per_chunk < 1:
            raise UserError(f"model.instances_per_chunk={instances_per_chunk}: expected at least 1.")
        self.prompts = prompts
        self.prompt = prompt
        self.test_prompt: str | None = None
        self.embedding_cache: EmbeddingCache | None = None
        self._rle_masks = False
        self.multimask = multimask
        self.draw_boxes = draw_boxes
        self.weights_record = WeightsRecord(draw_boxes=draw_boxes)
        self.loss_weights = dict(loss_weights)
        self.instances_per_chunk = instances_per_chunk
        self.activation_checkpointing = activation_checkpointing
        self.score_factors = parse_score(score)
        self.score = score
        self.calibrate = calibrate
        self.input_format = input_format
        self.canvas: int = self.image_encoder.img_size
        self.low_res: int = self.prompt_encoder.mask_input_size[0]
        self._freeze(tuple(freeze))
        used = [prompts[prompt].train, *(prompts[name].test for name in self.test_prompts)]
        if multimask and not any(may_be_ambiguous(sampler) for sampler in used if sampler is not None):
            logger.warning(
                "model.multimask=true has no effect: no prompt of model.prompt=%s is a single point, and every other "
                "has one mask",
                prompt,
            )

    @property
    def test_prompts(self) -> list[str]:
        """Names of the recipes that a model with this ``prompt`` is tested with; ``test_prompt`` chooses one."""
        return list(self.prompts[self.prompt].tested_as) or [self.prompt]

    @property
    def device(self) -> torch.device:
        """Device that the model's parameters are on."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Return losses in training mode, predictions in eval mode: of ``test_prompt``, or the first of its kind.

        Args:
            batched_inputs: as :class:`sam_d2.data.mapper.PromptableMapper` makes them. ``image`` is (3, H, W)
                0-255 in the resized frame; ``instances`` has ``gt_boxes``, ``gt_masks`` and ``gt_classes`` in
                that frame in training and in the original frame at a test (``image_size`` says which);
                ``prompt_instances`` has, for a test with a detector's boxes, ``pred_boxes``, ``scores`` and
                ``pred_classes`` in the original frame; ``height`` and ``width`` are the original size; ``seed``
                makes the training prompts, and without it they are drawn by torch's own generator.

        Returns:
            In training a dict of the weighted ``loss_focal``, ``loss_dice`` and ``loss_iou``: scalars, the mean
            over the instances of an image and then over the images, zero with a graph where there are none.
            Otherwise one ``{"instances": Instances}`` per image, original frame, one row per prompt: ``pred_masks``
            (N, H0, W0) bool, or inside :meth:`encoding_masks` ``pred_masks_rle``, N run lengths,
            ``pred_boxes``, ``scores`` (N,), ``pred_classes`` (N,), ``prompt_index`` (N,) the row of ``instances`` or
            ``prompt_instances`` that is answered, and each score that ``scores`` may be made of under its own name.

        Raises:
            UserError: an image does not fit the canvas, or ``calibrate`` is set and the weights have no calibration of
                this score and prompt.
        """
        sizes = self._sizes(batched_inputs)
        embeddings = self._embeddings(batched_inputs)
        if self.training:
            return self._losses(batched_inputs, embeddings, sizes)
        recipe = self.prompts[self._test_name()]
        return [
            {"instances": self.predict(embedding, prompts, size, sample, recipe, rle=self._rle_masks)}
            for sample, embedding, size in zip(batched_inputs, embeddings, sizes, strict=True)
            for prompts in [self._test_prompts(sample, recipe)]
        ]

    def preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise the images and pad them bottom-right to (B, 3, S, S).

        Raises:
            UserError: an image is larger than the canvas; SAM would have it cropped and its masks stretched.
        """
        self._sizes(batched_inputs)
        images = [
            (sample["image"].to(self.device, non_blocking=True).float() - self.pixel_mean) / self.pixel_std
            for sample in batched_inputs
        ]
        return ImageList.from_tensors(images, padding_constraints={"square_size": self.canvas})

    def encode(self, images: Tensor) -> Tensor:
        """Return the (B, C, S/p, S/p) embeddings of (B, 3, S, S) preprocessed images; no graph where frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and "image_encoder" not in self.frozen):
            return self.image_encoder(images)

    def _sizes(self, batched_inputs: list[dict[str, Any]]) -> list[tuple[int, int]]:
        """Return (H, W) of each image in the resized frame; UserError where one does not fit the canvas."""
        sizes = [tuple(sample["image"].shape[-2:]) for sample in batched_inputs]
        for sample, (height, width) in zip(batched_inputs, sizes, strict=True):
            if max(height, width) > self.canvas:
                raise UserError(
                    f"{sample.get('file_name', 'image')}: {width} x {height} pixels after the mapper do not fit the "
                    f"canvas of {self.canvas}. Set dataloader.*.mapper.image_size to model.image_encoder.img_size."
                )
        return sizes

    def _embeddings(self, batched_inputs: list[dict[str, Any]]) -> Tensor:
        """Return what :meth:`encode` makes of the images, by way of the cache where there is one."""
        if self.embedding_cache is None or not self.embedding_cache.serves(batched_inputs, training=self.training):
            return self.encode(self.preprocess(batched_inputs).tensor)
        return self.embedding_cache.embeddings(self, batched_inputs)

    def decode(self, embedding: Tensor, prompts: Prompts, multimask: bool = False) -> tuple[Tensor, Tensor]:
        """Decode prompts, all at once.

        Args:
            embedding: (C, S/p, S/p) of the image of all prompts; for a
                :class:`~sam_d2.modeling.mask_decoder.SharedMaskDecoder` also (N, C, S/p, S/p), one of each prompt.
            prompts: N prompts in the padded frame.
            multimask: True for SAM's three masks of an ambiguous prompt, False for the single one.

        Returns:
            Mask logits (N, M, L, L) in the low-res frame and predicted IoU (N, M); M is 3 or 1.

        Raises:
            UserError: three masks are asked for at a test, and the loaded weights never learned them.
        """
        if multimask and not self.training:
            self.weights_record.require_multimask()
        if len(prompts) == 0:
            masks = 3 if multimask else 1
            return embedding.new_zeros((0, masks, self.low_res, self.low_res)), embedding.new_zeros((0, masks))
        if self.draw_boxes:
            prompts = prompts.with_drawn_boxes(self.canvas, self.low_res)
        points = None if prompts.points is None else (prompts.points, prompts.labels)
        sparse, dense = self.prompt_encoder(points=points, boxes=prompts.boxes, masks=prompts.masks)
        if multimask and torch.is_grad_enabled() and self.training and "mask_decoder" not in self.frozen:
            self.weights_record.multimask_reached = True
        return self.mask_decoder(
            image_embeddings=embedding if embedding.dim() == 4 else embedding[None],
            image_pe=self.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
        )

    @torch.no_grad()
    def predict(
        self,
        embedding: Tensor,
        prompts: Prompts,
        resized: tuple[int, int],
        sample: dict[str, Any],
        recipe: PromptRecipe | None = None,
        *,
        rle: bool = False,
    ) -> Instances:
        """Return the masks of one image's prompts in its original frame, the masks on the CPU.

        Args:
            embedding: (C, S/p, S/p) of the image.
            prompts: N prompts in the padded frame, on any device.
            resized: (H, W) of the resized frame.
            sample: the image's ``height`` and ``width``. Classes come from its ``prompt_instances``, with their
                ``scores``, where the recipe is of a detector's boxes, else from its ``instances``, and are 0 where it
                has none.
            recipe: how often the prompts are asked again and what scores the masks; by default once, and the model's.
            rle: give ``pred_masks_rle`` in place of ``pred_masks``: N compressed run lengths.
        """
        recipe = recipe or PromptRecipe()
        asked: Instances | None = None
        class_score = torch.ones(len(prompts), device=self.device)
        if recipe.prompt_source == DETECTOR:
            asked = sample["prompt_instances"]
            class_score = asked.scores.to(class_score)
        frames = (self.canvas, resized, (int(sample["height"]), int(sample["width"])))
        parts = [encode_logits(torch.zeros((0, self.low_res, self.low_res), device=self.device), *frames)]
        predicted_ious = [torch.zeros(0, device=self.device)]
        for start in range(0, len(prompts), self.instances_per_chunk):
            chunk = prompts[start : start + self.instances_per_chunk].to(self.device)
            logits, predicted_iou = self._best_answer(embedding, chunk, recipe.best_of_3)
            for _ in range(recipe.refinements):
                logits, predicted_iou = self._best_answer(embedding, chunk.with_masks(logits))
            codes = encode_logits(logits, *frames)
            for _ in range(recipe.test_corrections):
                truth = sample["instances"].gt_masks[start : start + self.instances_per_chunk]
                points, labels = innermost_corrections(codes.dense(), truth, resized)
                chunk = chunk.with_correction(points.to(self.device), labels.to(self.device), logits)
                logits, predicted_iou = self._best_answer(embedding, chunk)
                codes = encode_logits(logits, *frames)
            parts.append(codes)
            predicted_ious.append(predicted_iou)
        result = instances_of(MaskCodes.cat(parts), torch.cat(predicted_ious), class_score, dense=not rle)
        result.scores = self.rank({name: result.get(name) for name in SCORES}, recipe, prompts)
        if asked is not None:
            result.pred_classes = asked.pred_classes.to(self.device)
        elif "instances" in sample:
            result.pred_classes = sample["instances"].gt_classes.to(self.device)
        else:
            result.pred_classes = torch.zeros(len(prompts), dtype=torch.int64, device=self.device)
        result.prompt_index = torch.arange(len(prompts), device=self.device)
        return result

    def score_name(self, recipe: PromptRecipe) -> str:
        """Return what a report calls the score that ranks the masks of a recipe."""
        score = recipe.score or self.score
        return calibrated_name(score) if self.calibrate else score

    def rank(self, values: Mapping[str, Tensor], recipe: PromptRecipe, prompts: Prompts) -> Tensor:
        """Return the score that ranks masks.

        Args:
            values: (N,) by name, all of :data:`sam_d2.modeling.scoring.SCORES`.
            recipe: what the masks answer.
            prompts: N that they answer; where the recipe is none of the model's, they say by their form whose
                calibration it is.

        Returns:
            (N,) float32: the recipe's score, or ``model.score``; float64 where ``calibrate`` has it calibrated.

        Raises:
            UserError: it is to be calibrated and the weights have no calibration of it with this prompt.
        """
        score = recipe.score or self.score
        scores = combine_scores(parse_score(score), values)
        if not self.calibrate:
            return scores
        if not len(scores):
            return scores
        prompt = next((name for name, one in self.prompts.items() if one is recipe), None)
        if prompt is None:
            detected = recipe.prompt_source == DETECTOR
            prompt = DETECTOR if detected else recipe_name(self.prompts, self.test_prompts, prompts)
        return self.weights_record.calibration(prompt, score).of_tensor(scores)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that must not decay.

        What the prompts of a run do not ask for gets no gradient, and decay would shrink it nevertheless: mask
        outputs (their hypernetworks, and their rows in the last layer of the IoU head), and the mask prompt's
        convolutions.
        """
        head = "mask_decoder.iou_prediction_head."
        names = [name for name, _ in self.named_parameters()]
        last = max((name.rsplit(".", 1)[0] for name in names if name.startswith(head)), default=head)
        parts = (last + ".", "mask_decoder.output_hypernetworks_mlps.", "prompt_encoder.mask_downscaling.")
        return {name for name in names if name.startswith(parts)}

    @contextmanager
    def saving_memory(self) -> Iterator[None]:
        """Train with as little memory as there is a way to inside the block: the same losses, more slowly.

        The instances of an image are decoded one by one, each again in the backward pass.
        """
        before = self.instances_per_chunk, self.activation_checkpointing
        self.instances_per_chunk, self.activation_checkpointing = 1, True
        try:
            yield
        finally:
            self.instances_per_chunk, self.activation_checkpointing = before

    @contextmanager
    def encoding_masks(self) -> Iterator[None]:
        """Give ``pred_masks_rle`` in place of ``pred_masks`` inside the block: no mask of N is ever held dense."""
        before, self._rle_masks = self._rle_masks, True
        try:
            yield
        finally:
            self._rle_masks = before

    @contextmanager
    def tested_with(self, prompt: str) -> Iterator[None]:
        """Predict with one of :attr:`test_prompts` inside the block, and afterwards as before."""
        before, self.test_prompt = self.test_prompt, prompt
        try:
            yield
        finally:
            self.test_prompt = before

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
            if lora_keys(getattr(self, part).state_dict()):
                raise UserError(
                    f"model.freeze: {part} has LoRA, of which only the matrices train; take it out of the list."
                )
            getattr(self, part).requires_grad_(False)
        if not self.multimask:
            # The hypernetworks of the multimask outputs get no gradient, so they get no step either.
            for network in self.mask_decoder.output_hypernetworks_mlps[1:]:
                network.requires_grad_(False)
        self.train(self.training)

    def _test_name(self) -> str:
        return self.test_prompt or self.test_prompts[0]

    def _test_prompts(self, sample: dict[str, Any], recipe: PromptRecipe) -> Prompts:
        """Return one image's test prompts in the padded frame; they are made in the original frame."""
        detected = recipe.prompt_source == DETECTOR
        instances = sample.get("prompt_instances" if detected else "instances")
        if instances is None:
            advice = (
                "They are a detector's: evaluate with --prompt detector, or give Predictor(detector=...)"
                if detected
                else "The test mapper must keep annotations (sam_d2.data.mapper.PromptableMapper does)"
            )
            raise UserError(f"{sample.get('file_name', 'image')}: no instances to make prompts from. {advice}.")
        if recipe.test is None:
            raise UserError(f"model.prompts.{self._test_name()} has no test prompts; {self.test_prompts} have.")
        prompts = recipe.test(instances, torch.Generator().manual_seed(0))
        return prompts.rescaled(instances.image_size, tuple(sample["image"].shape[-2:]))

    def _answer(self, embedding: Tensor, prompts: Prompts, best_of_3: bool = False) -> tuple[Tensor, Tensor]:
        """Decode as ``multimask`` says, or to three masks: float32 logits (n, M, L, L) and predicted IoU (n, M)."""
        logits, predicted_iou = self.decode(embedding, prompts, best_of_3 or (self.multimask and prompts.ambiguous))
        return logits.float(), predicted_iou.float()

    def _best_answer(self, embedding: Tensor, prompts: Prompts, best_of_3: bool = False) -> tuple[Tensor, Tensor]:
        """Return the mask with the highest predicted IoU: logits (n, L, L), predicted IoU (n,)."""
        return of_highest_iou(*self._answer(embedding, prompts, best_of_3))

    def _losses(
        self, batched_inputs: list[dict[str, Any]], embeddings: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> dict[str, Tensor]:
        losses_of = InstanceLosses(
            self._answer,
            canvas=self.canvas,
            low_res=self.low_res,
            focal=self.loss_weights["loss_focal"],
            dice=self.loss_weights["loss_dice"],
            chunk=self.instances_per_chunk,
            recompute=self.activation_checkpointing,
            across_images=isinstance(self.mask_decoder, SharedMaskDecoder),
        )
        images = []
        for sample, embedding, size in zip(batched_inputs, embeddings, sizes, strict=True):
            instances: Instances = sample["instances"]
            if len(instances) == 0:
                continue
            if instances.image_size != tuple(size):
                raise ValueError(
                    f"training instances must be in the resized frame {tuple(size)}, got {instances.image_size}"
                )
            # Without a seed, as other mappers' samples are, prompts differ from step to step and image to image.
            seed = int(sample["seed"] if "seed" in sample else torch.randint(2**63 - 1, ()))
            images.append(TrainedImage(embedding, instances, torch.Generator().manual_seed(seed)))
        per_image = [losses.mean(dim=0) for losses in losses_of(images, self.prompts[self.prompt])]
        # Every trainable parameter takes part in every step, also those that this step's prompts do not touch, and
        # also where there is no instance: so DDP never waits for a gradient that one rank does not make.
        zero = 0.0 * sum(parameter.sum() for parameter in self.parameters() if parameter.requires_grad)
        total = torch.stack(per_image).sum(dim=0) / len(batched_inputs) if per_image else embeddings.new_zeros(3)
        total = total.float() + zero
        return {name: self.loss_weights[name] * value for name, value in zip(LOSSES, total.unbind(), strict=True)}
