"""Transforms of colours alone; coordinates and masks pass through."""

from collections.abc import Callable

import numpy as np
from fvcore.transforms.transform import NoOpTransform, Transform
from PIL import Image


class ColorTransform(Transform):
    """Any function on image arrays.

    Args:
        op: takes and returns an image array of the same size.

    Raises:
        ValueError: ``op`` cannot be called.
    """

    def __init__(self, op: Callable) -> None:
        if not callable(op):
            raise ValueError(f"{type(self).__name__}(op=) expects a callable, got {op!r}.")
        super().__init__()
        self.op = op

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Return ``op`` of the image."""
        return self.op(img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Return the coordinates as they are."""
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Return the label map as it is."""
        return segmentation

    def inverse(self) -> Transform:
        """Return a transform that does nothing, as no geometry changed."""
        return NoOpTransform()


class PILColorTransform(ColorTransform):
    """Any function on PIL images.

    Args:
        op: takes and returns a PIL image of the same size.

    Raises:
        ValueError: ``op`` cannot be called.
    """

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Return ``op`` of the image as a uint8 array."""
        return np.asarray(self.op(Image.fromarray(img)))
