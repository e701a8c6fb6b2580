"""Geometric transforms beyond fvcore's: resize, scaled crop, rotation.

Images are (H, W) or (H, W, C); coordinates are floats (N, 2), xy in [0, W] x [0, H], not pixel indices.
"""

from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from fvcore.transforms.transform import CropTransform, Transform, TransformList
from PIL import Image

# PIL's filters as plain numbers, which is what configs and their YAML hold.
NEAREST: int = Image.Resampling.NEAREST.value
BILINEAR: int = Image.Resampling.BILINEAR.value
BICUBIC: int = Image.Resampling.BICUBIC.value

# Stand-ins for the filters where PIL cannot resize the array.
_TORCH_MODES = {NEAREST: "nearest", BILINEAR: "bilinear", BICUBIC: "bicubic"}


def _to_pil(image: np.ndarray) -> Image.Image:
    """Return a PIL image of (H, W), (H, W, 1) or (H, W, C); PIL has no name for a single third axis."""
    return Image.fromarray(image[:, :, 0] if image.ndim > 2 and image.shape[2] == 1 else image)


def _from_pil(result: Image.Image, like: np.ndarray) -> np.ndarray:
    """Return the array of ``result`` with the single channel axis that ``like`` has, if it has one."""
    array = np.asarray(result)
    return array[:, :, None] if like.ndim > 2 and like.shape[2] == 1 else array


class ExtentTransform(Transform):
    """Cut a rectangle out of the image and scale it to the output size; what lies outside becomes zero.

    Args:
        src_rect: x0, y0, x1, y1 of the rectangle in the input image; may reach outside of it.
        output_size: height, width of the result.
        interp: PIL's filter.
        fill: handed to PIL, which heeds it for its own transform objects only.
    """

    def __init__(
        self,
        src_rect: tuple[float, float, float, float],
        output_size: tuple[int, int],
        interp: int = BILINEAR,
        fill: int = 0,
    ) -> None:
        super().__init__()
        self.src_rect, self.output_size = src_rect, output_size
        self.interp, self.fill = interp, fill

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Cut and scale a uint8 image; ``interp`` replaces the filter for this call, 0 (nearest) does not."""
        height, width = self.output_size
        scaled = _to_pil(img).transform(
            (width, height), Image.Transform.EXTENT, self.src_rect, interp or self.interp, self.fill
        )
        return _from_pil(scaled, img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Return new coordinates, float32, relative to the rectangle and scaled like it."""
        height, width = self.output_size
        x0, y0, x1, y1 = self.src_rect
        # Around the rectangle's centre, in this order, for the same rounding as Detectron2 in float32.
        moved = coords.astype(np.float32)
        for axis, low, high, size in ((0, x0, x1, width), (1, y0, y1, height)):
            moved[:, axis] -= 0.5 * (low + high)
            moved[:, axis] *= size / (high - low)
            moved[:, axis] += 0.5 * size
        return moved

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Cut and scale a label map of shape (H, W)."""
        return self.apply_image(segmentation, interp=NEAREST)


class ResizeTransform(Transform):
    """Resize to a given size: uint8 with PIL, which smooths when it shrinks, other types with torch.

    Args:
        h: height of the input, pixels.
        w: width of the input, pixels.
        new_h: height of the output.
        new_w: width of the output.
        interp: PIL's filter, bilinear by default.
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None) -> None:
        super().__init__()
        self.h, self.w = h, w
        self.new_h, self.new_w = new_h, new_w
        self.interp = BILINEAR if interp is None else interp

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize (H, W), (H, W, C) or (H, W, C1, C2); ``interp`` replaces the filter for this call.

        Raises:
            AssertionError: the image has another size than the transform was made for, or over 4 axes.
        """
        assert img.shape[:2] == (self.h, self.w), f"expected {(self.h, self.w)}, got an image {img.shape}"
        assert img.ndim <= 4, img.shape
        interp = self.interp if interp is None else interp
        if img.dtype == np.uint8:
            return _from_pil(_to_pil(img).resize((self.new_w, self.new_h), interp), img)
        return self._resize_with_torch(img, _TORCH_MODES[interp])

    def _resize_with_torch(self, img: np.ndarray, mode: str) -> np.ndarray:
        if min(img.strides, default=0) < 0:
            img = np.ascontiguousarray(img)  # a flipped view has no tensor
        axes = (1,) * (4 - img.ndim) + img.shape[2:]  # as batch and channels
        planes = torch.from_numpy(img).reshape(self.h, self.w, *axes).permute(2, 3, 0, 1)
        align = None if mode == "nearest" else False
        planes = F.interpolate(planes, (self.new_h, self.new_w), mode=mode, align_corners=align)
        return planes.permute(2, 3, 0, 1).reshape(self.new_h, self.new_w, *img.shape[2:]).numpy()

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Scale the coordinates in place, keeping their dtype."""
        coords[:, 0] = coords[:, 0] * (self.new_w / self.w)
        coords[:, 1] = coords[:, 1] * (self.new_h / self.h)
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Resize a label map or mask with the nearest pixel."""
        return self.apply_image(segmentation, interp=NEAREST)

    def inverse(self) -> Transform:
        """Return the resize back to the input's size."""
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


class RotationTransform(Transform):
    """Rotate counter-clockwise.

    Args:
        h: height of the input, pixels.
        w: width of the input, pixels.
        angle: degrees.
        expand: enlarge the canvas to hold the whole rotated image; otherwise it keeps its size.
        center: x, y of the centre in pixels, the image's by default. With ``expand`` it has no effect.
        interp: cv2's filter, linear by default.
    """

    def __init__(
        self,
        h: int,
        w: int,
        angle: float,
        expand: bool = True,
        center: tuple[float, float] | np.ndarray | None = None,
        interp: int | None = None,
    ) -> None:
        super().__init__()
        self.h, self.w, self.angle, self.expand = h, w, angle, expand
        self.image_center = np.array((w / 2, h / 2))
        self.center = self.image_center if center is None else center
        self.interp = cv2.INTER_LINEAR if interp is None else interp
        self.bound_w, self.bound_h = w, h
        if expand:
            cos, sin = abs(np.cos(np.deg2rad(angle))), abs(np.sin(np.deg2rad(angle)))
            self.bound_w, self.bound_h = np.rint([h * sin + w * cos, h * cos + w * sin]).astype(int)
        self.rm_coords = self.create_rotation_matrix()
        # cv2 has its origin in the middle of the first pixel: https://github.com/opencv/opencv/issues/11784
        self.rm_image = self.create_rotation_matrix(offset=-0.5)

    def create_rotation_matrix(self, offset: float = 0) -> np.ndarray:
        """Return the (2, 3) matrix of the rotation with the origin moved by ``offset`` pixels."""
        center_x, center_y = float(self.center[0]) + offset, float(self.center[1]) + offset
        matrix = cv2.getRotationMatrix2D((center_x, center_y), float(self.angle), 1)
        if self.expand:
            old_center = self.image_center + offset
            new_center = np.array([self.bound_w / 2, self.bound_h / 2]) + offset
            matrix[:, 2] += new_center - cv2.transform(old_center[None, None], matrix)[0, 0]
        return matrix

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Rotate an image; ``interp`` replaces the filter for this call.

        Raises:
            AssertionError: the image has another size than the transform was made for.
        """
        if len(img) == 0 or self.angle % 360 == 0:
            return img
        assert img.shape[:2] == (self.h, self.w), f"expected {(self.h, self.w)}, got an image {img.shape}"
        interp = self.interp if interp is None else interp
        return cv2.warpAffine(img, self.rm_image, (int(self.bound_w), int(self.bound_h)), flags=interp)

    def apply_coords(self, coords: Any) -> np.ndarray:
        """Return the rotated coordinates, float64 of shape (N, 2)."""
        coords = np.asarray(coords, dtype=float)
        if len(coords) == 0 or self.angle % 360 == 0:
            return coords
        return cv2.transform(coords[:, None], self.rm_coords)[:, 0]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Rotate a label map with the nearest pixel."""
        return self.apply_image(segmentation, interp=cv2.INTER_NEAREST)

    def inverse(self) -> Transform:
        """Return the rotation back followed by the crop to the input's size.

        Raises:
            NotImplementedError: without ``expand`` the corners are lost.
        """
        if not self.expand:
            raise NotImplementedError("A rotation without expand=True loses the corners and has no inverse.")
        back = RotationTransform(self.bound_h, self.bound_w, -self.angle, True, None, self.interp)
        left, top = (back.bound_w - self.w) // 2, (back.bound_h - self.h) // 2
        return TransformList([back, CropTransform(left, top, self.w, self.h)])
