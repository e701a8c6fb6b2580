"""Augmentations that choose a size."""

import sys
from collections.abc import Sequence

import numpy as np
from fvcore.transforms.transform import NoOpTransform, Transform

from .augmentation import Augmentation
from .geometry import BILINEAR, ResizeTransform


class Resize(Augmentation):
    """Resize to a fixed size.

    Args:
        shape: height and width, or one number for both.
        interp: PIL's filter.
    """

    def __init__(self, shape: int | Sequence[int], interp: int = BILINEAR) -> None:
        self.shape: tuple[int, ...] = (shape, shape) if isinstance(shape, int) else tuple(shape)
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """Return the resize of this image."""
        h, w = image.shape[:2]
        new_h, new_w = self.shape
        return ResizeTransform(h, w, new_h, new_w, self.interp)


class RandomResize(Augmentation):
    """Resize to one of several sizes, each as likely.

    Args:
        shape_list: heights and widths.
        interp: PIL's filter.
    """

    def __init__(self, shape_list: Sequence[tuple[int, int]], interp: int = BILINEAR) -> None:
        self.shape_list, self.interp = shape_list, interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw a size and return the resize to it."""
        new_h, new_w = self.shape_list[np.random.randint(low=0, high=len(self.shape_list))]
        h, w = image.shape[:2]
        return ResizeTransform(h, w, new_h, new_w, self.interp)


class ResizeShortestEdge(Augmentation):
    """Scale so that the shorter edge has a drawn length, less where the longer one would exceed ``max_size``.

    Args:
        short_edge_length: pixels; "range" draws from [min, max], both included, "choice" one of the list.
            One number stands for itself. A drawn 0 leaves the image alone.
        max_size: largest allowed length of the longer edge, pixels.
        sample_style: "range" or "choice".
        interp: PIL's filter.

    Raises:
        AssertionError: another style, or a range without exactly two ends.
    """

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = BILINEAR,
    ) -> None:
        super().__init__()
        assert sample_style in ("range", "choice"), sample_style
        self.is_range = sample_style == "range"
        if isinstance(short_edge_length, int):
            short_edge_length = (short_edge_length, short_edge_length)
        assert not self.is_range or len(short_edge_length) == 2, (
            f"short_edge_length must be two values using 'range' sample style. Got {short_edge_length}!"
        )
        self.short_edge_length, self.max_size = short_edge_length, max_size
        self.sample_style, self.interp = sample_style, interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw a length and return the resize to it."""
        lengths = self.short_edge_length
        size = np.random.randint(lengths[0], lengths[1] + 1) if self.is_range else np.random.choice(lengths)
        if size == 0:
            return NoOpTransform()
        h, w = image.shape[:2]
        return ResizeTransform(h, w, *self.get_output_shape(h, w, size, self.max_size), self.interp)

    @staticmethod
    def get_output_shape(oldh: int, oldw: int, short_edge_length: int, max_size: int) -> tuple[int, int]:
        """Return the height and width after scaling (``oldh``, ``oldw``), rounded half up."""
        length = float(short_edge_length)
        scale = length / min(oldh, oldw)
        # The shorter edge gets its length as it is: scaling it could be off in the last digit.
        height, width = (length, scale * oldw) if oldh < oldw else (scale * oldh, length)
        longer = max(height, width)
        if longer > max_size:
            shrink = max_size / longer
            height, width = height * shrink, width * shrink
        return int(height + 0.5), int(width + 0.5)


class ResizeScale(Augmentation):
    """Scale to fit into a target size times a random factor (the first half of "large scale jitter").

    Args:
        min_scale: lower end of the factor.
        max_scale: upper end of the factor.
        target_height: pixels.
        target_width: pixels.
        interp: PIL's filter.
    """

    def __init__(
        self,
        min_scale: float,
        max_scale: float,
        target_height: int,
        target_width: int,
        interp: int = BILINEAR,
    ) -> None:
        super().__init__()
        self.min_scale, self.max_scale = min_scale, max_scale
        self.target_height, self.target_width = target_height, target_width
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw a factor and return the resize."""
        factor = np.random.uniform(self.min_scale, self.max_scale)
        h, w = image.shape[:2]
        scale = np.min(np.multiply((self.target_height, self.target_width), factor) / (h, w))
        new_h, new_w = np.round(np.multiply((h, w), scale)).astype(int)
        return ResizeTransform(h, w, int(new_h), int(new_w), self.interp)
