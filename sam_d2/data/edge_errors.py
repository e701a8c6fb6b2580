"""What a detector gets wrong in boxes, as a file: how far each edge of a detection lies from its instance's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from sam_d2.errors import UserError

VERSION = 1
_Move = Annotated[float, Meta(ge=-1, le=1)]  # of boxes with an IoU of 0.5 no edge is further off than the side


class EdgeErrors(Struct, kw_only=True, omit_defaults=True):
    """The errors of a detector on a dataset.

    Attributes:
        errors: (dx0 / w, dy0 / h, dx1 / w, dy1 / h) of each detection that is of an instance: detection less instance,
            as a share of the instance's width or height.
        detector: File of its weights.
        dataset: Registered name.
        instances: Of the dataset, detected or not.
        boxes: Boxes of the instances that the detections were measured against: ``file`` (as annotated) or ``mask``
            (the tight ones of the masks, which a training with ``recompute_boxes`` gets).
        mean: Of the errors, by column.
        std: Their standard deviation, by column.
        version: Of this form.
    """

    errors: list[tuple[_Move, _Move, _Move, _Move]]
    detector: str = ""
    dataset: str = ""
    instances: int = 0
    boxes: Literal["file", "mask"] = "file"
    mean: list[float] = []
    std: list[float] = []
    version: int = VERSION


def read_edge_errors(path: str | Path, *, key: str) -> EdgeErrors:
    """Read a file of ``tools/detector_errors.py``.

    Args:
        path: Of the file.
        key: What named it, for the message.

    Raises:
        UserError: It is missing, is no such file, or holds no errors.
    """
    again = "Write one with tools/detector_errors.py."
    try:
        found = msgspec.json.decode(Path(path).expanduser().read_bytes(), type=EdgeErrors)
    except OSError as error:
        raise UserError(f"{key}={path}: cannot be read: {error.strerror}. {again}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{key}={path}: is no file of a detector's errors: {error}. {again}") from error
    if found.version != VERSION:
        raise UserError(f"{key}={path}: is of version {found.version}; this reads version {VERSION}. {again}")
    if not found.errors or not all(math.isfinite(move) for row in found.errors for move in row):
        raise UserError(f"{key}={path}: holds no error of a detector to draw from. {again}")
    return found
