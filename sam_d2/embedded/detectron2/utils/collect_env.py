"""What a report of a fault should say about the machine."""

import importlib
import platform
import sys
from collections import Counter
from pathlib import Path

import torch
from tabulate import tabulate

__all__ = ["collect_env_info"]

_PACKAGES = ("numpy", "PIL", "torchvision", "fvcore", "iopath", "cv2")


def collect_env_info() -> str:
    """Return a table of versions and devices, and below it PyTorch's build settings."""
    import detectron2

    rows: list[tuple[str, str]] = [
        ("sys.platform", sys.platform),
        ("Python", sys.version.replace("\n", "")),
        ("machine", platform.machine()),
        ("detectron2", f"{detectron2.__version__} @{Path(detectron2.__file__).parent}"),
        ("PyTorch", f"{torch.__version__} @{Path(torch.__file__).parent}"),
        ("PyTorch debug build", str(torch.version.debug)),
        ("GPU available", "Yes" if torch.cuda.is_available() else "No: torch.cuda.is_available() == False"),
    ]
    gpus = Counter(_gpu_name(index) for index in range(torch.cuda.device_count()))
    rows += [(f"{count} x GPU", name) for name, count in gpus.items()]
    rows += [(name, _version(name)) for name in _PACKAGES]
    return tabulate(rows) + "\n" + torch.__config__.show()


def _gpu_name(index: int) -> str:
    major, minor = torch.cuda.get_device_capability(index)
    return f"{torch.cuda.get_device_name(index)} (arch={major}.{minor})"


def _version(package: str) -> str:
    try:
        return getattr(importlib.import_module(package), "__version__", "unknown")
    except ImportError:
        return "not found"
