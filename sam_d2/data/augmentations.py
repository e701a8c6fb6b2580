"""Augmentations of colour and perspective from torchvision.transforms.v2, as Detectron2 augmentations.

They go into any mapper's list of augmentations beside Detectron2's own. Each looks at the image once, draws its
parameters, and returns a transform that gives the same again. Random numbers come from NumPy's and torch's global
generators, which the loader seeds for each sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

import detectron2.data.transforms as T
from sam_d2.errors import UserError

Range = float | Sequence[float]


class _Colour(T.Augmentation):
    """Change colours with a probability; coordinates and masks stay as they are.

    Args:
        prob: 0-1.
        image_format: order of the image's channels, RGB or BGR; torchvision is given RGB.
    """

    def __init__(self, prob: float, image_format: str = "RGB") -> None:
        super().__init__()
        _check_probability(type(self).__name__, prob)
        self.prob = prob
        self.image_format = image_format

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw, and return the change or a transform that does nothing."""
        if self._rand_range() >= self.prob:
            return T.NoOpTransform()
        change = self.draw(_to_tensor(image))
        return T.ColorTransform(lambda array: self._applied(change, array))

    def draw(self, image: Tensor) -> Callable[[Tensor], Tensor]:
        """Return what is to be done with an image (3, H, W), its parameters drawn."""
        raise NotImplementedError

    def _applied(self, change: Callable[[Tensor], Tensor], array: np.ndarray) -> np.ndarray:
        swapped = self.image_format == "BGR"
        result = _to_array(change(_to_tensor(array[:, :, ::-1] if swapped else array)))
        return np.ascontiguousarray(result[:, :, ::-1]) if swapped else result


class Equalize(_Colour):
    """Spread the histogram of each channel evenly; uint8 only."""

    def __init__(self, prob: float = 0.5) -> None:
        super().__init__(prob)

    def draw(self, image: Tensor) -> Callable[[Tensor], Tensor]:
        """Return torchvision's equalization, which has no parameters."""
        return F.equalize


class Posterize(_Colour):
    """Keep the highest bits of each channel; uint8 only.

    Args:
        bits: 1-8 that are kept.
        prob: 0-1.

    Raises:
        UserError: another number of bits.
    """

    def __init__(self, bits: int, prob: float = 0.5) -> None:
        super().__init__(prob)
        if not 1 <= bits <= 8:
            raise UserError(f"Posterize: bits={bits}, expected 1 to 8.")
        self.bits = bits

    def draw(self, image: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the reduction to ``bits``."""
        return lambda tensor: F.posterize(tensor, bits=self.bits)


class Grayscale(_Colour):
    """Take the luma (0.299 R + 0.587 G + 0.114 B) for all three channels."""

    def __init__(self, prob: float = 0.1, image_format: str = "RGB") -> None:
        super().__init__(prob, image_format)

    def draw(self, image: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the conversion, which has no parameters."""
        return lambda tensor: F.rgb_to_grayscale(tensor, num_output_channels=3)


class GaussianBlur(_Colour):
    """Blur with a Gaussian of a random width.

    Args:
        kernel_size: of the filter, odd, pixels.
        sigma: standard deviation, pixels; drawn between two numbers.
        prob: 0-1.
    """

    def __init__(self, kernel_size: int = 5, sigma: Range = (0.1, 2.0), prob: float = 0.5) -> None:
        super().__init__(prob)
        self.transform = v2.GaussianBlur(kernel_size, _plain(sigma))

    def draw(self, image: Tensor) -> Callable[[Tensor], Tensor]:
        """Draw the width and return the blur."""
        return _bound(self.transform, image)


class ColorJitter(_Colour):
    """Change brightness, contrast, saturation and hue in a random order.

    Args:
        brightness: factor, drawn from [1 - x, 1 + x] or between two numbers.
        contrast: likewise.
        saturation: likewise.
        hue: share of the colour circle, at most 0.5, drawn from [-x, x] or between two numbers.
        prob: 0-1.
        image_format: RGB or BGR.
    """

    def __init__(
        self,
        brightness: Range = 0.0,
        contrast: Range = 0.0,
        saturation: Range = 0.0,
        hue: Range = 0.0,
        prob: float = 1.0,
        image_format: str = "RGB",
    ) -> None:
        super().__init__(prob, image_format)
        self.transform = v2.ColorJitter(*map(_plain, (brightness, contrast, saturation, hue)))

    def draw(self, image: Tensor) -> Callable[[Tensor], Tensor]:
        """Draw factors and order and return the change."""
        return _bound(self.transform, image)


class Perspective(T.Augmentation):
    """Move the four corners of the image inwards at random, each on its own, with a probability.

    The image keeps its size and its content stays inside of it; what comes in from outside is ``fill``. Polygons
    and masks follow exactly, and the mappers take the boxes of the moved masks.

    Args:
        distortion_scale: 0-1, the share of half a side that a corner moves at most.
        prob: 0-1.
        fill: colour of what comes in.

    Raises:
        UserError: a number is out of range.
    """

    def __init__(self, distortion_scale: float = 0.5, prob: float = 0.5, fill: float = 0) -> None:
        super().__init__()
        _check_probability("Perspective", prob)
        if not 0 <= distortion_scale <= 1:
            raise UserError(f"Perspective: distortion_scale={distortion_scale}, expected 0 to 1.")
        self.transform = v2.RandomPerspective(distortion_scale, p=1.0)
        self.prob, self.fill = prob, fill

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw the corners and return the transform, or one that does nothing."""
        if self._rand_range() >= self.prob:
            return T.NoOpTransform()
        coefficients = self.transform.make_params([_to_tensor(image)])["coefficients"]
        return PerspectiveTransform(coefficients, self.fill)


class PerspectiveTransform(T.Transform):
    """A perspective map of the image onto itself.

    Args:
        coefficients: a to h of torchvision and Pillow, which map a place of the result to one of the source, in
            continuous coordinates: x' = (a x + b y + c) / (g x + h y + 1), y' = (d x + e y + f) / (g x + h y + 1).
        fill: colour of what comes in from outside of the source.
    """

    def __init__(self, coefficients: Sequence[float], fill: float = 0) -> None:
        super().__init__()
        self.coefficients = [float(value) for value in coefficients]
        self.fill = fill
        self._to_result = np.linalg.inv(np.array([*self.coefficients, 1.0]).reshape(3, 3))

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Return the warped image (H, W, C), bilinear."""
        return self._warped(img, v2.InterpolationMode.BILINEAR, self.fill)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Return the warped mask (H, W), nearest pixel; background comes in."""
        return self._warped(segmentation[:, :, None], v2.InterpolationMode.NEAREST, 0)[:, :, 0]

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Return where the points (N, 2), xy, continuous coordinates of the source, come to lie; float64."""
        points = np.asarray(coords, dtype=np.float64)
        moved = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ self._to_result.T
        return moved[:, :2] / moved[:, 2:]

    def inverse(self) -> PerspectiveTransform:
        """Return the way back; what has left the image does not return with it."""
        return PerspectiveTransform((self._to_result / self._to_result[2, 2]).ravel()[:8].tolist(), self.fill)

    def _warped(self, image: np.ndarray, interpolation: v2.InterpolationMode, fill: float) -> np.ndarray:
        tensor = _to_tensor(image)
        boolean = tensor.dtype == torch.bool
        result = F.perspective(
            tensor.to(torch.uint8) if boolean else tensor,
            None,
            None,
            interpolation=interpolation,
            fill=fill,
            coefficients=self.coefficients,
        )
        return _to_array(result.bool() if boolean else result)


def _check_probability(name: str, prob: float) -> None:
    """Refuse what is no probability.

    Raises:
        UserError: it is outside of 0 to 1.
    """
    if not 0 <= prob <= 1:
        raise UserError(f"{name}: prob={prob}, expected 0 to 1.")


def _bound(transform: v2.Transform, image: Tensor) -> Callable[[Tensor], Tensor]:
    parameters = transform.make_params([image])
    return lambda tensor: transform.transform(tensor, parameters)


def _plain(value: Any) -> Any:
    """Return a config's list as the tuple that torchvision wants."""
    return float(value) if isinstance(value, int | float) else tuple(float(one) for one in value)


def _to_tensor(image: np.ndarray) -> Tensor:
    """Return (C, H, W) of an image (H, W, C)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _to_array(image: Tensor) -> np.ndarray:
    """Return (H, W, C) of an image (C, H, W)."""
    return np.ascontiguousarray(image.numpy().transpose(1, 2, 0))
