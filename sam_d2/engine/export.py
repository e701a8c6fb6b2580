"""A checkpoint as the file that the model's own library reads: segment_anything, Detectron2 or torchvision."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import OmegaConf
from segment_anything import sam_model_registry
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.ops import FrozenBatchNorm2d

from detectron2.config import instantiate
from sam_d2.config import load_config
from sam_d2.engine.base_weights import ENTRY, whole_weights
from sam_d2.engine.checkpoint import FINAL, Checkpointer
from sam_d2.engine.checkpoint_file import load_checkpoint_file, weights_in
from sam_d2.engine.weights import find_weights
from sam_d2.engine.whole_checkpoint import whole_checkpoint
from sam_d2.errors import UserError
from sam_d2.modeling.lora import lora_keys, merged_state_dict
from sam_d2.modeling.sam import PARTS
from sam_d2.modeling.weights_record import WeightsRecord
from sam_d2.run_folders import require_run

Library = Literal["segment_anything", "detectron2", "torchvision"]

_DETECTRON2_PARTS = {"backbone", "proposal_generator", "roi_heads"}
_TORCHVISION_PARTS = {"backbone", "rpn", "roi_heads"}
_DEFAULTS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
"""What torchvision takes for None."""
_VARIANTS = ("vit_b", "vit_l", "vit_h")


def checkpoint_of(run_or_checkpoint: str) -> Path:
    """Return a run's final checkpoint, or the file of that path or name.

    Raises:
        UserError: there is none.
    """
    folder = Path(run_or_checkpoint)
    if not folder.is_dir():
        if not folder.suffix:
            require_run(folder, others="checkpoint")
        return find_weights(run_or_checkpoint)
    file = folder / f"{FINAL}.pth"
    if not file.is_file():
        newest, _ = whole_checkpoint(folder)
        instead = f"Name its newest checkpoint instead: {newest}" if newest else "It has no other checkpoint"
        raise UserError(f"{folder} has no {FINAL}.pth: the run has not ended. {instead}.")
    return file


def official_state_dict(checkpoint: Path, config_file: Path | None = None) -> dict[str, Tensor]:
    """Return a checkpoint's weights whole, under the names of the model's own library, LoRA's matrices added in.

    Args:
        checkpoint: small or whole.
        config_file: of the model, which is then built and loaded strictly. Without one only a model with LoRA is
            built, from the ``config.yaml`` beside the checkpoint.

    Returns:
        Tensors of their own on the CPU.

    Raises:
        UserError: base or config is not found, or the weights are not of a whole model of :func:`library_of`.
    """
    data = load_checkpoint_file(checkpoint)
    state = whole_weights(data, checkpoint)[0] if ENTRY in data else weights_in(data, checkpoint)
    if config_file is None and lora_keys(state):
        config_file = checkpoint.parent / "config.yaml"
        if not config_file.is_file():
            raise UserError(
                f"{checkpoint} has LoRA's matrices. Name the config that it was trained with: --config-file."
            )
    if config_file is not None:
        model = instantiate(load_config(config_file).model)
        Checkpointer(model).load(str(checkpoint))
        state = merged_state_dict(model)
    if library_of(state) is None:
        strange = next((name for name in sorted(state) if name.partition(".")[0] not in PARTS), "")
        shown = f" (it holds {strange})" if strange else ""
        raise UserError(
            f"{checkpoint} is neither a SAM of {', '.join(PARTS)}{shown} nor a whole detector of Detectron2 or "
            "torchvision; there is no such file of it."
        )
    return {name: value.detach().cpu().clone() for name, value in state.items()}


def library_of(state: dict[str, Tensor]) -> Library | None:
    """Return the library whose own names the weights of a whole model have; None for any other."""
    parts = {name.partition(".")[0] for name in state}
    if parts == set(PARTS):
        return "segment_anything"
    if parts == _DETECTRON2_PARTS:
        return "detectron2"
    return "torchvision" if parts == _TORCHVISION_PARTS else None


def file_content(state: dict[str, Tensor]) -> dict[str, Any]:
    """Return what the library's own loader expects in a ``.pth``: Detectron2 the weights as ``model``, others bare."""
    return {"model": state} if library_of(state) == "detectron2" else state


def torchvision_lines(state: dict[str, Tensor], config_file: Path | None) -> list[str]:
    """Return the Python that builds torchvision's model with the weights' settings, as ``model``, without the loading.

    Args:
        state: weights of a torchvision model.
        config_file: that they were trained with; None leaves all settings at torchvision's defaults.
    """
    # The box head of the second version has convolutions before its one linear layer.
    version = "" if "roi_heads.box_head.fc6.weight" in state else "_v2"
    outputs = len(state["roi_heads.box_predictor.cls_score.weight"])
    arguments = {"weights_backbone": None, "num_classes": outputs}
    epsilon = None
    if config_file is not None:
        settings: Any = load_config(config_file).model
        norm = next(
            (module for module in instantiate(settings).modules() if isinstance(module, FrozenBatchNorm2d)), None
        )
        epsilon = None if norm is None or norm.eps == nn.BatchNorm2d(1).eps else norm.eps
        plain = OmegaConf.to_container(settings, resolve=True)
        assert isinstance(plain, dict)
        for name, parameter in inspect.signature(MaskRCNN).parameters.items():
            default = _DEFAULTS.get(name, parameter.default)
            if name in plain and name != "num_classes" and plain[name] not in (default, [default]):
                arguments[name] = plain[name]
    shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    lines = [f"model = torchvision.models.detection.maskrcnn_resnet50_fpn{version}({shown})"]
    if epsilon is not None:
        norms = "for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)"
        lines.append(f'[setattr(module, "eps", {epsilon}) {norms}]')
    return lines


def wants_drawn_boxes(checkpoint: Path) -> bool:
    """Tell whether a checkpoint's weights were trained with ``model.draw_boxes``, which no other program knows of."""
    return bool(load_checkpoint_file(checkpoint, mmap=True).get(WeightsRecord.DRAW_BOXES))


def is_calibrated(checkpoint: Path) -> bool:
    """Tell whether a checkpoint holds a calibration of its scores, which an exported file has no place for."""
    return bool(load_checkpoint_file(checkpoint, mmap=True).get(WeightsRecord.CALIBRATIONS))


def registry_name(state: dict[str, Tensor]) -> str | None:
    """Return the name under which ``sam_model_registry`` builds a model that the weights fit, None for any other."""
    shapes = {name: value.shape for name, value in state.items()}
    for name in _VARIANTS:
        with torch.device("meta"):
            model = sam_model_registry[name]()
        if {key: value.shape for key, value in model.state_dict().items()} == shapes:
            return name
    return None
