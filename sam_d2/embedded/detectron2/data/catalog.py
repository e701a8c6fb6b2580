"""Names of datasets: how to load each (DatasetCatalog) and what is known of it (MetadataCatalog)."""

import builtins
import types
from collections import UserDict
from collections.abc import Callable
from typing import Any

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog"]


class _Catalog(UserDict):
    """What the two catalogs share: a dict of dataset names with Detectron2's extra method names."""

    kind = ""

    def list(self) -> "builtins.list[str]":
        """Return all names, in the order of registration."""
        return [*self]

    def remove(self, name: str) -> None:
        """Forget ``name``.

        Raises:
            KeyError: there is no such name.
        """
        del self[name]

    def __repr__(self) -> str:
        return f"{type(self).__name__.lstrip('_')}(registered {self.kind}: {', '.join(self)})"

    __str__ = __repr__


class _DatasetCatalog(_Catalog):
    """Maps a dataset's name to the function that loads it as a list of dataset dicts."""

    kind = "datasets"

    def register(self, name: str, func: Callable[[], Any]) -> None:
        """Add a dataset.

        Args:
            name: identifies the dataset from now on.
            func: takes nothing and returns the dataset, the same at every call.

        Raises:
            AssertionError: the name is taken, or ``func`` cannot be called.
        """
        assert callable(func), f"DatasetCatalog.register({name!r}) needs a function, got {type(func)}."
        assert name not in self, f"Dataset '{name}' is already registered!"
        self[name] = func

    def get(self, name: str) -> Any:  # type: ignore[override]  # loads, where a dict only looks up
        """Load and return the dataset ``name``.

        Raises:
            KeyError: no such dataset is registered; the message lists those that are.
        """
        if name not in self:
            raise KeyError(f"Dataset '{name}' is not registered! Available datasets are: {', '.join(self)}")
        return self[name]()


class Metadata(types.SimpleNamespace):
    """What is known of a dataset beside its records, as attributes, e.g. ``thing_classes``.

    An attribute can be set again to an equal value only, so that all who read it agree.
    """

    # Stands in where no name was given, so that building a message never ends in __getattr__ again.
    name: str = "N/A"

    def __getattr__(self, key: str) -> Any:
        known = f"Available keys are {list(self.__dict__)}." if len(self.__dict__) > 1 else "metadata is empty."
        raise AttributeError(f"Attribute '{key}' does not exist in the metadata of dataset '{self.name}': {known}")

    def __setattr__(self, key: str, val: Any) -> None:
        if hasattr(self, key):
            old = getattr(self, key)
            assert old == val, (
                f"Attribute '{key}' in the metadata of '{self.name}' cannot be set to a different value!\n"
                f"{old} != {val}"
            )
        else:
            super().__setattr__(key, val)

    def as_dict(self) -> dict[str, Any]:
        """Return all attributes in a new dict."""
        return dict(self.__dict__)

    def set(self, **kwargs: Any) -> "Metadata":
        """Set several attributes and return self."""
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """Return the attribute ``key``, or ``default`` where it is not set."""
        return getattr(self, key, default)


class _MetadataCatalog(_Catalog):
    """Maps a dataset's name to its one :class:`Metadata`, made when first asked for."""

    kind = "metadata"

    def get(self, name: str) -> Metadata:  # type: ignore[override]  # makes what is missing
        """Return the metadata of ``name``; an empty one is made and kept where there is none.

        Raises:
            AssertionError: the name is empty.
        """
        assert len(name)
        if name not in self:
            self[name] = Metadata(name=name)
        return self[name]


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
