"""Size of a tensor that is known before it exists."""

from dataclasses import dataclass


@dataclass
class ShapeSpec:
    """What one module tells the next of a feature map; what it does not know is None.

    Attributes:
        channels: number of channels.
        height: in cells of the feature map.
        width: in cells of the feature map.
        stride: pixels of the padded image from one cell to the next.
    """

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
