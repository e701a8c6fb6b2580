"""Augmentations that cut a window out of the image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import CropTransform, PadTransform, Transform, TransformList

from .augmentation import Augmentation
from .geometry import ExtentTransform


class FixedSizeCrop(Augmentation):
    """Cut a window of a fixed size where the image is larger, pad right and bottom where it is smaller.

    Args:
        crop_size: height, width.
        pad: False leaves smaller images smaller.
        pad_value: fills the image.
        seg_pad_value: fills the label map.
    """

    def __init__(
        self,
        crop_size: tuple[int, int],
        pad: bool = True,
        pad_value: float = 128.0,
        seg_pad_value: int = 255,
    ) -> None:
        super().__init__()
        self.crop_size, self.pad = crop_size, pad
        self.pad_value, self.seg_pad_value = pad_value, seg_pad_value

    def get_transform(self, image: np.ndarray) -> TransformList:
        """Draw the window's place (one number for both axes) and return the crop and the padding."""
        size, target = np.array(image.shape[:2]), np.array(self.crop_size)
        room = np.maximum(size - target, 0)
        top, left = np.round(room * np.random.uniform(0.0, 1.0)).astype(int)
        crop_h, crop_w = self.crop_size
        transforms: list[Transform] = [CropTransform(left, top, crop_w, crop_h, size[1], size[0])]
        if self.pad:
            below, right = np.maximum(target - size, 0)
            kept_h, kept_w = np.minimum(size, target)
            transforms.append(PadTransform(0, 0, right, below, kept_w, kept_h, self.pad_value, self.seg_pad_value))
        return TransformList(transforms)


class RandomCrop(Augmentation):
    """Cut a window at a random place.

    Args:
        crop_type: how ``crop_size`` is meant. "relative": parts of height and width, in (0, 1].
            "relative_range": each part drawn from [part, 1]. "absolute": height and width in pixels, at most
            the image's. "absolute_range": height and width each drawn from [min, max] pixels.
        crop_size: two numbers.

    Raises:
        AssertionError: another type.
    """

    def __init__(self, crop_type: str, crop_size: Sequence[Any]) -> None:
        super().__init__()
        assert crop_type in ("relative_range", "relative", "absolute", "absolute_range"), crop_type
        self.crop_type, self.crop_size = crop_type, crop_size

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw the size, then the place, and return the crop."""
        return self.draw_window(image.shape[0], image.shape[1])

    def draw_window(self, h: int, w: int) -> CropTransform:
        """Draw a window within an image of height ``h`` and width ``w``."""
        crop_h, crop_w = self.get_crop_size((h, w))
        assert h >= crop_h and w >= crop_w, f"{self} asks for a window larger than the image ({h}, {w})."
        top = np.random.randint(h - crop_h + 1)
        left = np.random.randint(w - crop_w + 1)
        return CropTransform(left, top, crop_w, crop_h)

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width of the window, pixels, for an image of (height, width).

        Raises:
            AssertionError: the range's ends are in the wrong order.
        """
        if self.crop_type == "absolute":
            height, width = (int(min(side, size)) for side, size in zip(self.crop_size, image_size, strict=True))
            return height, width
        if self.crop_type == "absolute_range":
            low, high = self.crop_size
            assert low <= high, f"crop_size must be (min, max), got {self.crop_size}"
            height, width = (np.random.randint(min(side, low), min(side, high) + 1) for side in image_size)
            return height, width
        parts = np.asarray(self.crop_size, dtype=np.float64)
        if self.crop_type == "relative_range":
            least = np.asarray(self.crop_size, dtype=np.float32)  # its rounding decides half pixels
            parts = least + np.random.rand(2) * (1 - least)
        height, width = (int(side * part + 0.5) for side, part in zip(image_size, parts, strict=True))
        return height, width


class RandomCrop_CategoryAreaConstraint(Augmentation):
    """A :class:`RandomCrop` in whose label map no category takes too much; the tenth try is kept anyway.

    Args:
        crop_type: as in :class:`RandomCrop`.
        crop_size: as in :class:`RandomCrop`.
        single_category_max_area: largest allowed part of the window; 1 turns the test off.
        ignored_category: a label that may take any part.
    """

    _TRIES = 10

    def __init__(
        self,
        crop_type: str,
        crop_size: Sequence[Any],
        single_category_max_area: float = 1.0,
        ignored_category: int | None = None,
    ) -> None:
        self.crop_aug = RandomCrop(crop_type, crop_size)
        self.crop_type, self.crop_size = crop_type, crop_size
        self.single_category_max_area, self.ignored_category = single_category_max_area, ignored_category

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> Transform:
        """Draw windows until one passes."""
        if self.single_category_max_area >= 1.0:
            return self.crop_aug.get_transform(image)
        for _ in range(self._TRIES):
            window = self.crop_aug.draw_window(*sem_seg.shape)
            labels, counts = np.unique(window.apply_image(sem_seg), return_counts=True)
            if self.ignored_category is not None:
                counts = counts[labels != self.ignored_category]
            if len(counts) > 1 and counts.max() < counts.sum() * self.single_category_max_area:
                break
        return window


class RandomExtent(Augmentation):
    """Cut out a window of random size and shift, which may reach outside of the image, at its own resolution.

    Args:
        scale_range: ends of the factor between the image's size and the window's.
        shift_range: x, y; the window's centre moves by up to half of this part of the width and height.
    """

    def __init__(self, scale_range: tuple[float, float], shift_range: tuple[float, float]) -> None:
        super().__init__()
        self.scale_range, self.shift_range = scale_range, shift_range

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw the size, then the shift in x and in y."""
        height, width = image.shape[:2]
        # Corners around the origin, scaled, shifted, moved to the image: the order decides the last digits.
        rect = np.array([-0.5 * width, -0.5 * height, 0.5 * width, 0.5 * height])
        rect *= np.random.uniform(*self.scale_range)
        for axis, size in enumerate((width, height)):
            rect[axis::2] += self.shift_range[axis] * size * (np.random.rand() - 0.5)
        for axis, size in enumerate((width, height)):
            rect[axis::2] += 0.5 * size
        x0, y0, x1, y1 = rect
        return ExtentTransform((x0, y0, x1, y1), (int(y1 - y0), int(x1 - x0)))
