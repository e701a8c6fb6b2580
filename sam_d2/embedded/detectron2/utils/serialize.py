"""Pickling of what the standard pickle refuses."""

from collections.abc import Callable
from typing import Any

import cloudpickle


class PicklableWrapper:
    """A callable that goes to another process by cloudpickle, so that it may be a lambda or a closure.

    It can be called, and its attributes read, like what it wraps. Wrapping twice is wrapping once.
    """

    def __init__(self, obj: Any) -> None:
        self._obj: Any = obj._obj if isinstance(obj, PicklableWrapper) else obj

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[bytes]]:
        return cloudpickle.loads, (cloudpickle.dumps(self._obj),)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call what is wrapped."""
        return self._obj(*args, **kwargs)

    def __getattr__(self, attr: str) -> Any:
        if attr == "_obj":  # not set yet, as in a copy under construction: no endless recursion
            raise AttributeError(attr)
        return getattr(self._obj, attr)
