"""Images that a training has no need to read, because the embedding that a model would make of them is cached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

import detectron2.data.transforms as T
from sam_d2.data.annotated_image import read_annotated_image

_RECORDED = ("file_name", "image_id", "height", "width")


class UnreadInput:
    """Stands for an :class:`~detectron2.data.transforms.AugInput` where augmentations ask for the image's size alone.

    Args:
        size: (height, width) of the image.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.image = _blank(size)

    def transform(self, transform: T.Transform) -> None:
        """Take the size that the image would have after a flip or a resize."""
        if isinstance(transform, T.ResizeTransform):
            self.image = _blank((transform.new_h, transform.new_w))


class UnreadImage:
    """Stands for a sample's ``image``: it has its shape, and reads it only when somebody asks for its pixels.

    Args:
        record: the dataset dict.
        image_format: ``RGB`` or ``BGR``.
        transforms: what brings the file's image into the resized frame.
        size: (height, width) of that.
    """

    def __init__(
        self, record: Mapping[str, Any], image_format: str, transforms: T.TransformList, size: tuple[int, int]
    ) -> None:
        self.record = {key: record[key] for key in _RECORDED if key in record}  # no more, it goes to another process
        self.image_format = image_format
        self.transforms = transforms
        self.shape = (3, *size)

    def read(self) -> Tensor:
        """Return the (3, H, W) uint8 image.

        Raises:
            UserError: it cannot be read, or has not the size that the annotations say.
        """
        return channels_first(self.transforms.apply_image(read_annotated_image(self.record, self.image_format)))

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Tensor:
        """Read the image and return it on a device, as a tensor's ``to`` does."""
        return self.read().to(device, non_blocking=non_blocking)


def channels_first(image: np.ndarray) -> Tensor:
    """Return an (H, W, C) image as a (C, H, W) tensor."""
    return torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _blank(size: tuple[int, int]) -> np.ndarray:
    return np.broadcast_to(np.uint8(0), (*size, 3))  # takes no memory
