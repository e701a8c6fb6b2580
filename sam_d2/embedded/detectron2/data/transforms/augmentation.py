"""What an augmentation is: a policy that looks at its input and chooses the transform to apply."""

import inspect
import pprint
from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import Transform, TransformList


class Augmentation:
    """A policy, often random, that chooses a :class:`Transform`.

    A subclass implements ``get_transform``; its argument names are the attributes of the :class:`AugInput`
    that it looks at. A single argument is the image whatever its name. Randomness comes from numpy's global
    generator.
    """

    input_args: tuple[str, ...] | None = None
    """Names of the input's attributes that ``get_transform`` is called with; found when first needed."""

    def _init(self, params: dict[str, Any] | None = None) -> None:
        """Set attributes from a constructor's ``locals()``, so that ``repr`` can show them."""
        for name, value in (params or {}).items():
            if name != "self" and not name.startswith("_"):
                setattr(self, name, value)

    def get_transform(self, *args: Any) -> Transform:
        """Choose the transform for the input.

        Args:
            *args: what ``input_args`` names; by convention ``image`` is (H, W) or (H, W, C), uint8, or float
                in [0, 1] or [0, 255]; ``boxes`` (N, 4) float32, XYXY, pixels; ``sem_seg`` (H, W) uint8 label.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement get_transform.")

    def __call__(self, aug_input: Any) -> Transform:
        """Choose a transform, apply it to ``aug_input`` in place, and return it.

        Raises:
            AttributeError: the input lacks what ``get_transform`` asks for.
            TypeError: ``get_transform`` has ``*args`` or ``**kwargs``, which name nothing.
            AssertionError: ``get_transform`` returned something other than a transform.
        """
        transform = self.get_transform(*self._read(aug_input))
        assert isinstance(transform, Transform), (
            f"{type(self)}.get_transform must return an instance of Transform! Got {type(transform)} instead."
        )
        aug_input.transform(transform)
        return transform

    def _read(self, aug_input: Any) -> list[Any]:
        if self.input_args is None:
            self.input_args = self._argument_names()
        missing = [name for name in self.input_args if not hasattr(aug_input, name)]
        if missing:
            raise AttributeError(
                f"{type(self)}.get_transform needs input attribute '{missing[0]}', "
                f"but it is not an attribute of {type(aug_input)}!"
            )
        return [getattr(aug_input, name) for name in self.input_args]

    def _argument_names(self) -> tuple[str, ...]:
        parameters = inspect.signature(self.get_transform).parameters
        if len(parameters) == 1:
            return ("image",)
        if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values()):
            raise TypeError(
                f"{type(self)}.get_transform has *args or **kwargs, so its inputs have no names: "
                "name the arguments, or implement __call__."
            )
        return tuple(parameters)

    def _rand_range(self, low: float = 1.0, high: float | None = None, size: Any = None) -> Any:
        """Draw uniformly from [low, high), or from [0, low) where ``high`` is None."""
        if high is None:
            low, high = 0, low
        return np.random.uniform(low, high, [] if size is None else size)

    def __repr__(self) -> str:
        # Constructor arguments that differ from their defaults, as long as all are kept as attributes.
        shown = []
        for name, parameter in inspect.signature(self.__init__).parameters.items():  # type: ignore[misc]
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or not hasattr(self, name):
                return super().__repr__()
            value = getattr(self, name)
            if value is not parameter.default:
                text = pprint.pformat(value)
                shown.append(f"{name}={'...' if chr(10) in text else text}")
        return f"{type(self).__name__}({', '.join(shown)})"

    __str__ = __repr__


class _FixedAugmentation(Augmentation):
    """The policy that always chooses the transform it was given."""

    def __init__(self, tfm: Transform) -> None:
        self.tfm = tfm

    def get_transform(self, *args: Any) -> Transform:
        return self.tfm

    def __repr__(self) -> str:
        return repr(self.tfm)

    __str__ = __repr__


def transform_to_augmentation(tfm_or_aug: Transform | Augmentation) -> Augmentation:
    """Return an augmentation that chooses the given transform, or the augmentation itself.

    Raises:
        AssertionError: it is neither.
    """
    assert isinstance(tfm_or_aug, (Transform, Augmentation)), tfm_or_aug
    return tfm_or_aug if isinstance(tfm_or_aug, Augmentation) else _FixedAugmentation(tfm_or_aug)


class AugmentationList(Augmentation):
    """Several augmentations, each of which sees what the ones before it made.

    It can only be called: no transform is known before the first one has been applied.

    Args:
        augs: augmentations or transforms.
    """

    def __init__(self, augs: Sequence[Augmentation | Transform]) -> None:
        super().__init__()
        self.augs = [transform_to_augmentation(aug) for aug in augs]

    def __call__(self, aug_input: Any) -> TransformList:
        """Apply all to ``aug_input`` in place and return the list of the transforms used."""
        return TransformList([aug(aug_input) for aug in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList[{', '.join(map(str, self.augs))}]"

    __str__ = __repr__


class AugInput:
    """The data that augmentations look at and change in place.

    Any other class serves too that has a ``transform`` method and what the augmentations ask for.

    Args:
        image: (H, W) or (H, W, C), uint8, or float in [0, 1] or [0, 255].
        boxes: (N, 4) float32, XYXY, pixels.
        sem_seg: (H, W) uint8, a label per pixel.

    Raises:
        AssertionError: the image is no array of two or three axes.
    """

    def __init__(
        self, image: np.ndarray, *, boxes: np.ndarray | None = None, sem_seg: np.ndarray | None = None
    ) -> None:
        assert isinstance(image, np.ndarray), f"AugInput(image=) expects a numpy array, got {type(image)}."
        assert image.ndim in (2, 3), f"AugInput(image=) expects (H, W) or (H, W, C), got {image.shape}."
        self.image, self.boxes, self.sem_seg = image, boxes, sem_seg

    def transform(self, tfm: Transform) -> None:
        """Replace every attribute that is set by its transformed value."""
        self.image = tfm.apply_image(self.image)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)

    def apply_augmentations(self, augmentations: Sequence[Augmentation | Transform]) -> TransformList:
        """Apply the augmentations in order and return the transforms used."""
        return AugmentationList(augmentations)(self)


def apply_augmentations(augmentations: Sequence[Augmentation | Transform], inputs: Any) -> tuple[Any, TransformList]:
    """Apply augmentations to an image or an :class:`AugInput`.

    Returns:
        What came in, transformed (an image, or the same input object), and the transforms used.
    """
    if isinstance(inputs, np.ndarray):
        wrapped = AugInput(inputs)
        transforms = wrapped.apply_augmentations(augmentations)
        return wrapped.image, transforms
    return inputs, inputs.apply_augmentations(augmentations)


# Older names of the same things, which projects still use.
TransformGen = Augmentation
StandardAugInput = AugInput
apply_transform_gens = apply_augmentations
