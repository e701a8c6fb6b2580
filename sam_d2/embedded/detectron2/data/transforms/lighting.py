"""Augmentations of brightness and colour; each blends the image with another one by a random weight."""

import numpy as np
from fvcore.transforms.transform import BlendTransform, Transform

from .augmentation import Augmentation


class _RandomBlend(Augmentation):
    """Draw an intensity: below 1 the image moves towards ``_reference``, above 1 away from it.

    Args:
        intensity_min: lower end.
        intensity_max: upper end.
    """

    def __init__(self, intensity_min: float, intensity_max: float) -> None:
        super().__init__()
        self.intensity_min, self.intensity_max = intensity_min, intensity_max

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw the intensity and return the blend."""
        intensity = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(self._reference(image), src_weight=1 - intensity, dst_weight=intensity)

    def _reference(self, image: np.ndarray) -> np.ndarray | float:
        raise NotImplementedError


class RandomContrast(_RandomBlend):
    """Blend with the mean of all pixels."""

    def _reference(self, image: np.ndarray) -> np.ndarray | float:
        return image.mean()


class RandomBrightness(_RandomBlend):
    """Blend with black."""

    def _reference(self, image: np.ndarray) -> np.ndarray | float:
        return 0


class RandomSaturation(_RandomBlend):
    """Blend with the luma of an RGB image, (H, W, 3)."""

    def _reference(self, image: np.ndarray) -> np.ndarray | float:
        return image.dot([0.299, 0.587, 0.114])[:, :, None]

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw the intensity and return the blend.

        Raises:
            AssertionError: the image has other than three channels.
        """
        assert image.shape[-1] == 3, f"RandomSaturation needs an RGB image (H, W, 3), got {image.shape}."
        return super().get_transform(image)


class RandomLighting(Augmentation):
    """Add a random colour along the principal components of ImageNet's colours, to an RGB image.

    As in AlexNet (Krizhevsky et al. 2012, section 4.1).

    Args:
        scale: standard deviation of the components' weights.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.eigen_vecs = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
        self.eigen_vals = np.array([0.2175, 0.0188, 0.0045])

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw the weights and return the addition.

        Raises:
            AssertionError: the image has other than three channels.
        """
        assert image.shape[-1] == 3, f"RandomLighting needs an RGB image (H, W, 3), got {image.shape}."
        weights = np.random.normal(scale=self.scale, size=3)
        return BlendTransform(self.eigen_vecs.dot(weights * self.eigen_vals), src_weight=1.0, dst_weight=1.0)
