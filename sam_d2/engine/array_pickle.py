"""A look at a pickle of arrays before it is read: nothing in it is called or made that could do anything else.

numpy's own recipes are not harmless: ``ndarray`` takes any bytes for pointers to objects, and so does an array whose
dtype was given other flags. So every call in the file is checked here with its arguments, in place of being made.
"""

import math
import mmap
import pickle
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sam_d2.errors import UserError

_NUMBER = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|c8|c16|\?)")
_MODULES = [f"numpy.{core}.{module}" for core in ("core", "_core") for module in ("multiarray", "numeric")]
_BYTES = bytes | bytearray | pickle.PickleBuffer


def check_array_pickle(path: str | Path) -> None:
    """Refuse a pickle of anything but dicts, lists, numbers, text and arrays of numbers, of Python 2 or 3.

    Args:
        path: of the file.

    Raises:
        UserError: the file is no pickle or a damaged one, or names any other object; nothing of it has been run.
    """
    try:
        # A map of the file gives no more than there is, however much is asked for.
        with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for operation, argument, _ in pickletools.genops(content):  # type: ignore[arg-type]  # it reads, as a file does
                # The memo is a list that is made as long as its last index.
                wide = operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(content)
                _require(not wide, "it keeps more objects than it has bytes")
            content.seek(0)
            _Checker(content, encoding="latin1").load()
    except Exception as error:  # noise in the file makes the unpickler stumble over anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path}: not a pickle of arrays ({reason[:200]}). It is damaged, truncated, or holds Python objects; "
            "convert it to .pth with the program it comes from."
        ) from error


class _Checker(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _ADMITTED.get((module, name))
        _require(found is not None, f"it names {module}.{name}, which is neither an array nor a plain value")
        return found


class _Dtype:
    """Stands for ``dtype(code, align, copy)`` of a kind of number."""

    def __init__(self, code: Any, align: Any, copy: Any) -> None:
        known = isinstance(code, str) and _NUMBER.fullmatch(code)
        _require(bool(known and not align and copy), f"it has a dtype {str(code)[:20]!r}, which is none of numbers")
        self.itemsize = np.dtype(code).itemsize

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) == 8 else None
        plain = order in ("<", ">", "|", "=") and state == (state[0], order, None, None, None, -1, -1, 0)
        _require(plain, "it changes a dtype")


def _dtype(code: Any, align: Any, copy: Any) -> _Dtype:
    return _Dtype(code, align, copy)  # no class is handed out: an object of it could be made without these checks


class _Array:
    """Stands for an array, which is made without a value and gets it once."""

    def __init__(self) -> None:
        self._set = False

    def __setstate__(self, state: Any) -> None:
        _require(not self._set and isinstance(state, tuple) and len(state) == 5, "it changes an array")
        _, shape, dtype, _, values = state
        _check_size(values.encode("latin1") if isinstance(values, str) else values, shape, dtype)
        self._set = True


def _check_size(values: Any, shape: Any, dtype: Any) -> None:
    """Refuse an array whose bytes are not as many as its shape needs."""
    sides = shape if isinstance(shape, tuple) else ("no tuple",)
    sound = all(type(side) is int and side >= 0 for side in sides) and type(dtype) is _Dtype
    size = memoryview(values).nbytes if isinstance(values, _BYTES) else -1
    _require(sound and size == math.prod(sides) * dtype.itemsize, "an array has other bytes than its shape needs")


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    _require(kind is _NDARRAY and shape == (0,) and code in (b"b", "b"), "it makes an array otherwise than numpy does")
    return _Array()


def _frombuffer(values: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    _check_size(values, shape, dtype)
    _require(order in ("C", "F"), "it makes an array otherwise than numpy does")
    array = _Array()
    array._set = True
    return array


def _scalar(dtype: Any, value: Any = None) -> float:
    _check_size(value.encode("latin1") if isinstance(value, str) else value, (), dtype)
    return 0.0


def _encode(text: Any, encoding: Any) -> bytes:
    """Stand for ``_codecs.encode``, by which Python 3 writes bytes into pickles of protocol 2."""
    _require(isinstance(text, str) and encoding == "latin1", f"bytes are written as {encoding}, not as latin1")
    return text.encode("latin1")


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise pickle.UnpicklingError(problem)


_NDARRAY = object()
_RECIPES: dict[str, Callable] = {"_reconstruct": _reconstruct, "_frombuffer": _frombuffer, "scalar": _scalar}
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    **{(module, name): made for module in _MODULES for name, made in _RECIPES.items()},
}
