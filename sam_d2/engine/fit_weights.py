"""Whether the weights of a file fit a model: all of them, or as much as a training may begin with."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from torch import Tensor

from sam_d2.errors import UserError

logger = logging.getLogger(__name__)

_MADE_FROM_CONFIG = re.compile(r"^pixel_(mean|std)$|anchor_generator\.cell_anchors")
_STATISTICS = re.compile(r"\.running_(mean|var)$")
_BACKBONE = "backbone."
_BOTTOM_UP = ("backbone.bottom_up.", "backbone.body.")
"""Of Detectron2's and of torchvision's feature pyramids."""
_COUNTER = ".num_batches_tracked"
_SHOWN = 3


def fit_weights(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], *, begins: bool, matched: bool, file: str
) -> dict[str, Tensor]:
    """Return the weights of a file that a model is to take.

    Where a training begins, two things more than a perfect fit are legal. A file of a backbone, which has nothing of
    the model's other parts, leaves these as they are. Predictors for another number of classes are left out, and the
    model's begin anew. Both are said.

    Args:
        state: of the file, under the model's names.
        own: of the model.
        begins: whether a training begins with them; otherwise they must fit.
        matched: whether the names were matched to the model's: such a file may have what no detector has, such as a
            classifier, and lacks the statistics that MSRA's weights have absorbed.
        file: for messages.

    Raises:
        UserError: weights are missing, left over, or of another shape.
    """
    state = {name: value for name, value in state.items() if name in own or not _MADE_FROM_CONFIG.search(name)}
    reshaped = [name for name, value in own.items() if name in state and state[name].shape != value.shape]
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    if matched:
        missing = [name for name in missing if not (_STATISTICS.search(name) and _scale_of(name) in state)]
    other_classes = reshaped and all(_is_of_other_classes(name, state[name], own[name]) for name in reshaped)
    if begins and other_classes:
        for name in reshaped:
            del state[name]
        logger.warning(
            "*** %s was trained on other classes: these predictors begin anew, with random weights: %s ***",
            file,
            ", ".join(f"{name} {tuple(own[name].shape)}" for name in reshaped),
        )
        reshaped = []
    if begins and missing and not reshaped and _is_backbone(state, own, missing, unknown):
        _log_random(missing, len(own), unknown, file)
        return {name: value for name, value in state.items() if name in own}
    found = [
        f"{len(names)} {kind} ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
        for kind, names in (
            ("missing from the file", missing),
            ("in the file only", unknown),
            ("of another shape", [f"{name} {_shapes(state[name], own[name])}" for name in reshaped]),
        )
        if names
    ]
    if found:
        hint = " It was trained on other classes; a training may begin with it all the same." if other_classes else ""
        raise UserError(
            f"The checkpoint {file} does not fit the model: keys {'; '.join(found)}.{hint} Take the config that it was "
            "trained with (config.yaml beside it), or another checkpoint."
        )
    return dict(state)


def _scale_of(statistics: str) -> str:
    return _STATISTICS.sub(".weight", statistics)


def _shapes(value: Tensor, own: Tensor) -> str:
    return f"{tuple(value.shape)} instead of {tuple(own.shape)}"


def _is_of_other_classes(name: str, value: Tensor, own: Tensor) -> bool:
    """Whether a weight is of a predictor that has as many outputs as there are classes, and differs in these alone."""
    return "predictor" in name and value.dim() == own.dim() and value.shape[1:] == own.shape[1:]


def _is_backbone(state: Iterable[str], own: Iterable[str], missing: Iterable[str], unknown: Iterable[str]) -> bool:
    """Whether what a file has of a model is its backbone, and one of the same depth.

    Parts of the bottom-up network that the file does not have at all may begin at random, such as the norms that MViT's
    classifier lacks; a stage that it has, it must have whole, and no more of it than the model.
    """
    found = set(own) & set(state)
    stages = {_stage_and_block(name)[0] for name in found if name.startswith(_BOTTOM_UP)}
    # What is no block of a stage is a classifier's: its last layer counts as one of the stem in some files.
    blocks = [name for name in unknown if _stage_and_block(name)[1].isdecimal()]
    uneven = [name for name in (*missing, *blocks) if _stage_and_block(name)[0] in stages]
    uneven = [name for name in uneven if not name.endswith(_COUNTER)]
    return bool(stages) and all(name.startswith(_BACKBONE) for name in found) and not uneven


def _stage_and_block(name: str) -> tuple[str, str]:
    """Return the first two components of a name inside of the bottom-up network, such as ``res4`` and ``5``."""
    for prefix in _BOTTOM_UP:
        name = name.removeprefix(prefix)
    stage, block, *_ = [*name.split("."), ""]
    return stage, block


def _log_random(missing: list[str], total: int, unknown: list[str], file: str) -> None:
    parts = Counter(".".join(name.split(".")[:2]) for name in missing)
    logger.warning(
        "%s holds a backbone alone: %d of the model's %d weights stay random (%s)",
        file,
        len(missing),
        total,
        ", ".join(f"{part} {count}" for part, count in parts.items()),
    )
    if unknown:
        logger.info("Not used of %s: %s", file, ", ".join(unknown[:10]) + (", ..." if len(unknown) > 10 else ""))
