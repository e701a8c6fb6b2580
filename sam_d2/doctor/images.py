"""Read every image of a file: whether it can be, its size, its kind of pixels, and a digest of them."""

from __future__ import annotations

import hashlib
import os
import threading
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec import UNSET
from PIL import Image

from sam_d2.data.image import MAX_PIXELS, has_deep_colours, image_array, opened_image, orientation_of, size_remedy
from sam_d2.doctor.parts import Part
from sam_d2.errors import BadImageError, TooLargeImageError

_CUT_OFF = ("truncated", "broken data stream", "unrecognized data stream", "decoder error -2")
_ALPHA, _GREY = ("RGBA", "RGBX", "LA", "PA", "La", "RGBa"), ("L", "LA", "La", "1")
_WIDE = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")


@dataclass(frozen=True)
class ImageFacts:
    """What an image file is.

    Attributes:
        kind: of the finding that it cannot be read; "" where it can.
        problem: what the reader said.
        size: (width, height), px, turned as the EXIF orientation says; (0, 0) where unknown.
        stored: the same before turning.
        orientation: of EXIF; 1 is upright.
        mode: Pillow's.
        deep: whether it has colours of 16 bits.
        digest: sha256 of the pixels as training sees them, and of their size.
    """

    kind: str = ""
    problem: str = ""
    size: tuple[int, int] = (0, 0)
    stored: tuple[int, int] = (0, 0)
    orientation: int = 1
    mode: str = ""
    deep: bool = False
    digest: str = ""


class _Pixels:
    """Those that may be decoded at once: threads wait for their share."""

    def __init__(self, number: int) -> None:
        self._free = self._all = number
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, number: int) -> Iterator[None]:
        number = min(number, self._all)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= number)
            self._free -= number
        try:
            yield
        finally:
            with self._changed:
                self._free += number
                self._changed.notify_all()


_decoded = _Pixels(MAX_PIXELS)


def read_images(paths: Iterable[Path]) -> dict[Path, ImageFacts]:
    """Return the facts of image files, each read once, some at a time."""
    unique = list(dict.fromkeys(paths))
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")  # Pillow's, about what becomes a finding
        return dict(zip(unique, pool.map(inspect_image, unique), strict=True))


def inspect_image(path: Path) -> ImageFacts:
    """Return the facts of an image file, which is decoded whole, as training reads it."""
    try:
        with opened_image(path) as image, _decoded.taken(image.width * image.height):
            stored, mode, deep = image.size, image.mode, has_deep_colours(image)
            if mode == "P" and "transparency" in image.info:
                mode = "PA"
            orientation, array = orientation_of(image), image_array(image)
            digest = _digest(array)
    except TooLargeImageError as error:
        return ImageFacts("image-refused", str(error).removeprefix(f"{path}: "))
    except BadImageError as error:
        return _unread(str(error.__cause__ or error).removeprefix(f"{path}: "))
    height, width = array.shape[:2]
    return ImageFacts("", "", (width, height), stored, orientation, mode, deep, digest)


def _unread(problem: str) -> ImageFacts:
    cut_off = any(words in problem.lower() for words in _CUT_OFF)
    return ImageFacts("image-truncated" if cut_off else "image-unreadable", problem)


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest() + "-{}x{}".format(*array.shape[:2])


def check_images(part: Part, facts: dict[Path, ImageFacts]) -> None:
    """Add findings on the images of a file that were read."""
    for place, path in part.paths():
        if (fact := facts.get(path)) is None:
            continue
        if fact.kind:
            fix = "replace the file, or remove the image and its annotations from the dataset file"
            part.report_image(place, "error", "file_name", f"{path}: {fact.problem}", fix, fact.kind)
            continue
        _check_size(part, place, fact)
        for kind, (found, fix) in _pixel_notes(fact).items():
            part.report_image(place, "warning", "file_name", f"{path}: {found}", fix, kind)


def _check_size(part: Part, place: int, fact: ImageFacts) -> None:
    image = part.images[place]
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and fact.size[0] * fact.size[1] > limit:
        found = f"{fact.size[0]} x {fact.size[1]} px, more than {limit:,} pixels"
        fix = "it takes gigabytes to read, and at twice that it is refused: cut it into tiles"
        part.report_image(place, "warning", "file_name", found, fix, "image-too-large")
    if UNSET in (image.width, image.height) or (image.width, image.height) == fact.size:
        return
    found = f"{image.width} x {image.height} px, but the file is {fact.size[0]} x {fact.size[1]}"
    if fact.orientation != 1:
        found += f" after turning it as its EXIF orientation {fact.orientation} says"
        fix = "annotations drawn on the image as stored? then take the orientation out of the file; else write its size"
    elif (image.height, image.width) == fact.size:
        found, fix = f"{found}: width and height are swapped", "write the file's width and height"
    else:
        fix = size_remedy((image.width, image.height), fact.size)
    part.report_image(place, "error", "width, height", found, fix, "image-size")


def _pixel_notes(fact: ImageFacts) -> dict[str, tuple[str, str]]:
    notes = {}
    if fact.orientation not in (0, 1):
        notes["image-exif"] = (
            f"EXIF orientation {fact.orientation}",
            "it is turned before use: its annotations must have been drawn on the turned image",
        )
    if fact.mode in _ALPHA:
        notes["image-alpha"] = (f"mode {fact.mode}", "alpha, or a fourth band, is dropped")
    if fact.deep or fact.mode in _WIDE:
        found = "colours of 16 bits" if fact.deep else f"mode {fact.mode}"
        notes["image-16-bit"] = (found, "it is scaled to 8 bits by its own maximum, image by image")
    if fact.mode in _GREY:
        notes["image-grey"] = (f"mode {fact.mode}", "it becomes three equal channels")
    return notes
