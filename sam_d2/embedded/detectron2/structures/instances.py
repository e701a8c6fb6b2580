"""What is known about the instances of one image."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch


class Instances:
    """Fields of one image's instances: boxes, masks, classes, scores and the like, all of the same length.

    A field is set and read as an attribute (``instances.gt_boxes``), asked for with ``in``'s counterpart
    :meth:`has`, and cut together with all others by an index (``instances[instances.scores > 0.5]``).
    Attributes that begin with an underscore are not fields.
    """

    _image_size: tuple[int, int]
    _fields: dict[str, Any]

    def __init__(self, image_size: tuple[int, int], **kwargs: Any) -> None:
        """Make an object with the given fields.

        Args:
            image_size: (height, width) of the image.
            kwargs: fields by name.
        """
        self._image_size = image_size
        self._fields = {}
        for name, value in kwargs.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the image that the fields' coordinates are in."""
        return self._image_size

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            self.set(name, value)

    def __getattr__(self, name: str) -> Any:
        # "_fields" itself is missing while an object is being unpickled
        if name != "_fields" and name in self._fields:
            return self._fields[name]
        raise AttributeError(f"These instances have no field {name!r}.")

    def set(self, name: str, value: Any) -> None:
        """Set a field.

        Args:
            name: its name.
            value: anything with a length, one entry per instance.

        Raises:
            AssertionError: the length is not that of the fields already there.
        """
        length = len(value)
        if self._fields:
            assert len(self) == length, f"field {name!r} has {length} entries, there are {len(self)} instances"
        self._fields[name] = value

    def has(self, name: str) -> bool:
        """Tell whether there is such a field."""
        return name in self._fields

    def get(self, name: str) -> Any:
        """Return a field.

        Raises:
            KeyError: there is no such field.
        """
        return self._fields[name]

    def remove(self, name: str) -> None:
        """Remove a field.

        Raises:
            KeyError: there is no such field.
        """
        del self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """Return all fields by name: the dict itself, not a copy."""
        return self._fields

    def to(self, *args: Any, **kwargs: Any) -> "Instances":
        """Return instances whose fields are moved or cast by their own ``to``, those without it unchanged."""
        return self._map(lambda value: value.to(*args, **kwargs) if hasattr(value, "to") else value)

    def _map(self, change: Any) -> "Instances":
        return Instances(self._image_size, **{name: change(value) for name, value in self._fields.items()})

    def __getitem__(self, item: Any) -> "Instances":
        """Return the instances at an int, a slice, or a tensor of indices or bools.

        Raises:
            IndexError: an int outside of the range.
        """
        if type(item) is int:
            if not -len(self) <= item < len(self):
                raise IndexError(f"instance {item} of {len(self)} does not exist")
            item = slice(item, None, len(self))  # a slice keeps the dimension of instances in every field
        return self._map(lambda value: value[item])

    def __len__(self) -> int:
        for value in self._fields.values():
            return len(value)
        raise NotImplementedError("Instances without a field have no length.")

    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError("Instances cannot be iterated; index them instead.")

    @staticmethod
    def cat(instance_lists: Sequence["Instances"]) -> "Instances":
        """Return the instances of several objects of the same image size and fields in one.

        Args:
            instance_lists: at least one; a single one is returned itself.

        Raises:
            ValueError: a field that is neither tensor nor list and has no ``cat`` of its own.
        """
        assert len(instance_lists) > 0 and all(isinstance(one, Instances) for one in instance_lists)
        first = instance_lists[0]
        if len(instance_lists) == 1:
            return first
        sizes = {tuple(one.image_size) for one in instance_lists}
        assert len(sizes) == 1, f"instances of images of different sizes: {sorted(sizes)}"
        fields = {name: _join([one.get(name) for one in instance_lists]) for name in first.get_fields()}
        return Instances(first.image_size, **fields)

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        height, width = self._image_size
        return f"Instances(num_instances={len(self)}, image_height={height}, image_width={width}, fields=[{fields}])"


def _join(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(values, dim=0)
    if isinstance(first, list):
        return list(itertools.chain.from_iterable(values))
    if hasattr(type(first), "cat"):
        return type(first).cat(values)
    raise ValueError(f"fields of the type {type(first)} cannot be concatenated")
