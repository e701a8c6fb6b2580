"""From a dotted name to the object, and back."""

import pydoc
from typing import Any

from fvcore.common.registry import Registry

__all__ = ["Registry", "locate"]


def locate(name: str) -> Any:
    """Return the object with a dotted name such as ``torch.optim.SGD``, importing what is needed.

    Raises:
        ImportError: there is no such object, or a module on the way cannot be imported.
    """
    found = pydoc.locate(name)
    if found is None:
        # pydoc fails where an attribute hides a module of the same name (torch.optim.sgd.SGD); hydra does not
        from hydra.utils import _locate

        found = _locate(name)
    return found


def _convert_target_to_string(t: Any) -> str:
    """Return the shortest dotted name by which an object with ``__module__`` and ``__qualname__`` is found.

    The short name survives when an implementation moves inside of its package.
    """
    parts = t.__module__.split(".")
    for length in range(1, len(parts)):
        name = ".".join([*parts[:length], t.__qualname__])
        try:
            if locate(name) is t:
                return name
        except ImportError:
            continue
    return f"{t.__module__}.{t.__qualname__}"
