"""Divide the images of one file into a training and a test part."""

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from sam_d2.errors import UserError

DEFAULT_FRACTION = 0.8
DEFAULT_SEED = 0


class Split(Struct, frozen=True, forbid_unknown_fields=True):
    """One part of a file.

    Attributes:
        part: which one.
        fraction: share of the images that is for training, between 0 and 1.
        seed: another seed gives another division.
    """

    part: Literal["train", "test"]
    fraction: Annotated[float, Meta(gt=0, lt=1)] = DEFAULT_FRACTION
    seed: int = DEFAULT_SEED


def split_dataset(dataset_dicts: Sequence[dict[str, Any]], split: Split, source: str) -> list[dict[str, Any]]:
    """Return one part of the images, in their order.

    An image's place depends on its id and the seed alone: the images are ranked by a hash of both and the
    first `fraction` of them are for training. So both parts are disjoint and together the whole, and neither
    the order in the file nor Python's version matters.

    Args:
        dataset_dicts: all images of a file.
        split: the part.
        source: the file, for the error.

    Raises:
        UserError: there are fewer than 2 images.
    """
    if len(dataset_dicts) < 2:
        raise UserError(f"{source}: {len(dataset_dicts)} image cannot be split into a training and a test part.")
    ranked = sorted(range(len(dataset_dicts)), key=lambda row: _rank(dataset_dicts[row]["image_id"], split.seed))
    count = min(max(round(split.fraction * len(ranked)), 1), len(ranked) - 1)
    chosen = set(ranked[:count] if split.part == "train" else ranked[count:])
    return [record for row, record in enumerate(dataset_dicts) if row in chosen]


def _rank(image_id: int | str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{image_id}".encode("utf-8", "surrogatepass")).digest()
