"""Read an image file of any of the kinds that annotated data sets hold, as (H0, W0, 3) uint8."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from sam_d2.errors import BadImageError, TooLargeImageError, UserError

MAX_PIXELS = 178_956_970
"""Of an image: half a gigabyte as RGB, 1.3 while it is decoded. A file of some kilobytes may say that it has more."""
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""Pillow's names of what is read. It would read EPS too, which is a program that it has Ghostscript run."""
_BAND = 256
"""Rows of an image that are scaled at once."""
_PIXELS_AT_ONCE = 1 << 24
"""Of an image that is made RGB: Pillow's copies of a larger part would take more memory than the result."""
_EXIF_ORIENTATION = 0x0112
_COLOURS = ("RGB", "RGBA", "RGBX")
_WIDE_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")


def read_image(file_name: str | Path, image_format: str = "RGB") -> np.ndarray:
    """Read an image, turned as its EXIF orientation says, as Detectron2 does.

    Grey becomes three equal channels, a palette its colours, alpha is dropped, and wide values (grey of 16 and 32 bit
    and float, colours of 16 bit) are scaled by the image's maximum.

    Args:
        file_name: of one of :data:`FORMATS`, whatever it is called.
        image_format: ``RGB`` or ``BGR``.

    Returns:
        (H0, W0, 3) uint8.

    Raises:
        BadImageError: the file is missing or cannot be decoded; a :class:`~sam_d2.errors.TooLargeImageError` where it
            has more than :data:`MAX_PIXELS`.
    """
    with opened_image(file_name) as opened:
        return image_array(opened, image_format)


@contextmanager
def opened_image(file_name: str | Path) -> Iterator[Image.Image]:
    """Open an image file whose pixels are decoded in the block, with the errors of :func:`read_image`."""
    try:
        with Image.open(file_name, formats=_known_formats()) as opened:
            pixels = opened.width * opened.height
            if pixels > MAX_PIXELS:
                raise TooLargeImageError(
                    f"{file_name}: it has {pixels} pixels, more than {MAX_PIXELS}. Cut it into tiles."
                )
            yield opened
    except UserError:
        raise
    except FileNotFoundError:
        raise BadImageError(f"{file_name}: no such image file.") from None
    except Image.DecompressionBombError as error:
        raise TooLargeImageError(f"{file_name}: {str(error).partition(',')[0]}. Cut it into tiles.") from error
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
    if has_deep_colours(image):
        image = _of_8_bits(image)
    if orientation_of(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in _WIDE_MODES:
        array = np.repeat(_scaled(np.asarray(image))[:, :, None], 3, axis=2)
    else:
        array = _as_rgb(image)
    return np.ascontiguousarray(array[:, :, ::-1] if image_format == "BGR" else array)


def orientation_of(image: Image.Image) -> int:
    """Return the orientation that an image's EXIF data say; 1 is upright, and what says none."""
    return int(image.getexif().get(_EXIF_ORIENTATION, 1))


def _as_rgb(image: Image.Image) -> np.ndarray:
    rows = max(1, _PIXELS_AT_ONCE // max(1, image.width))
    if image.height <= rows:
        return np.asarray(image.convert("RGB"))
    rgb = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        rgb[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)).convert("RGB"))
    return rgb


def size_remedy(recorded: tuple[int, int], actual: tuple[int, int]) -> str:
    """Return what to do about an image file of another size than its annotations say.

    Args:
        recorded: (width, height), px, with the annotations.
        actual: (width, height), px, of the file.
    """
    factor = actual[0] / recorded[0]
    if abs(recorded[1] * factor - actual[1]) <= 1:  # by rounding
        return (
            f"it is {factor:.3g} times as large as the image that was annotated: put that one back, or scale the "
            "annotations with it"
        )
    return "put back the image that was annotated, or, if the annotations fit the file, write its width and height"


def has_deep_colours(image: Image.Image) -> bool:
    """Tell whether an opened image, not decoded yet, has colours of 16 bits, of which Pillow would keep the upper 8."""
    layouts = (str(part.args[0] if isinstance(part.args, tuple) else part.args) for part in getattr(image, "tile", ()))
    return image.format in ("PNG", "TIFF") and image.mode in _COLOURS and any(";16" in layout for layout in layouts)


def _of_8_bits(image: Image.Image) -> Image.Image:
    file = image.fp  # type: ignore[attr-defined]
    place = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(place)
    orientation = orientation_of(image)  # a TIFF says none any more once it is decoded
    image.load()  # an error where the file is cut off, of which OpenCV would give what there is
    values = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16 or values.ndim != 3:  # a layout that OpenCV does not read
        return image
    scaled = Image.fromarray(_scaled(values[:, :, 2::-1]))  # it gives BGR, and alpha behind them
    scaled.getexif()[_EXIF_ORIENTATION] = orientation
    return scaled


def _scaled(values: np.ndarray) -> np.ndarray:
    # In bands: as float64 a large image would take many times its memory.
    bands = [slice(row, row + _BAND) for row in range(0, len(values), _BAND)]
    highest = max(_exact(values[band]).max() for band in bands)
    scaled = np.empty(values.shape, dtype=np.uint8)
    for band in bands:
        scaled[band] = (_exact(values[band]) * (255.0 / max(highest, 1e-12))).round()
    return scaled


def _exact(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values.astype(np.float64)).clip(min=0)
