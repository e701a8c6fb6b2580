"""ImageNet weights of torchvision's ResNets under Detectron2's names."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

from torch import Tensor

from sam_d2.engine.checkpoint_file import load_checkpoint_file, weights_in
from sam_d2.errors import UserError

__all__ = ["convert_file", "detectron2_names"]


def detectron2_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a torchvision ResNet as Detectron2's own tool does.

    Args:
        state: by torchvision's names, such as ``layer1.0.bn1.weight`` and ``layer1.0.downsample.0.weight``.

    Returns:
        the weights as ``res2.0.conv1.norm.weight`` and ``res2.0.shortcut.weight``. What is not of a stage begins with
        ``stem.``; so does the classifier, which no detector has.
    """
    converted = {}
    for name, value in state.items():
        name = re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
        name = name if name.startswith("res") else f"stem.{name}"
        name = re.sub(r"\bbn(\d)", r"conv\1.norm", name)
        converted[name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")] = value
    return converted


def convert_file(source: Path, target: Path) -> int:
    """Write a ``.pkl`` that DetectionCheckpointer loads into a model with a ResNet, wherever the ResNet is in it.

    The model takes RGB images with torchvision's mean and standard deviation, and its blocks have the stride in the
    3x3 convolution. The file appears whole or not at all.

    Args:
        source: torchvision's ``.pth``.
        target: the ``.pkl``.

    Returns:
        number of weights.

    Raises:
        UserError: the file holds no weights of a ResNet.
    """
    state = weights_in(load_checkpoint_file(source), source)
    if "conv1.weight" not in state or "layer1.0.conv1.weight" not in state:
        raise UserError(
            f"{source}: these are not the weights of a torchvision ResNet, which have conv1.weight and "
            "layer1.0.conv1.weight. Take one of torchvision's resnet18 to resnet152."
        )
    model = {name: value.numpy() for name, value in detectron2_names(state).items()}
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.write_bytes(pickle.dumps({"model": model, "__author__": "torchvision", "matching_heuristics": True}))
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return len(model)
