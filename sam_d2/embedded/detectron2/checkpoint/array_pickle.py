"""Pickle files of arrays, read without running what they name."""

import pickle
from collections import OrderedDict
from typing import IO, Any

import numpy as np


def _bytes_from_text(text: str, encoding: str) -> bytes:
    """Stand in for ``_codecs.encode``, by which Python 3 writes bytes into pickles of protocol 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes written as {encoding}, not as latin1")
    return text.encode("latin1")


# The functions that numpy names in its pickles, taken from pickles' own recipes: numpy 1 and 2 have them in
# different modules, and a file may be of either.
_ARRAY_RECIPES: tuple[Any, ...] = (
    np.zeros(0).__reduce__(),
    np.zeros(0).__reduce_ex__(5),
    np.float32(0).__reduce__(),
)
_ARRAY_FUNCTIONS = {recipe[0].__name__: recipe[0] for recipe in _ARRAY_RECIPES}
_ARRAY_MODULES = [f"numpy.{core}.{module}" for core in ("core", "_core") for module in ("multiarray", "numeric")]
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _bytes_from_text,
    **{(module, name): made for module in _ARRAY_MODULES for name, made in _ARRAY_FUNCTIONS.items()},
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is neither an array nor a plain value")
        return _ADMITTED[module, name]


def load_array_pickle(file: IO[bytes], name: str) -> Any:
    """Read a pickle of dicts, lists, numbers, text and numpy arrays, of Python 2 or 3.

    Args:
        file: opened for bytes.
        name: of the file, for the message.

    Raises:
        pickle.UnpicklingError: the file is no pickle, or names any other object; nothing of it has been run.
    """
    try:
        return _ArrayUnpickler(file, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError) as error:
        raise pickle.UnpicklingError(
            f"{name} is not a pickle of arrays: {error}. Convert it to .pth with the program it comes from."
        ) from error
