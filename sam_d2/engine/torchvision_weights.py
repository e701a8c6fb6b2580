"""torchvision's published weights by their names, from files that are there: building a model uses no network."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torchvision.models import ResNet50_Weights, get_model_weights

from sam_d2.engine.checkpoint_file import load_checkpoint_file, weights_in
from sam_d2.engine.fit_weights import fit_weights
from sam_d2.engine.weights import checkpoint_folders, download_folder
from sam_d2.errors import UserError
from sam_d2.modeling.torchvision_build import Architecture, build_mask_rcnn
from sam_d2.modeling.torchvision_rcnn import TorchvisionMaskRCNN

logger = logging.getLogger(__name__)

_EPS_OF_COCO_V1 = 0.0
"""torchvision trained the first Mask R-CNN with frozen norms without epsilon."""


def torchvision_mask_rcnn(
    architecture: Architecture,
    *,
    weights: str | None = None,
    weights_backbone: str | None = None,
    norm_eps: float | None = None,
    **options: Any,
) -> TorchvisionMaskRCNN:
    """Build one of torchvision's Mask R-CNNs, with its published weights where they are named.

    Args:
        architecture: ``maskrcnn_resnet50_fpn`` or ``maskrcnn_resnet50_fpn_v2``.
        weights: torchvision's name of the whole model's weights, ``COCO_V1`` or ``DEFAULT``; read from the
            checkpoints folders. None leaves the model to ``train.init_checkpoint``. The predictors stay random where
            the dataset's labels are not COCO's.
        weights_backbone: likewise of the ResNet-50, ``IMAGENET1K_V1`` or ``IMAGENET1K_V2``; not with ``weights``.
        norm_eps: of frozen norms; by default 0 with v1's ``COCO_V1``, as torchvision has it, and 1e-5 elsewhere.
        **options: as :func:`sam_d2.modeling.torchvision_build.build_mask_rcnn` takes them.

    Raises:
        UserError: there are no weights of that name, or their file is not there; the message has the command.

    Example:
        >>> model = torchvision_mask_rcnn("maskrcnn_resnet50_fpn_v2", num_classes=1, weights="COCO_V1")
    """
    if weights and weights_backbone:
        raise UserError("model.weights holds the backbone's too: set model.weights_backbone to null.")
    url = _url("weights", weights, get_model_weights(architecture)) if weights else ""
    backbone_url = _url("weights_backbone", weights_backbone, ResNet50_Weights) if weights_backbone else ""
    if norm_eps is None:
        norm_eps = _EPS_OF_COCO_V1 if weights and architecture == "maskrcnn_resnet50_fpn" else 1e-5
    model = build_mask_rcnn(architecture, norm_eps=norm_eps, **options)
    if model.device.type == "meta":  # only its shapes are wanted
        return model
    if url:
        _begin_with(model, _local_file(f"model.weights={weights}", url))
    if backbone_url:
        _begin_with(model, _local_file(f"model.weights_backbone={weights_backbone}", backbone_url))
    return model


def _url(key: str, name: str, published: Any) -> str:
    """Return the address of the weights that one of torchvision's enums has under a name."""
    if name not in published.__members__:
        raise UserError(f"model.{key}={name!r}: torchvision has {', '.join(published.__members__)}.")
    return published[name].url


def _local_file(what: str, url: str) -> Path:
    """Return the local file of a published address.

    Raises:
        UserError: it is in none of the checkpoints folders.
    """
    file_name = url.rpartition("/")[2]
    for folder in checkpoint_folders():
        if (folder / file_name).is_file():
            return folder / file_name
    looked = ", ".join(map(str, checkpoint_folders()))
    raise UserError(
        f"{what}: {file_name} is not found (looked in {looked}). Download it into {download_folder()}/: "
        f"python tools/download_checkpoint.py {url}"
    )


def _begin_with(model: TorchvisionMaskRCNN, file: Path) -> None:
    logger.info("Weights of %s", file)
    state, own = weights_in(load_checkpoint_file(file), file), model.state_dict()
    fitting = fit_weights(model.convert_state(state), own, begins=True, matched=False, file=str(file))
    model.load_state_dict({**own, **fitting})
