"""The ways to write a box as numbers."""

from enum import IntEnum, unique
from typing import TypeVar

import numpy as np
import torch

RawBox = TypeVar("RawBox", list[float], tuple[float, ...], torch.Tensor, np.ndarray)


@unique
class BoxMode(IntEnum):
    """Meaning of the four numbers of a box. Pixels are continuous coordinates, edges at whole numbers."""

    XYXY_ABS = 0
    """Left, top, right and bottom edge in pixels."""
    XYWH_ABS = 1
    """Left and top edge, width and height in pixels; COCO's way."""
    XYXY_REL = 2
    """Edges as parts of the image's size. Not supported."""
    XYWH_REL = 3
    """Left and top edge, width and height as parts of the image's size. Not supported."""
    XYWHA_ABS = 4
    """Centre, width, height and angle in degrees of a rotated box. Not supported by the embedded core."""

    @staticmethod
    def convert(box: RawBox, from_mode: "BoxMode", to_mode: "BoxMode") -> RawBox:
        """Write boxes in another way; the input is left as it is.

        Args:
            box: one box as list or tuple of 4 numbers, or (N, 4) array or tensor.
            from_mode: how it is written.
            to_mode: how it shall be written.

        Returns:
            the boxes in the type of the input; the input itself where the modes are the same.

        Raises:
            AssertionError: a relative mode, or a list of another length.
            NotImplementedError: another pair of modes than XYXY_ABS and XYWH_ABS.
        """
        if from_mode == to_mode:
            return box
        relative = (BoxMode.XYXY_REL, BoxMode.XYWH_REL)
        assert from_mode not in relative and to_mode not in relative, "Relative boxes are not supported."
        if {from_mode, to_mode} != {BoxMode.XYXY_ABS, BoxMode.XYWH_ABS}:
            raise NotImplementedError(f"Boxes cannot be converted from {from_mode!r} to {to_mode!r}.")
        sign = 1 if to_mode == BoxMode.XYXY_ABS else -1

        if isinstance(box, (list, tuple)):
            assert len(box) == 4, f"a box has 4 numbers, this one has {len(box)}"
            # through a tensor, because Detectron2 rounds to float32 here and annotations must come out alike
            row = torch.tensor(box)
            row[2:] += sign * row[:2]
            return tuple(row.tolist()) if isinstance(box, tuple) else row.tolist()
        converted = box.copy() if isinstance(box, np.ndarray) else box.clone()
        converted[:, 2:] += sign * converted[:, :2]
        return converted
