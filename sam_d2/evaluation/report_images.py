"""Gallery images as JPEGs that together stay within a limit, whatever the dataset."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

MOST_BYTES = 1_700_000
"""Of one gallery; base64 makes 2.3 MB of it in the page."""
_QUALITIES = (90, 80, 70, 60)
_SHRINK = 0.75

Image = npt.NDArray[np.uint8]


def encode_within(images: Sequence[Image], most_bytes: int = MOST_BYTES) -> list[bytes]:
    """Encode at the highest quality, and then at the largest size, at which all fit together.

    Args:
        images: (h, w, 3) uint8 RGB each.
        most_bytes: Of all together.
    """
    scale = 1.0
    while True:
        scaled = [_resized(image, scale) for image in images]
        for quality in _QUALITIES:
            encoded = [_jpeg(image, quality) for image in scaled]
            if sum(map(len, encoded)) <= most_bytes or all(max(image.shape[:2]) == 1 for image in scaled):
                return encoded
        scale *= _SHRINK


def _resized(image: Image, scale: float) -> Image:
    if scale == 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _jpeg(image: Image, quality: int) -> bytes:
    # colour at full resolution: outlines are two pixels wide
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    done, data = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality, *sampling])
    if not done:
        raise ValueError(f"an image of shape {image.shape} cannot be encoded as JPEG")
    return data.tobytes()
