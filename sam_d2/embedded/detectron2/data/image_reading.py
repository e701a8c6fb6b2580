"""Image files as arrays: orientation, channel order, agreement with the annotation."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from detectron2.utils.file_io import PathManager

_EXIF_ORIENTATION = 0x0112
# The value of the tag -> what has to be done to see the image upright (EXIF 2.32, 4.6.4 A).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# ITU-R BT.601; rows are the outputs. The inverse is the published one, not the matrix's own.
_YUV_FROM_RGB = np.array([[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]])
_RGB_FROM_YUV = np.array([[1.0, 0.0, 1.13983], [1.0, -0.39465, -0.58060], [1.0, 2.03211, 0.0]])


class SizeMismatchError(ValueError):
    """The image file has another size than its annotation says."""


def convert_PIL_to_numpy(image: Image.Image, format: str | None) -> np.ndarray:
    """Return a PIL image as an array.

    Args:
        image: any mode.
        format: one of PIL's modes, "BGR" or "YUV-BT.601"; None keeps the image's own mode.

    Returns:
        (H, W, C) uint8 in most formats, (H, W, 1) for "L", float64 with Y in [0, 1] for "YUV-BT.601".
    """
    if format is not None:
        image = image.convert("RGB" if format in ("BGR", "YUV-BT.601") else format)
    array = np.asarray(image)
    if format == "L":
        return array[:, :, None]
    if format == "BGR":
        return array[:, :, ::-1]
    if format == "YUV-BT.601":
        return np.dot(array / 255.0, _YUV_FROM_RGB.T)
    return array


def convert_image_to_rgb(image: np.ndarray | torch.Tensor, format: str) -> np.ndarray:
    """Return an image array as RGB.

    Args:
        image: (H, W, C) in ``format``.
        format: as in :func:`read_image`.

    Returns:
        (H, W, 3) in [0, 255], uint8 or float.
    """
    array = image.cpu().numpy() if isinstance(image, torch.Tensor) else image
    if format == "BGR":
        return array[:, :, [2, 1, 0]]
    if format == "YUV-BT.601":
        return np.dot(array, _RGB_FROM_YUV.T) * 255.0
    array = (array[:, :, 0] if format == "L" else array).astype(np.uint8)
    return np.asarray(Image.fromarray(array, mode=format).convert("RGB"))


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Read an image file, upright as its EXIF tag says.

    Args:
        file_name: a path.
        format: one of PIL's modes, "BGR" or "YUV-BT.601"; None keeps the file's own mode.

    Returns:
        See :func:`convert_PIL_to_numpy`.
    """
    with PathManager.open(file_name, "rb") as file:
        return convert_PIL_to_numpy(_upright(Image.open(file)), format)


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose, which also rewrites the tag block and fails where that is damaged.
    try:
        method = _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # whatever a damaged block raises: the pixels are still good
        return image
    return image if method is None else image.transpose(method)


def check_image_size(dataset_dict: dict[str, Any], image: np.ndarray) -> None:
    """Check the image's size against the record's, and write it there where the record has none.

    Args:
        dataset_dict: a dataset dict; "width" and "height" are filled in.
        image: (H, W, ...).

    Raises:
        SizeMismatchError: the sizes differ.
    """
    height, width = image.shape[:2]
    if "width" in dataset_dict or "height" in dataset_dict:
        expected = (dataset_dict["width"], dataset_dict["height"])
        if (width, height) != expected:
            place = f" for image {dataset_dict['file_name']}" if "file_name" in dataset_dict else ""
            raise SizeMismatchError(
                f"Mismatched image shape{place}, got {(width, height)}, expect {expected}."
                " Please check the width/height in your annotation."
            )
    dataset_dict.setdefault("width", width)
    dataset_dict.setdefault("height", height)
