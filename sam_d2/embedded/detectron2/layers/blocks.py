"""What all blocks of a convolutional network have in common."""

from typing import TypeVar

from torch import nn

from detectron2.layers.batch_norm import FrozenBatchNorm2d

Block = TypeVar("Block", bound="CNNBlockBase")


class CNNBlockBase(nn.Module):
    """A part of a network from (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        """Say what goes in and comes out.

        Args:
            in_channels: channels of the input.
            out_channels: channels of the output.
            stride: by which height and width shrink.
        """
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride

    def freeze(self: Block) -> Block:
        """Take all parameters from training, turn batch normalisations into frozen ones, and return the block."""
        self.requires_grad_(False)
        FrozenBatchNorm2d.convert_frozen_batchnorm(self)
        return self
