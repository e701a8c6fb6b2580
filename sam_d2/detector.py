"""A trained detector on one image at a time: what :class:`sam_d2.Predictor` runs for models without prompts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

import detectron2.data.transforms as T
from detectron2.config import instantiate
from detectron2.structures import Instances
from sam_d2.config_dataset import class_keys
from sam_d2.engine.checkpoint import Checkpointer
from sam_d2.errors import UserError
from sam_d2.modeling.torchvision_rcnn import COCO_OUTPUTS, coco_labels


class Detector:
    """A model of this config with weights, and the resize that its evaluation has.

    Args:
        cfg: of a model without prompts. Where its number of classes is null it is that of the weights.
        weights: a file that holds a whole detector.
        device: of the model.

    Raises:
        UserError: the file holds a backbone alone, or a detector of another number of classes.
    """

    def __init__(self, cfg: DictConfig, weights: Path, device: torch.device) -> None:
        cfg = cfg.copy()
        classes = classes_in(weights, cfg)
        for key in class_keys(cfg):
            asked = OmegaConf.select(cfg, key)
            if asked not in (None, classes):
                raise UserError(f"{weights} knows {classes} classes, the config says {key}={asked}: they do not fit.")
            OmegaConf.update(cfg, key, classes)
        self.cfg = cfg
        self.num_classes = classes
        self.model: Any = instantiate(cfg.model).to(device).eval()
        Checkpointer(self.model).load(str(weights))
        mapper = instantiate(cfg.dataloader.test.mapper)
        self.input_format = str(mapper.image_format)
        self._augmentations: T.AugmentationList = mapper.augmentations

    @torch.no_grad()
    def __call__(self, pixels: np.ndarray) -> Instances:
        """Detect on an image (H0, W0, 3) uint8 in the order of ``input_format``.

        Returns:
            Instances on the CPU, original frame, in falling order of ``scores`` (N,): ``pred_boxes`` XYXY,
            ``pred_classes`` (N,) from 0 on, ``pred_masks`` (N, H0, W0) bool.
        """
        height, width = pixels.shape[:2]
        augmented = T.AugInput(pixels)
        self._augmentations(augmented)
        image = torch.as_tensor(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        found = self.model([{"image": image, "height": height, "width": width}])[0]["instances"].to("cpu")
        return found[found.scores.argsort(descending=True, stable=True)]


def classes_in(weights: Path, cfg: DictConfig) -> int:
    """Return the number of classes that the heads in a file tell apart.

    Args:
        weights: the file.
        cfg: of the detector.

    Raises:
        UserError: the file holds no whole detector.
    """
    state: Mapping[str, Tensor] = Checkpointer(nn.Identity(), save_to_disk=False)._load_file(str(weights))["model"]
    heads = [value for name, value in state.items() if name.endswith("cls_score.weight")]
    if not heads:
        raise UserError(
            f"{weights} holds no whole detector (no cls_score): name a checkpoint of a training, or published weights."
        )
    outputs = heads[0].shape[0]
    asked = {OmegaConf.select(cfg, key) for key in class_keys(cfg)}
    # torchvision's heads for COCO have its category ids for labels, with gaps.
    if outputs == COCO_OUTPUTS and cfg.model.get("labels") in ("auto", "coco") and outputs - 1 not in asked:
        return len(coco_labels())
    return outputs - 1
