"""SAM's resize: the long side to the canvas, the short one in proportion."""

from __future__ import annotations

import detectron2.data.transforms as T
from sam_d2.errors import UserError


def canvas_resize(canvas: int) -> T.ResizeShortestEdge:
    """Return the augmentation that resizes an image's long side to ``canvas`` pixels."""
    # With both limits equal it gives ResizeLongestSide's output size for every input size.
    return T.ResizeShortestEdge(canvas, canvas)


def require_resizable(size: tuple[int, int], canvas: int, name: str) -> None:
    """Refuse an image of whose short side :func:`canvas_resize` would leave nothing.

    Args:
        size: (height, width) before the resize.
        canvas: pixels of the long side after it.
        name: of the image, for the message.

    Raises:
        UserError: the short side would be rounded to 0 pixels.
    """
    height, width = size
    if min(T.ResizeShortestEdge.get_output_shape(height, width, canvas, canvas)) < 1:
        raise UserError(
            f"{name}: {width} x {height} pixels (width x height) are too thin for a canvas of {canvas}: less than half "
            "a pixel would be left of the short side. Cut the image into tiles, or leave it out."
        )
