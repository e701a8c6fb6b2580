"""Fine-tune and run the Segment Anything Model with Detectron2's trainer, on one GPU or none.

Importing this package makes ``import detectron2`` work: the installed Detectron2, or the embedded core
(:mod:`sam_d2.detectron2_source`). ``sam_d2.Predictor`` is imported when it is first used, so that command lines
that need no torch are instant.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sam_d2.detectron2_source import provide_detectron2

if TYPE_CHECKING:
    from sam_d2.predictor import Predictor

__all__ = ["Predictor"]
__version__ = "0.1.0"


@contextmanager
def _without_jit_warning() -> Iterator[None]:
    """Hide that fvcore compiles a function at its import: nothing that a user could change calls torch for it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.script", category=FutureWarning)
        yield


with _without_jit_warning():
    provide_detectron2()


def __getattr__(name: str) -> Any:
    if name != "Predictor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _without_jit_warning():
        from sam_d2.predictor import Predictor

    return Predictor
