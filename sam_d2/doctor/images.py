"""Read every image of a file: whether it can be, its size, its kind of pixels, and a digest of them."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec import UNSET
from PIL import Image

from sam_d2.data.image import read_image
from sam_d2.doctor.parts import Part
from sam_d2.errors import UserError

_EXIF_ORIENTATION = 0x0112
_PNG, _PNG_BIT_DEPTH = b"\x89PNG\r\n\x1a\n", 24  # place of the byte that says it
_CUT_OFF = ("truncated", "broken data stream", "unrecognized data stream", "decoder error -2")
_ALPHA, _GREY = ("RGBA", "LA", "PA", "La", "RGBa"), ("L", "LA", "La", "1")
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
        deep: a PNG of 16 bits whose colours Pillow cuts to 8.
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


def read_images(paths: Iterable[Path]) -> dict[Path, ImageFacts]:
    """Return the facts of image files, each read once, some at a time."""
    unique = list(dict.fromkeys(paths))
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")  # Pillow's, about what becomes a finding
        return dict(zip(unique, pool.map(inspect_image, unique), strict=True))


def inspect_image(path: Path) -> ImageFacts:
    """Return the facts of an image file, which is decoded whole, as training reads it."""
    try:
        with Image.open(path) as image:
            stored, mode = image.size, image.mode
            orientation = int(image.getexif().get(_EXIF_ORIENTATION, 1))
            if mode == "P" and "transparency" in image.info:
                mode = "PA"
    except Image.DecompressionBombError as error:
        return ImageFacts("image-refused", str(error))
    except Exception as error:  # a damaged file makes decoders stumble over anything
        return _unread(str(error))
    try:
        array = read_image(path)
    except UserError as error:
        return _unread(str(error).removeprefix(f"{path}: "))
    height, width = array.shape[:2]
    with path.open("rb") as file:
        head = file.read(_PNG_BIT_DEPTH + 1)
    deep = head[: len(_PNG)] == _PNG and head[_PNG_BIT_DEPTH] == 16 and mode not in _WIDE
    return ImageFacts("", "", (width, height), stored, orientation, mode, deep, _digest(array))


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
        fix = "was the image resized after annotating? put the original in place, or write the file's width and height"
    part.report_image(place, "error", "width, height", found, fix, "image-size")


def _pixel_notes(fact: ImageFacts) -> dict[str, tuple[str, str]]:
    notes = {}
    if fact.orientation not in (0, 1):
        notes["image-exif"] = (
            f"EXIF orientation {fact.orientation}",
            "it is turned before use: its annotations must have been drawn on the turned image",
        )
    if fact.mode in _ALPHA:
        notes["image-alpha"] = (f"mode {fact.mode}", "the alpha channel is dropped")
    if fact.mode in _WIDE:
        notes["image-16-bit"] = (f"mode {fact.mode}", "it is scaled to 8 bits by its own maximum, image by image")
    elif fact.deep:
        notes["image-16-bit"] = ("colours of 16 bits", "the lower 8 bits are dropped")
    if fact.mode in _GREY:
        notes["image-grey"] = (f"mode {fact.mode}", "it becomes three equal channels")
    return notes
