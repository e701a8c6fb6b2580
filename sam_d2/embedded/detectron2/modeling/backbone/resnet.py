"""Residual networks: "Deep Residual Learning for Image Recognition", arXiv 1512.03385.

``norm`` is everywhere what :func:`detectron2.layers.get_norm` takes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from fvcore.nn.weight_init import c2_msra_fill
from torch import nn
from torch.nn import functional as F

from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from detectron2.modeling.backbone.backbone import Backbone

__all__ = ["BasicBlock", "BasicStem", "BottleneckBlock", "ResNet", "ResNetBlockBase", "make_stage"]

Norm = str | Callable[[int], nn.Module]

ResNetBlockBase = CNNBlockBase

# Blocks in res2 to res5, by the network's depth.
_NUM_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_PER_BLOCK = "_per_block"


def _conv(in_channels: int, out_channels: int, kernel_size: int, norm: Norm, **options: Any) -> Conv2d:
    normalised = get_norm(norm, out_channels)
    return Conv2d(in_channels, out_channels, kernel_size=kernel_size, bias=False, norm=normalised, **options)


class _ResidualBlock(CNNBlockBase):
    """Convolutions beside a shortcut, which is itself a 1x1 convolution where the number of channels changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: Norm) -> None:
        super().__init__(in_channels, out_channels, stride)
        projected = in_channels != out_channels
        self.shortcut = _conv(in_channels, out_channels, 1, norm, stride=stride) if projected else None

    def _initialize(self, *convs: Conv2d) -> None:
        for conv in filter(None, (*convs, self.shortcut)):
            c2_msra_fill(conv)

    def _join(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        residual += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(residual)


class BasicBlock(_ResidualBlock):
    """Two 3x3 convolutions: the block of ResNet-18 and 34."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm: Norm = "BN") -> None:
        """Make the block.

        Args:
            in_channels: channels of the input.
            out_channels: channels of both convolutions.
            stride: of the first convolution.
            norm: after each convolution.
        """
        super().__init__(in_channels, out_channels, stride, norm)
        self.conv1 = _conv(in_channels, out_channels, 3, norm, stride=stride, padding=1)
        self.conv2 = _conv(out_channels, out_channels, 3, norm, padding=1)
        self._initialize(self.conv1, self.conv2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, out_channels, H / stride, W / stride)."""
        return self._join(x, self.conv2(F.relu_(self.conv1(x))))


class BottleneckBlock(_ResidualBlock):
    """Convolutions 1x1, 3x3 and 1x1: the block of ResNet-50, 101 and 152."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: Norm = "BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
    ) -> None:
        """Make the block.

        Args:
            in_channels: channels of the input.
            out_channels: channels of the output.
            bottleneck_channels: channels of the 3x3 convolution.
            stride: of the block.
            num_groups: groups of the 3x3 convolution.
            norm: after each convolution.
            stride_in_1x1: the first convolution has the stride, as in the weights published with the paper; the
                3x3 one has it otherwise, as in torchvision's.
            dilation: of the 3x3 convolution.
        """
        super().__init__(in_channels, out_channels, stride, norm)
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        spatial = {"stride": second, "padding": dilation, "dilation": dilation, "groups": num_groups}
        self.conv1 = _conv(in_channels, bottleneck_channels, 1, norm, stride=first)
        self.conv2 = _conv(bottleneck_channels, bottleneck_channels, 3, norm, **spatial)
        self.conv3 = _conv(bottleneck_channels, out_channels, 1, norm)
        self._initialize(self.conv1, self.conv2, self.conv3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, out_channels, H / stride, W / stride)."""
        return self._join(x, self.conv3(F.relu_(self.conv2(F.relu_(self.conv1(x))))))


class BasicStem(CNNBlockBase):
    """What comes before the residual blocks: a 7x7 convolution and a max pooling, each of stride 2."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: Norm = "BN") -> None:
        """Make the stem.

        Args:
            in_channels: channels of the images.
            out_channels: channels of the output.
            norm: after the convolution.
        """
        super().__init__(in_channels, out_channels, 4)
        self.conv1 = _conv(in_channels, out_channels, 7, norm, stride=2, padding=3)
        c2_msra_fill(self.conv1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, out_channels, H / 4, W / 4)."""
        return F.max_pool2d(F.relu_(self.conv1(x)), kernel_size=3, stride=2, padding=1)


class ResNet(Backbone):
    """A stem and stages ``res2``, ``res3``, ..., each a sequence of residual blocks."""

    def __init__(
        self,
        stem: CNNBlockBase,
        stages: Sequence[Sequence[CNNBlockBase]],
        num_classes: int | None = None,
        out_features: list[str] | None = None,
        freeze_at: int = 0,
    ) -> None:
        """Put the network together.

        Args:
            stem: what the images go through first.
            stages: blocks of each stage. Those after the last one in ``out_features`` are left out.
            num_classes: adds a classifier, ``linear``, of so many classes.
            out_features: names of the outputs, among "stem", "res2", ... and "linear"; the last of them by default.
            freeze_at: as for :meth:`freeze`.
        """
        super().__init__()
        self.stem = stem
        self.num_classes = num_classes
        stride, channels = stem.stride, stem.out_channels
        self._out_feature_strides, self._out_feature_channels = {"stem": stride}, {"stem": channels}
        names = [f"res{number}" for number in range(2, 2 + len(stages))]
        if out_features is not None:  # an unused parameter would stop distributed training
            order = ["stem", *names]
            names = names[: max((order.index(name) for name in out_features if name in order), default=len(names))]
        self.stage_names = tuple(names)
        self.stages: list[Any] = []
        for name, blocks in zip(names, stages, strict=False):
            assert blocks and all(isinstance(block, CNNBlockBase) for block in blocks), f"{name} takes CNNBlockBase"
            self.stages.append(nn.Sequential(*blocks))
            self.add_module(name, self.stages[-1])
            for block in blocks:
                stride, channels = stride * block.stride, block.out_channels
            self._out_feature_strides[name], self._out_feature_channels[name] = stride, channels
        if num_classes is not None:
            self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
            self.linear = nn.Linear(channels, num_classes)
            nn.init.normal_(self.linear.weight, std=0.01)  # arXiv 1706.02677, section 5.1
        available = ["stem", *names] + ["linear"] * (num_classes is not None)
        self._out_features = available[-1:] if out_features is None else out_features
        assert self._out_features and set(self._out_features) <= set(available), f"out_features are of {available}"
        self.freeze(freeze_at)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the feature maps (B, C, H / stride, W / stride), and logits (B, num_classes) as "linear".

        Args:
            x: normalised images (B, 3, H, W), padded.
        """
        assert x.dim() == 4, f"images must be (B, C, H, W), not of shape {tuple(x.shape)}"
        outputs = {}
        for name in ("stem", *self.stage_names):
            x = getattr(self, name)(x)
            if name in self._out_features:
                outputs[name] = x
        if self.num_classes is not None and "linear" in self._out_features:
            outputs["linear"] = self.linear(self.avgpool(x).flatten(1))
        return outputs

    def freeze(self, freeze_at: int = 0) -> "ResNet":
        """Take the first parts from training: none of them (0), the stem (1), the stem and res2 (2), and so on.

        Returns:
            the network itself.
        """
        for blocks in [[self.stem], *self.stages][: max(freeze_at, 0)]:
            for block in blocks:
                block.freeze()
        return self

    @staticmethod
    def make_stage(
        block_class: type[CNNBlockBase], num_blocks: int, *, in_channels: int, out_channels: int, **kwargs: Any
    ) -> list[CNNBlockBase]:
        """Make the blocks of one stage.

        Args:
            block_class: of every block.
            num_blocks: how many.
            in_channels: channels of the stage's input.
            out_channels: channels of every block's output.
            kwargs: further arguments of the blocks; ``x_per_block`` is a list of each block's ``x``.
        """
        blocks = []
        for index in range(num_blocks):
            arguments = {}
            for name, value in kwargs.items():
                each = name.endswith(_PER_BLOCK)
                assert not each or len(value) == num_blocks, f"{name} has {len(value)} values, not {num_blocks}"
                arguments[name.removesuffix(_PER_BLOCK)] = value[index] if each else value
            assert len(arguments) == len(kwargs), f"an argument and its {_PER_BLOCK} exclude each other: {list(kwargs)}"
            blocks.append(block_class(in_channels=in_channels, out_channels=out_channels, **arguments))
            in_channels = out_channels
        return blocks

    @staticmethod
    def make_default_stages(
        depth: int, block_class: type[CNNBlockBase] | None = None, **kwargs: Any
    ) -> list[list[CNNBlockBase]]:
        """Make the four stages of a network of the paper.

        Args:
            depth: 18, 34, 50, 101 or 152.
            block_class: of every block; by default :class:`BottleneckBlock` from depth 50 on, else
                :class:`BasicBlock`.
            kwargs: further arguments of :meth:`make_stage`, other than strides and channels.
        """
        expansion = 1 if depth < 50 else 4
        block_class = block_class or (BasicBlock if depth < 50 else BottleneckBlock)
        stages = []
        channels = 64
        for width, num_blocks in zip((64, 128, 256, 512), _NUM_BLOCKS[depth], strict=True):
            options = kwargs if depth < 50 else {**kwargs, "bottleneck_channels": width}
            options = {**options, "stride_per_block": [1 if width == 64 else 2] + [1] * (num_blocks - 1)}
            channels, before = width * expansion, channels
            options.update(in_channels=before, out_channels=channels)
            stages.append(ResNet.make_stage(block_class, num_blocks, **options))
        return stages


make_stage = ResNet.make_stage
