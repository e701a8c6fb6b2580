"""What a case may return, and how two answers are compared.

An answer is written as JSON: small arrays in full, large ones as a hash, arrays wrapped in :class:`Approx` as
evenly spread samples that are compared with a tolerance, masks wrapped in :class:`Masks` as runs of pixels that are
compared by their overlap.
"""

import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

LARGE = 64


class Unavailable(Exception):
    """Raised by a case that cannot run here, with the reason."""


@dataclass
class Approx:
    """An array or number whose last digits may depend on library versions."""

    value: Any
    rtol: float = 1e-6
    atol: float = 1e-6


@dataclass
class Masks:
    """Masks (N, H, W) bool of which each must overlap its counterpart: intersection over union at least this."""

    value: Any
    least_iou: float = 0.999


@dataclass
class Live:
    """A value that changes with this project, such as its configs: compared live, in no golden answer."""

    value: Any


def depends_on(*libraries: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Mark a case whose exact answer these libraries decide (a resampling filter, a printed number).

    Where one of them has another version than the golden answer was made with, a difference from it skips the
    test; the live comparison, whose two sides have the same libraries, stays exact.
    """

    def mark(case: Callable[[], Any]) -> Callable[[], Any]:
        case.depends_on = libraries  # type: ignore[attr-defined]
        return case

    return mark


def real_data() -> Path:
    """Folder of the real data sets.

    Raises:
        Unavailable: the environment names none.
    """
    folder = os.environ.get("SAM_D2_REAL_DATA")
    if not folder:
        raise Unavailable("SAM_D2_REAL_DATA is not set")
    return Path(folder)


def encode(value: Any) -> Any:
    """Return the JSON form of a value: plain ones as they are, arrays and tensors as described above."""
    if isinstance(value, Approx):
        array = np.asarray(_as_array(value.value), dtype=np.float64)
        places = np.unique(np.linspace(0, array.size - 1, min(LARGE, array.size)).astype(int))
        samples = array.reshape(-1)[places].tolist()
        return {
            "approx": samples, "shape": list(array.shape), "rtol": value.rtol, "atol": value.atol
        }  # fmt: skip
    if isinstance(value, Masks):
        masks = np.asfortranarray(_as_array(value.value).transpose(1, 2, 0), dtype=np.uint8)
        runs = mask_util.encode(masks) if masks.shape[2] else []
        rles = [{**one, "counts": one["counts"].decode()} for one in runs]
        return {"rle": rles, "least_iou": value.least_iou}
    if isinstance(value, Live):
        return {"live": encode(value.value)}
    if isinstance(value, dict):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    array = np.ascontiguousarray(_as_array(value))
    description = {"dtype": str(array.dtype), "shape": list(array.shape)}
    if array.size > LARGE:
        return {**description, "sha256": hashlib.sha256(array.tobytes()).hexdigest()}
    return {**description, "values": array.reshape(-1).tolist()}


def without_live(answer: Any) -> Any:
    """Return an encoded answer as it is recorded: what :class:`Live` wraps becomes None."""
    if isinstance(answer, list):
        return [without_live(item) for item in answer]
    if not isinstance(answer, dict):
        return answer
    if answer.keys() == {"live"}:
        return {"live": None}
    return {key: without_live(item) for key, item in answer.items()}


def _as_array(value: Any) -> Any:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if not isinstance(value, (np.ndarray, int, float, list)):
        raise TypeError(f"a case returned {type(value)}: return arrays, tensors and plain values")
    return value


def differences(expected: Any, actual: Any, place: str = "") -> list[str]:
    """Return one line for each place where two encoded answers differ."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        if "approx" in expected and "approx" in actual:
            return _approx_differences(expected, actual, place)
        if "least_iou" in expected and "least_iou" in actual:
            return _mask_differences(expected, actual, place)
        if expected.keys() != actual.keys():
            return [f"{place}: keys {sorted(expected)} against {sorted(actual)}"]
        return [line for key in expected for line in differences(expected[key], actual[key], f"{place}.{key}")]
    if isinstance(expected, list) and isinstance(actual, list):
        if len(expected) != len(actual):
            return [f"{place}: length {len(expected)} against {len(actual)}"]
        pairs = enumerate(zip(expected, actual, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{place}[{i}]")]
    both_nan = all(isinstance(x, float) and math.isnan(x) for x in (expected, actual))
    if both_nan or expected == actual:
        return []
    if isinstance(expected, str) and isinstance(actual, str):
        pairs = enumerate(zip(expected, actual, strict=False))
        start = max(next((i for i, (a, b) in pairs if a != b), min(len(expected), len(actual))) - 40, 0)
        expected, actual = expected[start : start + 120], actual[start : start + 120]
    return [f"{place}: {expected!r} against {actual!r}"]


def _approx_differences(expected: dict[str, Any], actual: dict[str, Any], place: str) -> list[str]:
    if expected["shape"] != actual["shape"]:
        return [f"{place}: shape {expected['shape']} against {actual['shape']}"]
    a, b = np.array(expected["approx"]), np.array(actual["approx"])
    if np.allclose(b, a, rtol=expected["rtol"], atol=expected["atol"], equal_nan=True):
        return []
    return [f"{place}: values differ by up to {np.nanmax(np.abs(a - b))}"]


def _mask_differences(expected: dict[str, Any], actual: dict[str, Any], place: str) -> list[str]:
    if len(expected["rle"]) != len(actual["rle"]):
        return [f"{place}: {len(expected['rle'])} masks against {len(actual['rle'])}"]
    lines = []
    for index, (a, b) in enumerate(zip(expected["rle"], actual["rle"], strict=True)):
        if (iou := mask_iou(a, b)) < expected["least_iou"]:
            lines.append(f"{place}[{index}]: the masks overlap by {iou}")
    return lines


def mask_iou(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Overlap of two RLE; 1 for the same one, also where it is empty, and 0 where their images differ in size."""
    if a == b:
        return 1.0
    return float(mask_util.iou([a], [b], [0])[0, 0]) if list(a["size"]) == list(b["size"]) else 0.0
