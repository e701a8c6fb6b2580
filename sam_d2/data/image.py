"""Read an image file of any of the kinds that annotated data sets hold, as (H0, W0, 3) uint8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sam_d2.errors import BadImageError, UserError

_WIDE_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")


def read_image(file_name: str | Path, image_format: str = "RGB") -> np.ndarray:
    """Read an image, turned as its EXIF orientation says, as Detectron2 does.

    Grey becomes three equal channels, a palette its colours, alpha is dropped, and wide grey values (16 and 32
    bit, float) are scaled by the image's maximum.

    Args:
        file_name: any file that Pillow reads.
        image_format: ``RGB`` or ``BGR``.

    Returns:
        (H0, W0, 3) uint8.

    Raises:
        BadImageError: the file is missing or cannot be decoded.
    """
    try:
        with Image.open(file_name) as opened:
            return image_array(opened, image_format)
    except FileNotFoundError:
        raise BadImageError(f"{file_name}: no such image file.") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise BadImageError(
            f"{file_name}: not a readable image ({error}). Replace the file or leave it out."
        ) from error


def image_array(image: Image.Image, image_format: str = "RGB") -> np.ndarray:
    """Return an opened image as :func:`read_image` does.

    Args:
        image: of any mode.
        image_format: ``RGB`` or ``BGR``.

    Returns:
        (H0, W0, 3) uint8.

    Raises:
        UserError: there is no such format.
    """
    if image_format not in ("RGB", "BGR"):
        raise UserError(f"model.input_format={image_format!r}: expected RGB or BGR.")
    image = ImageOps.exif_transpose(image)
    array = _scaled(image) if image.mode in _WIDE_MODES else np.asarray(image.convert("RGB"))
    return np.ascontiguousarray(array[:, :, ::-1] if image_format == "BGR" else array)


def _scaled(image: Image.Image) -> np.ndarray:
    values = np.nan_to_num(np.asarray(image, dtype=np.float64)).clip(min=0)
    grey = (
        (values * (255.0 / max(values.max(), 1e-12))).round().astype(np.uint8)
        if values.any()
        else values.astype(np.uint8)
    )
    return np.repeat(grey[:, :, None], 3, axis=2)
