"""Read an image file of any of the kinds that annotated data sets hold, as (H0, W0, 3) uint8."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from sam_d2.errors import BadImageError, UserError

MAX_PIXELS = 178_956_970
"""Of an image: half a gigabyte as RGB. A file of some kilobytes may say that it has more."""
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""Pillow's names of what is read. It would read EPS too, which is a program that it has Ghostscript run."""
_BAND = 256
"""Rows of an image that are scaled at once."""
_WIDE_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")


def read_image(file_name: str | Path, image_format: str = "RGB") -> np.ndarray:
    """Read an image, turned as its EXIF orientation says, as Detectron2 does.

    Grey becomes three equal channels, a palette its colours, alpha is dropped, and wide grey values (16 and 32
    bit, float) are scaled by the image's maximum.

    Args:
        file_name: of one of :data:`FORMATS`, whatever it is called.
        image_format: ``RGB`` or ``BGR``.

    Returns:
        (H0, W0, 3) uint8.

    Raises:
        BadImageError: the file is missing, cannot be decoded, or has more than :data:`MAX_PIXELS`.
    """
    try:
        with Image.open(file_name, formats=_known_formats()) as opened:
            pixels = opened.width * opened.height
            if pixels > MAX_PIXELS:
                raise BadImageError(f"{file_name}: it has {pixels} pixels, more than {MAX_PIXELS}. Cut it into tiles.")
            return image_array(opened, image_format)
    except UserError:
        raise
    except FileNotFoundError:
        raise BadImageError(f"{file_name}: no such image file.") from None
    except Exception as error:  # a damaged file makes decoders stumble over anything
        raise BadImageError(
            f"{file_name}: not a readable image ({error}). Replace the file or leave it out."
        ) from error


@functools.cache
def _known_formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]  # AVIF depends on Pillow's version


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
    values = np.asarray(image)
    # In bands: as float64 a large image would take many times its memory.
    bands = [slice(row, row + _BAND) for row in range(0, len(values), _BAND)]
    highest = max(_exact(values[band]).max() for band in bands)
    grey = np.empty(values.shape, dtype=np.uint8)
    for band in bands:
        grey[band] = (_exact(values[band]) * (255.0 / max(highest, 1e-12))).round()
    return np.repeat(grey[:, :, None], 3, axis=2)


def _exact(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values.astype(np.float64)).clip(min=0)
