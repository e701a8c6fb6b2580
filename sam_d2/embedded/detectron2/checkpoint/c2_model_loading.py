"""Weights under names that are not the model's: those of Caffe2, and those without the model's prefixes."""

import logging
import re
from typing import Any

import torch

__all__ = ["align_and_update_state_dicts", "convert_c2_detectron_names"]

State = dict[str, torch.Tensor]

# From Caffe2's names to Detectron2's, applied in order to names whose underscores have become dots.
_RULES: list[tuple[str, Any]] = [
    (r"^pred\.([bw])$", r"linear.\1"),
    (r"\.b$", ".bias"),
    (r"\.w$", ".weight"),
    (r"[bg]n\.(s|gamma)$", "norm.weight"),
    (r"[bg]n\.(bias|beta)$", "norm.bias"),
    (r"bn\.(rm|running\.mean)$", "norm.running_mean"),
    (r"bn\.(riv|running\.var)$", "norm.running_var"),
    (r"^(res\.(?=conv1\.norm\.))?conv1\.", "stem.conv1."),
    (r"\.branch1\.", ".shortcut."),
    (r"\.branch2([abc])\.", lambda match: f".conv{'abc'.index(match[1]) + 1}."),
    (r"conv\.rpn(\.fpn2)?", "proposal_generator.rpn_head.conv"),
    (r"rpn\.bbox\.pred(\.fpn2)?", "proposal_generator.rpn_head.anchor_deltas"),
    (r"rpn\.cls\.logits(\.fpn2)?", "proposal_generator.rpn_head.objectness_logits"),
    (r"^fpn\.inner\.res(\d+)\..*?(\.norm)?(\.\w+)$", r"fpn_lateral\1\2\3"),
    (r"^fpn\.res(\d+)\..*?(\.norm)?(\.\w+)$", r"fpn_output\1\2\3"),
    (r"^bbox\.pred", "bbox_pred"),
    (r"^cls\.score", "cls_score"),
    (r"^fc6\.", "box_head.fc1."),
    (r"^fc7\.", "box_head.fc2."),
    (r"^head\.conv", "box_head.conv"),
    (r"^\.(mask|\[mask\])\.fcn", "mask_head.mask_fcn"),
    (r"mask\.fcn\.logits", "mask_head.predictor"),
    (r"conv5\.mask", "mask_head.deconv"),
]
# Caffe2's predictors have the background as their first class: so many rows of these go.
_BACKGROUND_ROWS = {"bbox_pred.": 4, "mask_head.predictor.": 1}


def convert_c2_detectron_names(weights: State) -> tuple[State, dict[str, str]]:
    """Rename the weights of a backbone, Faster R-CNN or Mask R-CNN of Caffe2, and reorder the predictors' classes.

    Args:
        weights: by Caffe2's names. Keypoint heads and DensePose are not known.

    Returns:
        weights by Detectron2's names, without prefixes such as ``backbone.``; Caffe2's name of each.

    Raises:
        ValueError: two weights get the same name.
    """
    converted: State = {}
    origins: dict[str, str] = {}
    for origin in sorted(weights):
        name, value = origin.replace("_", "."), weights[origin]
        for pattern, replacement in _RULES:
            name = re.sub(pattern, replacement, name)
        if name in origins:
            raise ValueError(f"{origin} and {origins[name]} of the checkpoint both become {name}")
        dropped = sum(rows for prefix, rows in _BACKGROUND_ROWS.items() if name.startswith(prefix))
        value = value[dropped:] if dropped else value
        converted[name] = value.roll(-1, 0) if name.startswith("cls_score.") else value
        origins[name] = origin
    return converted, origins


def align_and_update_state_dicts(model_state_dict: State, ckpt_state_dict: State, c2_conversion: bool = True) -> State:
    """Give weights the names of a model's, where theirs are the ends of those.

    A weight of the model takes that of the longest name which, dot by dot, ends its own: ``backbone.res2.conv1.weight``
    takes ``res2.conv1.weight`` rather than ``conv1.weight``. One of another shape is left out, with a warning.

    Args:
        model_state_dict: the model's.
        ckpt_state_dict: of the file.
        c2_conversion: the file's names are Caffe2's.

    Returns:
        the file's weights by the model's names, in the model's order, then those that fit nowhere by their own.

    Raises:
        ValueError: one weight fits two of the model's.
    """
    logger = logging.getLogger(__name__)
    if c2_conversion:
        ckpt_state_dict, _ = convert_c2_detectron_names(ckpt_state_dict)
    found: State = {}
    taken: dict[str, str] = {}
    for key, own in sorted(model_state_dict.items()):
        parts = key.split(".")
        ends = (".".join(parts[start:]) for start in range(len(parts)))
        name = next((end for end in ends if end in ckpt_state_dict), None)
        if name is None:
            continue
        value = ckpt_state_dict[name]
        if value.shape != own.shape:
            logger.warning(f"{name} {tuple(value.shape)} is not loaded: {key} is {tuple(own.shape)}")
            continue
        if name in taken:
            raise ValueError(f"{name} of the checkpoint fits two weights of the model, {taken[name]} and {key}")
        found[key], taken[name] = value, key
    if not found:
        logger.warning("none of the model's weights is in the checkpoint")
        return ckpt_state_dict
    logger.info(f"{len(found)} of the model's {len(model_state_dict)} weights are in the checkpoint")
    return found | {name: value for name, value in sorted(ckpt_state_dict.items()) if name not in taken}
