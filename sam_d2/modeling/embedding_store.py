"""Image embeddings on disk: a file for each, checked when it is read, within a limit that processes share.

Files are written under a temporary name and renamed, so a file is whole or not there, whoever else writes it and
whenever a process is killed; what a failing disk makes of it is found by its checksum.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor

_SUFFIX = ".embedding"
_HEADER_BYTES = 256
_COUNT_BYTES = 20
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_ABANDONED_SECONDS = 3600
"""Age at which a temporary file belongs to nobody: writing one takes less than a second."""


class _Header(msgspec.Struct):
    """What a file says of the values behind it."""

    version: Literal[2]  # 1 had a checksum of the values alone
    shape: list[Annotated[int, msgspec.Meta(ge=0)]]
    dtype: Literal["float32", "bfloat16"]
    crc32: int

    @property
    def bytes(self) -> int:
        """Of the values."""
        return math.prod(self.shape) * _DTYPES[self.dtype].itemsize


class EmbeddingStore:
    """Embeddings by name in a folder, added until all folders beside it hold ``max_bytes``.

    Args:
        root: of the cache; the limit counts all of it.
        folder: name of the folder in it that has the embeddings of one encoder.
        max_bytes: most bytes under ``root``; what does not fit is not added, and nothing is ever removed for it.

    Attributes:
        damaged: files that were found damaged so far, and removed.
    """

    def __init__(self, root: Path, folder: str, *, max_bytes: int) -> None:
        self.root = root
        self.folder = root / folder
        self.max_bytes = max_bytes
        self.damaged = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked() as count:
            _remove_abandoned(root)
            count.write(_bytes_of_all(root))

    def holds(self, name: str) -> bool:
        """Return whether there is an embedding of that name, not looking whether it is damaged."""
        return self._path(name).exists()

    def read(self, name: str) -> Tensor | None:
        """Return an embedding, memory-mapped, its checksum verified; None where it is absent or damaged."""
        path = self._path(name)
        try:
            mapped = np.memmap(path, dtype=np.uint8, mode="c")  # c: torch wants to be allowed to write
        except FileNotFoundError:
            return None
        except (OSError, ValueError):  # unreadable, or empty
            self._remove(path)
            return None
        header = _parsed(mapped[:_HEADER_BYTES].tobytes())
        values = mapped[_HEADER_BYTES:]
        if (
            header is None
            or header.bytes != len(values)
            or _checksum(header.shape, header.dtype, values) != header.crc32
        ):
            self._remove(path)
            return None
        return torch.from_numpy(values).view(_DTYPES[header.dtype]).view(header.shape)

    def write(self, name: str, embedding: Tensor) -> bool:
        """Add an embedding, float32 or bfloat16, and return whether there was room for it.

        Raises:
            OSError: the disk is full or may not be written to.
        """
        values = embedding.detach().cpu().contiguous()
        content = values.view(torch.uint8).numpy().reshape(-1)
        header: dict[str, Any] = {
            "version": 2,
            "shape": list(values.shape),
            "dtype": str(values.dtype).removeprefix("torch."),
        }
        header["crc32"] = _checksum(header["shape"], header["dtype"], content)
        size = _HEADER_BYTES + content.nbytes
        path = self._path(name)
        with self._locked() as count:
            if not self._has_room(count, path, size):
                return False
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(json.dumps(header).encode().ljust(_HEADER_BYTES))
                file.write(content.data)
            # Not before, so that nothing counts that was not written, or that another process has written too.
            with self._locked() as count:
                if not self._has_room(count, path, size):
                    return False
                used = count.read() + size - _bytes(path)
                temporary.replace(path)
                count.write(used)
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _has_room(self, count: _Count, path: Path, size: int) -> bool:
        return count.read() + size - _bytes(path) <= self.max_bytes

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}{_SUFFIX}"  # a folder of 100,000 files is slow on many disks

    def _remove(self, path: Path) -> None:
        self.damaged += 1
        with self._locked() as count:
            count.write(count.read() - _bytes(path))
            path.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[_Count]:
        """Hold the lock that all processes of a cache share, and with it the number of its bytes."""
        self.root.mkdir(parents=True, exist_ok=True)  # again where somebody has deleted it
        descriptor = os.open(self.root / ".bytes", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield _Count(descriptor, self.root)
        finally:
            os.close(descriptor)


class _Count:
    """The number of a cache's bytes, in an open file."""

    def __init__(self, descriptor: int, root: Path) -> None:
        self.descriptor = descriptor
        self.root = root

    def read(self) -> int:
        try:
            return int(os.pread(self.descriptor, _COUNT_BYTES, 0))
        except ValueError:  # empty, or damaged
            return _bytes_of_all(self.root)

    def write(self, value: int) -> None:
        # Always as long, over what is there: at no moment is there less for whoever comes after a killed process.
        os.pwrite(self.descriptor, f"{value:0{_COUNT_BYTES}d}".encode(), 0)


def _bytes_of_all(root: Path) -> int:
    return sum(map(_bytes, root.rglob(f"*{_SUFFIX}")))


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _checksum(shape: list[int], dtype: str, values: np.ndarray) -> int:
    """Return the CRC-32 of what the values are and of the values."""
    return zlib.crc32(values.data, zlib.crc32(json.dumps([shape, dtype]).encode()))


def _parsed(header: bytes) -> _Header | None:
    try:
        return msgspec.json.decode(header, type=_Header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _remove_abandoned(root: Path) -> None:
    """Remove temporary files of writers that were killed."""
    for file in root.rglob(f".*{_SUFFIX}.*.tmp"):
        try:
            if time.time() - file.stat().st_mtime > _ABANDONED_SECONDS:
                file.unlink()
        except FileNotFoundError:
            continue  # its writer was not killed
