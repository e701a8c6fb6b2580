"""Images of several sizes as one batch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F


class ImageList:
    """Images in one tensor, padded at the bottom and on the right to the same size.

    Attributes:
        tensor: (B, ..., H, W), the padded frame.
        image_sizes: (height, width) of each image before padding.
    """

    def __init__(self, tensor: torch.Tensor, image_sizes: Sequence[tuple[int, int]]) -> None:
        """Take images that are padded already.

        Args:
            tensor: (B, ..., H, W).
            image_sizes: (height, width) of each image, at most (H, W).
        """
        self.tensor = tensor
        self.image_sizes = image_sizes

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx: int) -> torch.Tensor:
        """Return one image without its padding, (..., h, w)."""
        height, width = self.image_sizes[idx]
        return self.tensor[idx, ..., :height, :width]

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.tensor.device

    def to(self, *args: Any, **kwargs: Any) -> "ImageList":
        """Return the images moved or cast as by ``Tensor.to``."""
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @staticmethod
    def from_tensors(
        tensors: Sequence[torch.Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: dict[str, int] | None = None,
    ) -> "ImageList":
        """Pad images to a common size: the greatest height and width among them, rounded up as asked.

        Args:
            tensors: images (..., h, w), the leading sizes equal.
            size_divisibility: round height and width up to a multiple of this, where it is greater than 1.
            pad_value: value of the padding.
            padding_constraints: ``{"size_divisibility": int, "square_size": int}``, each optional. The first
                replaces the argument of that name; the second, where it is positive, is the height and width
                instead of those of the images.

        Returns:
            the batch. A single image greater than ``square_size`` is cut to it, as by Detectron2; several
            images of which one is greater are an error.
        """
        assert isinstance(tensors, (tuple, list)) and len(tensors) > 0
        for image in tensors:
            assert isinstance(image, torch.Tensor), type(image)
            assert image.shape[:-2] == tensors[0].shape[:-2], [tuple(one.shape) for one in tensors]
        sizes = [(image.shape[-2], image.shape[-1]) for image in tensors]
        height, width = (max(lengths) for lengths in zip(*sizes, strict=True))

        constraints = padding_constraints or {}
        if constraints.get("square_size", 0) > 0:
            height = width = constraints["square_size"]
        stride = max(constraints.get("size_divisibility", size_divisibility), 1)
        height, width = (-(-length // stride) * stride for length in (height, width))

        if len(tensors) == 1:
            padding = (0, width - sizes[0][1], 0, height - sizes[0][0])
            return ImageList(F.pad(tensors[0], padding, value=pad_value)[None].contiguous(), sizes)
        batch = tensors[0].new_full((len(tensors), *tensors[0].shape[:-2], height, width), pad_value)
        for place, image, (h, w) in zip(batch, tensors, sizes, strict=True):
            place[..., :h, :w].copy_(image)
        return ImageList(batch, sizes)
