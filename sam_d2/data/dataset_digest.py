"""A short name for the content of a dataset, to tell whether two trainings see the same images and annotations."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Protocol

import numpy as np

_DIGITS = 16


class Hash(Protocol):
    """What of :mod:`hashlib` is used here."""

    def update(self, data: bytes, /) -> None:
        """Take more bytes in."""


def dataset_digest(dataset: Sequence[Mapping[str, Any]]) -> str:
    """Return the first 16 hexadecimal digits of a sha256 over dataset dicts, in their order.

    File names count from the folder that all of them lie in, so a dataset may be moved. The images' pixels are not
    read. Numbers are compared as 64-bit floats: 1 and 1.0 are the same.

    Args:
        dataset: Detectron2's dataset dicts, any keys; read one at a time by index.
    """
    names: dict[str, list[str]] = {}  # by key
    for index in range(len(dataset)):  # read twice, because all at once may be more than the memory holds
        for key, value in dataset[index].items():
            if key.endswith("file_name"):
                names.setdefault(key, []).append(str(value))
    shared = {key: _shared_folders(found) for key, found in names.items()}
    digest = hashlib.sha256()
    for image in map(dataset.__getitem__, range(len(dataset))):
        keys = shared.keys() & image.keys()
        relative = {key: "/".join(PurePath(str(image[key])).parts[shared[key] :]) for key in keys}
        _feed(digest, {**image, **relative})
    return digest.hexdigest()[:_DIGITS]


def _shared_folders(names: Iterable[str]) -> int:
    """Return how many leading folders all file names have in common."""
    folders = [PurePath(name).parent.parts for name in names]
    first, last = min(folders), max(folders)
    return next((i for i, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))


def _feed(digest: Hash, value: Any) -> None:
    """Hash plain values of any depth so that different ones give different bytes."""
    if isinstance(value, Mapping):
        digest.update(b"{%d" % len(value))
        for key in sorted(value, key=str):
            _feed(digest, str(key))
            _feed(digest, value[key])
    elif isinstance(value, np.ndarray):
        _feed(digest, value.tolist())
    elif isinstance(value, str | bytes):
        text = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        digest.update(b"s%d:" % len(text) + text)
    elif isinstance(value, Sequence):
        try:  # polygons are most of a dataset, and this is many times as fast as one number after the other
            numbers = array("d", value).tobytes()
        except TypeError:
            digest.update(b"[%d" % len(value))
            for item in value:
                _feed(digest, item)
        else:
            digest.update(b"n%d:" % len(value) + numbers)
    elif isinstance(value, int | float | np.number):
        digest.update(b"f" + array("d", [float(value)]).tobytes())
    else:
        digest.update(repr(value).encode())
