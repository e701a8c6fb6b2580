"""A short name for the content of a dataset, to tell whether two trainings see the same images and annotations."""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import PurePath
from typing import Any

import numpy as np

_DIGITS = 16
_DOUBLE = struct.Struct("d").pack


def dataset_digest(dataset: Sequence[Mapping[str, Any]]) -> str:
    """Return the first 16 hexadecimal digits of a sha256 over dataset dicts, in their order.

    File names count from the folder that all of them lie in, so a dataset may be moved. The images' pixels are not
    read. Numbers are compared as 64-bit floats: 1 and 1.0 are the same.

    Args:
        dataset: Detectron2's dataset dicts, any keys; read one at a time by index.
    """
    names: dict[str, list[str]] = {}  # by key
    named = getattr(dataset, "undecoded", dataset.__getitem__)
    for index in range(len(dataset)):  # read twice, because all at once may be more than the memory holds
        for key, value in named(index).items():
            if key.endswith("file_name"):
                names.setdefault(key, []).append(str(value))
    shared = {key: _shared_folders(found) for key, found in names.items()}
    digest = hashlib.sha256()
    for image in map(dataset.__getitem__, range(len(dataset))):
        keys = shared.keys() & image.keys()
        relative = {key: "/".join(PurePath(str(image[key])).parts[shared[key] :]) for key in keys}
        parts: list[bytes] = []
        _add(parts, {**image, **relative})
        digest.update(b"".join(parts))
    return digest.hexdigest()[:_DIGITS]


def _shared_folders(names: Iterable[str]) -> int:
    """Return how many leading folders all file names have in common."""
    folders = [PurePath(name).parent.parts for name in names]
    first, last = min(folders), max(folders)
    return next((i for i, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))


def _add(parts: list[bytes], value: Any) -> None:
    """Append bytes for plain values of any depth, others for every other value.

    The types that files are read into come first: a dataset may have millions of them, and one that is looked up among
    the abstract types takes several times as long.
    """
    kind = type(value)
    if kind is float or kind is int:
        parts.append(b"f" + _DOUBLE(value))
    elif kind is list:
        _add_sequence(parts, value)
    elif kind is dict:
        names, keys = _sorted_keys(tuple(value))
        parts.append(b"{%d" % len(keys))
        for name, key in zip(names, keys, strict=True):
            parts.append(name)
            _add(parts, value[key])
    elif isinstance(value, str | bytes):
        parts.append(_text(value))
    elif isinstance(value, Mapping):
        _add(parts, dict(value))
    elif isinstance(value, np.ndarray):
        _add(parts, value.tolist())
    elif isinstance(value, Sequence):
        _add_sequence(parts, list(value))
    elif isinstance(value, int | float | np.number):
        parts.append(b"f" + _DOUBLE(value))
    else:
        parts.append(repr(value).encode())


def _add_sequence(parts: list[bytes], values: list[Any]) -> None:
    if not values or type(values[0]) not in (list, dict):
        try:  # polygons are most of a dataset, and this is many times as fast as one number after the other
            numbers = array("d", values).tobytes()
        except TypeError:
            pass
        else:
            parts.append(b"n%d:" % len(values) + numbers)
            return
    parts.append(b"[%d" % len(values))
    for item in values:
        _add(parts, item)


def _text(text: str | bytes) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return b"s%d:" % len(encoded) + encoded


@lru_cache
def _sorted_keys(keys: tuple[Any, ...]) -> tuple[list[bytes], list[Any]]:
    """Return the keys of a mapping in the order of their names, and before them the bytes of these."""
    ordered = sorted(keys, key=str)
    return [_text(str(key)) for key in ordered], ordered
