"""Embeddings of a frozen image encoder, computed once per image and kept on disk between steps, epochs and runs."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sam_d2.errors import UserError
from sam_d2.modeling.embedding_store import EmbeddingStore
from sam_d2.modeling.float32_precision import float32_precision

logger = logging.getLogger(__name__)

VARIANT = "cache_variant"
"""Key of a sample that says which form of the image file it holds."""
DTYPES = ("float32", "bfloat16")
_PROGRESS_SECONDS = 30
_PLAIN = (bool, int, float, str, type(None))


class EmbeddingCache:
    """Embeddings by image file, its variant, and everything else that decides their bits.

    An image is encoded by itself, and a step gets what was stored also when it was stored just then: it makes no
    difference when an image was first seen, so a training that goes on is the one that was not interrupted.

    Args:
        folder: where they are kept; runs may share it.
        dtype: float32, or bfloat16 for half of the space and rounded values.
        max_gib: most space in ``folder``; an embedding that does not fit is computed at each visit.
        expected: embeddings of a whole training set, for the progress; None where it is not known.

    Attributes:
        found: embeddings that were read.
        added: that were computed and kept.
        left_out: that were computed and not kept, for want of space.

    Raises:
        UserError: the dtype is another, or the space is not positive.
    """

    def __init__(
        self, folder: str | Path, *, dtype: str = "float32", max_gib: float = 100.0, expected: int | None = None
    ) -> None:
        if dtype not in DTYPES:
            raise UserError(f"train.embedding_cache.dtype={dtype!r}: expected {' or '.join(DTYPES)}.")
        if not max_gib > 0:
            raise UserError(f"train.embedding_cache.max_gib={max_gib}: expected more than 0.")
        self.folder = Path(folder)
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.max_bytes = int(max_gib * 2**30)
        self.expected = expected
        self.found = self.added = self.left_out = 0
        self._stores: dict[str, EmbeddingStore] = {}
        # What the weights were read from, and at which of its changes: they are hashed again after another.
        self._encoder: nn.Module | None = None
        self._state: list[tuple[int, int]] = []
        self._values: dict[str, Any] = {}
        self._names = _EntryNames()
        self._seen: set[str] = set()
        self._seconds = 0.0
        self._told_at = time.monotonic()

    def serves(self, samples: Sequence[Mapping[str, Any]], *, training: bool) -> bool:
        """Tell whether the embeddings of a batch are the cache's business.

        All of a training's are, and at a test those of image files, unless rounding would change its figures.
        """
        return training or (self.dtype == torch.float32 and all(map(_is_named, samples)))

    def embeddings(self, model: Any, samples: Sequence[Mapping[str, Any]]) -> Tensor:
        """Return the embeddings of a batch, read or computed.

        Args:
            model: a :class:`~sam_d2.modeling.sam.PromptableSAM` with a frozen encoder.
            samples: of the batch, with ``file_name``, ``height``, ``width`` and ``cache_variant``; ``image`` is looked
                at where an embedding is computed.

        Returns:
            (B, C, S/p, S/p) float32 on the model's device.

        Raises:
            UserError: a sample does not say which variant of which file it is, or the disk is full.
        """
        store = self._store(model)
        rows = []
        for sample in samples:
            name = self._names(sample)
            stored = store.read(name)
            if stored is None:
                stored = self._computed(store, name, model, sample)
            else:
                self.found += 1
            self._seen.add(name)
            rows.append(stored.to(model.device).float())
        self._tell()
        return torch.stack(rows)

    def lookup(self, model: Any) -> EmbeddingLookup:
        """Return what tells a mapper which images it need not read, for a model as it is run at the moment."""
        return EmbeddingLookup(self._store(model), self._names)

    def report(self) -> None:
        """Log what the cache has done for the run."""
        damaged = sum(store.damaged for store in self._stores.values())
        logger.info(
            "Embedding cache %s: %d read, %d added%s%s",
            self.folder,
            self.found,
            self.added,
            f", {damaged} found damaged and computed again" if damaged else "",
            f", {self.left_out} computed that did not fit (train.embedding_cache.max_gib)" if self.left_out else "",
        )

    def _computed(self, store: EmbeddingStore, name: str, model: Any, sample: Mapping[str, Any]) -> Tensor:
        start = time.perf_counter()
        embedding = model.encode(model.preprocess([sample]).tensor)[0].detach().to(self.dtype)
        with self._told():
            kept = store.write(name, embedding)
        self._seconds += time.perf_counter() - start
        self.added += kept
        if not kept:
            if not self.left_out:
                logger.warning(
                    "Embedding cache %s is full (train.embedding_cache.max_gib): what does not fit is computed at each "
                    "visit",
                    self.folder,
                )
            self.left_out += 1
        return embedding

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say of a disk that is full or may not be written to which it is: the run's may be another."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"embedding cache {self.folder}: cannot be written ({error.strerror}). Free some space, lower "
                "train.embedding_cache.max_gib, or name another train.embedding_cache.folder."
            ) from error

    def _store(self, model: Any) -> EmbeddingStore:
        """Return the store of embeddings that this model computes on its device, as it is run at the moment."""
        device, encoder = model.device, model.image_encoder
        weights = [*encoder.parameters(), *encoder.buffers(), model.pixel_mean, model.pixel_std]
        state = [(value.data_ptr(), value._version) for value in weights]
        if self._encoder is not encoder or self._state != state:
            self._values = {
                "encoder": module_digest(encoder),
                "pixel_mean": model.pixel_mean.flatten().tolist(),
                "pixel_std": model.pixel_std.flatten().tolist(),
            }
            self._encoder, self._state = encoder, state
        parts = {
            **self._values,
            "canvas": model.canvas,
            "input_format": model.input_format,
            "dtype": str(self.dtype),
            "autocast": str(torch.get_autocast_dtype(device.type)) if torch.is_autocast_enabled(device.type) else None,
            "float32": float32_precision(),
            "compiled": getattr(encoder, "_compiled_call_impl", None) is not None,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "torch": str(torch.__version__),
        }
        key = hashlib.sha256(repr(sorted(parts.items())).encode()).hexdigest()[:32]
        if key not in self._stores:
            with self._told():
                self._stores[key] = EmbeddingStore(self.folder, key, max_bytes=self.max_bytes)
        return self._stores[key]

    def _tell(self) -> None:
        computed = self.added + self.left_out
        if computed and self.expected and len(self._seen) < self.expected:
            now = time.monotonic()
            if now - self._told_at > _PROGRESS_SECONDS:
                self._told_at = now
                logger.info(
                    "Embedding cache: %d of up to %d seen, %d added, %.1f s each",
                    len(self._seen),
                    self.expected,
                    self.added,
                    self._seconds / computed,
                )


class EmbeddingLookup:
    """Tells of a sample whether its embedding is kept; a loader's processes may have copies.

    Args:
        store: of the embeddings that the model asks for.
        names: of its entries.
    """

    def __init__(self, store: EmbeddingStore, names: _EntryNames) -> None:
        self._store = store
        self._names = names

    def __call__(self, sample: Mapping[str, Any]) -> bool:
        """Return whether there is an entry, which may turn out to be damaged, for a sample of an image file."""
        try:
            return self._store.holds(self._names(sample))
        except OSError:  # no such file, for one: whoever reads the image says so
            return False


class _EntryNames:
    """Names of entries: all of a sample that decides its embedding.

    The size is in it, although the file has it too, because it is the annotations': of an image that has another one
    there is no entry, so it is read, and found to be wrong.
    """

    def __init__(self) -> None:
        self._files: dict[str, tuple[int, int, str]] = {}

    def __call__(self, sample: Mapping[str, Any]) -> str:
        """Return the name of a sample's entry.

        Raises:
            UserError: it does not say which variant of which file it is.
            OSError: the file cannot be read.
        """
        return f"{self._sha256(_file_of(sample))}-{sample[VARIANT]}-{sample['width']}x{sample['height']}"

    def _sha256(self, path: str) -> str:
        """Return the sha256 of a file, which is read again only where its size or time has changed."""
        status = Path(path).stat()
        known = self._files.get(path)
        if known is None or known[:2] != (status.st_size, status.st_mtime_ns):
            digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            known = self._files[path] = (status.st_size, status.st_mtime_ns, digest)
        return known[2]


def module_digest(module: nn.Module) -> str:
    """Return a sha256 of classes, parameters and buffers to the bit, and of settings that are plain values.

    Settings are attributes; of those that are objects of their own, such as functions, nothing is known but that the
    class sets them.
    """
    digest = hashlib.sha256()
    for name, part in module.named_modules():
        kind = f"{type(part).__module__}.{type(part).__qualname__}"
        settings = {key: value for key, value in vars(part).items() if _is_plain(value) and key != "training"}
        digest.update(repr((name, kind, sorted(settings.items(), key=lambda item: item[0]))).encode())
    for name, value in chain(module.named_parameters(), module.named_buffers()):  # some are not in the state_dict
        digest.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, (list, tuple)) else isinstance(value, _PLAIN)


def _is_named(sample: Mapping[str, Any]) -> bool:
    return VARIANT in sample and "file_name" in sample


def _file_of(sample: Mapping[str, Any]) -> str:
    if not _is_named(sample):
        raise UserError(
            f"{sample.get('file_name', 'image')}: train.cache_embeddings=True needs to know which form of which image "
            "file a sample holds, and it has no cache_variant. Take sam_d2.data.mapper.PromptableMapper, whose "
            "augmentations may be none but the horizontal flip."
        )
    return str(sample["file_name"])
