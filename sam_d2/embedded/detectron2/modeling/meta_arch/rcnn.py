"""Detectors in two steps: where something is, then what it is.

B images, (H, W) of each its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList, Instances

__all__ = ["GeneralizedRCNN"]

Inputs = Sequence[Mapping[str, Any]]


class GeneralizedRCNN(nn.Module):
    """A backbone, a proposal generator and region heads."""

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def __init__(
        self,
        *,
        backbone: nn.Module, proposal_generator: nn.Module | None, roi_heads: nn.Module, pixel_mean: Sequence[float],
        pixel_std: Sequence[float], input_format: str | None = None, vis_period: int = 0,
    ) -> None:  # fmt: skip
        """Put the parts together.

        Args:
            backbone: a :class:`Backbone`.
            proposal_generator: such as :class:`RPN`; None where the input has proposals.
            roi_heads: such as :class:`StandardROIHeads`.
            pixel_mean: what is subtracted from each channel.
            pixel_std: what each channel is then divided by.
            input_format: order of the channels, "RGB" or "BGR"; noted for who prepares or shows images.
            vis_period: noted as well; pictures of proposals are not made here.
        """
        super().__init__()
        self.backbone, self.proposal_generator, self.roi_heads = backbone, proposal_generator, roi_heads
        assert len(pixel_mean) == len(pixel_std), f"the mean has {len(pixel_mean)} channels, std {len(pixel_std)}"
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(list(values)).view(-1, 1, 1), persistent=False)
        self.input_format, self.vis_period = input_format, vis_period

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    def preprocess_image(self, batched_inputs: Inputs) -> ImageList:
        """Return the images normalised and padded as the backbone needs them.

        Args:
            batched_inputs: see :meth:`forward`.
        """
        images = [(one["image"].to(self.device) - self.pixel_mean) / self.pixel_std for one in batched_inputs]
        divisor, constraints = self.backbone.size_divisibility, self.backbone.padding_constraints
        return ImageList.from_tensors(images, divisor, padding_constraints=constraints)  # type: ignore[arg-type]

    def _propose(
        self, batched_inputs: Inputs, images: ImageList, features: Any, truth: list[Instances] | None
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """Return proposals and their losses; those of the input where there is no generator."""
        if self.proposal_generator is not None:
            return self.proposal_generator(images, features, truth)
        assert "proposals" in batched_inputs[0], "a model without proposal generator needs proposals in its input"
        return [one["proposals"].to(self.device) for one in batched_inputs], {}

    def forward(self, batched_inputs: Inputs) -> Any:
        """Train or detect.

        Args:
            batched_inputs: of each image a dict with ``image`` (C, H, W), channels as in ``input_format``, [0, 255];
                while training ``instances`` with ``gt_boxes``, ``gt_classes`` and perhaps ``gt_masks`` in the same
                frame; ``proposals`` where there is no generator; ``height`` and ``width`` are the size of the output.

        Returns:
            while training the losses by name, otherwise of each image ``{"instances": Instances}`` with
            ``pred_boxes``, ``scores``, ``pred_classes`` and perhaps ``pred_masks`` in the frame of the output.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        has_truth = "instances" in batched_inputs[0]
        truth = [one["instances"].to(self.device) for one in batched_inputs] if has_truth else None
        features = self.backbone(images.tensor)
        proposals, proposal_losses = self._propose(batched_inputs, images, features, truth)
        _, detector_losses = self.roi_heads(images, features, proposals, truth)
        return {**detector_losses, **proposal_losses}

    def inference(
        self, batched_inputs: Inputs, detected_instances: Sequence[Instances] | None = None, do_postprocess: bool = True
    ) -> Any:
        """Detect.

        Args:
            batched_inputs: see :meth:`forward`.
            detected_instances: of each image, ``pred_boxes`` and ``pred_classes`` in the frame of the input, to which
                the rest is to be found; None to detect these, too.
            do_postprocess: whether to bring the detections to the frame of the output.

        Returns:
            see :meth:`forward`; without ``do_postprocess`` a list of Instances in the frame of the input, their masks
            (N, 1, S, S) probabilities in the boxes.
        """
        assert not self.training, "call eval() first"
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if detected_instances is None:
            proposals, _ = self._propose(batched_inputs, images, features, None)
            results, _ = self.roi_heads(images, features, proposals, None)
        else:
            given = [one.to(self.device) for one in detected_instances]
            results = self.roi_heads.forward_with_given_boxes(features, given)  # type: ignore[operator]
        return self._postprocess(results, batched_inputs, images.image_sizes) if do_postprocess else results

    @staticmethod
    def _postprocess(
        instances: list[Instances], batched_inputs: Inputs, image_sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, Instances]]:
        """Return the detections of each image in the size that its input asks for."""
        return [
            {"instances": detector_postprocess(found, one.get("height", size[0]), one.get("width", size[1]))}
            for found, one, size in zip(instances, batched_inputs, image_sizes, strict=True)
        ]
