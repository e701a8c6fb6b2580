"""A detector as the finder of SAM's prompts, on one image at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from detectron2.structures import Instances
from sam_d2.detector import Detector
from sam_d2.errors import UserError
from sam_d2.evaluation.detections import ImageDetections
from sam_d2.evaluation.detector_prompts import prompt_instances
from sam_d2.model_source import find_model


class BoxFinder:
    """Finds the boxes that prompt SAM where nobody gives any; the detector is loaded when it is first needed.

    Args:
        cfg: of SAM: its ``dataloader.detector`` names the detector, the least score and the number of boxes.
        detector: instead of the one in ``cfg``: a config, a config file, or the folder of a run.
        weights: of ``detector``; by default the run's, or what its config begins with.
        device: of the detector.

    Raises:
        UserError: the detector's config or weights do not exist, or it takes prompts itself.
    """

    def __init__(
        self,
        cfg: DictConfig,
        detector: str | Path | DictConfig | None,
        weights: str | Path | None,
        device: torch.device,
    ) -> None:
        asked: Any = OmegaConf.select(cfg, "dataloader.detector") or {}
        named = "detector="
        if detector is None:
            named = "dataloader.detector.config="
            detector, weights = asked.get("config") or None, asked.get("weights") or None
        self._limits = {"min_score": asked.get("min_score", 0.0), "max_boxes": asked.get("max_boxes")}
        self._device = device
        self._model = (
            None if detector is None else find_model(detector, weights, option="detector_weights", named=named)
        )
        if self._model is not None and "prompts" in self._model[0].model:
            raise UserError(
                f"Predictor: the detector of {self._model[1]} takes prompts itself; name one that does not."
            )

    def __bool__(self) -> bool:
        """Whether there is a detector."""
        return self._model is not None

    @property
    def weights(self) -> Path | None:
        """The detector's file; None where there is no detector."""
        return None if self._model is None else self._model[1]

    @cached_property
    def detector(self) -> Detector:
        """The detector.

        Raises:
            UserError: none was named, or its weights do not fit it.
        """
        if self._model is None:
            raise UserError("Predictor: no detector is named: Predictor(..., detector=...).")
        return Detector(*self._model, self._device)

    def __call__(self, pixels: Callable[[str], np.ndarray]) -> Instances:
        """Find the boxes of an image.

        Args:
            pixels: gives the image (H0, W0, 3) uint8 in an order of channels, ``RGB`` or ``BGR``.

        Returns:
            By falling score ``pred_boxes`` XYXY, ``scores`` and ``pred_classes``, original frame: what
            :func:`~sam_d2.evaluation.detector_prompts.prompt_instances` leaves of the detections.
        """
        found = self.detector(pixels(self.detector.input_format))
        boxes = found.pred_boxes.tensor.double().numpy()
        image = ImageDetections(0, found.scores.double().numpy(), found.pred_classes.numpy(), boxes, None)
        return self.prompts(image, found.image_size)[0]

    def prompts(self, found: ImageDetections, size: tuple[int, int]) -> tuple[Instances, Counter[str]]:
        """Return what is asked of boxes that anybody has found in an image of ``size`` (H0, W0), and what is left out.

        Both as :func:`~sam_d2.evaluation.detector_prompts.prompt_instances` returns them, with the config's limits.
        """
        return prompt_instances(found, size, **self._limits)
