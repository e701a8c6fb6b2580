"""Augmentations that flip or rotate, and the one that applies another one at times."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import HFlipTransform, NoOpTransform, Transform, VFlipTransform

from .augmentation import Augmentation, transform_to_augmentation
from .geometry import RotationTransform


class RandomApply(Augmentation):
    """Apply an augmentation with a probability.

    Args:
        tfm_or_aug: the transform or augmentation.
        prob: in [0, 1].

    Raises:
        AssertionError: the probability is out of range.
    """

    def __init__(self, tfm_or_aug: Transform | Augmentation, prob: float = 0.5) -> None:
        super().__init__()
        self.aug = transform_to_augmentation(tfm_or_aug)
        assert 0.0 <= prob <= 1.0, f"Probability must be between 0.0 and 1.0 (given: {prob})"
        self.prob = prob

    def get_transform(self, *args: Any) -> Transform:
        """Return the wrapped one's choice, or a transform that does nothing."""
        return self.aug.get_transform(*args) if self._rand_range() < self.prob else NoOpTransform()

    def __call__(self, aug_input: Any) -> Transform:
        """Call the wrapped one, or leave the input alone."""
        return self.aug(aug_input) if self._rand_range() < self.prob else NoOpTransform()


class RandomFlip(Augmentation):
    """Flip with a probability.

    Args:
        prob: in [0, 1].
        horizontal: exchange left and right.
        vertical: exchange top and bottom.

    Raises:
        ValueError: not exactly one of the two directions is chosen.
    """

    def __init__(self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False) -> None:
        super().__init__()
        if horizontal and vertical:
            raise ValueError("Cannot flip in both directions at once: use two RandomFlip instead.")
        if not horizontal and not vertical:
            raise ValueError("RandomFlip needs horizontal=True or vertical=True.")
        self.prob, self.horizontal, self.vertical = prob, horizontal, vertical

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw, and return the flip or a transform that does nothing."""
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        height, width = image.shape[:2]
        return HFlipTransform(width) if self.horizontal else VFlipTransform(height)


class RandomRotation(Augmentation):
    """Rotate counter-clockwise by a random angle.

    Args:
        angle: degrees; "range" draws from [min, max], "choice" one of the list. One number stands for itself.
        expand: enlarge the canvas to hold the whole rotated image; otherwise it keeps its size.
        center: relative x, y, (0, 0) the top left and (1, 1) the bottom right corner; "range" draws between
            two of them. None is the image's centre. With ``expand`` it has no effect.
        sample_style: "range" or "choice".
        interp: cv2's filter, linear by default.

    Raises:
        AssertionError: another style.
    """

    def __init__(
        self,
        angle: float | Sequence[float],
        expand: bool = True,
        center: Any = None,
        sample_style: str = "range",
        interp: int | None = None,
    ) -> None:
        super().__init__()
        assert sample_style in ("range", "choice"), sample_style
        self.is_range = sample_style == "range"
        self.angle: Sequence[float] = (angle, angle) if isinstance(angle, (int, float)) else angle
        one_center = center is not None and isinstance(center[0], (int, float))
        self.center = (center, center) if one_center else center
        self.expand, self.sample_style, self.interp = expand, sample_style, interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw the angle, then the centre if one is given, and return the rotation."""
        angle, center = self._draw()
        if angle % 360 == 0:
            return NoOpTransform()
        h, w = image.shape[:2]
        if center is not None:
            center = (w * center[0], h * center[1])
        return RotationTransform(h, w, angle, expand=self.expand, center=center, interp=self.interp)

    def _draw(self) -> tuple[float, Any]:
        if not self.is_range:
            angle = np.random.choice(self.angle)
            return angle, None if self.center is None else np.random.choice(self.center)
        angle = np.random.uniform(self.angle[0], self.angle[1])
        if self.center is None:
            return angle, None
        low, high = self.center
        return angle, (np.random.uniform(low[0], high[0]), np.random.uniform(low[1], high[1]))
