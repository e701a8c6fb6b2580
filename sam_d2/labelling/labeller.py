"""The masks of an image's boxes, with their scores, as fields of COCO annotations."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
import pycocotools.mask as mask_utils
import torch

from sam_d2.data.annotated_image import read_annotated_image
from sam_d2.engine.oom import is_out_of_memory
from sam_d2.errors import UserError
from sam_d2.labelling.index import BoxedImage
from sam_d2.labelling.journal import MADE, MadeAnnotation
from sam_d2.labelling.polygons import mask_to_polygons
from sam_d2.modeling.prompts import Prompts
from sam_d2.predictor import Predictor

PROMPT = "box"
EMPTY, SMALL, LARGE, LOW_SCORE, UNSTABLE = "empty", "min_area", "max_area", "min_score", "min_stability"
"""Outcomes of boxes without a mask: none was predicted, or the filter of that name took it."""

Format = Literal["rle", "polygons"]
_DIGITS = 4


class DamagedModelError(UserError):
    """A model whose scores are no numbers: no image is to blame, and none of its masks is worth anything."""


@dataclass(frozen=True)
class Filters:
    """Which masks are good enough.

    Attributes:
        min_score: least score.
        min_stability: least stability, 0-1.
        min_area: pixels.
        max_area: pixels.
    """

    min_score: float | None = None
    min_stability: float | None = None
    min_area: float | None = None
    max_area: float | None = None

    def outcome(self, area: int, score: float, stability: float) -> str:
        """Return :data:`MADE`, or the first reason to drop a mask."""
        if area == 0:
            return EMPTY
        if self.min_area is not None and area < self.min_area:
            return SMALL
        if self.max_area is not None and area > self.max_area:
            return LARGE
        if self.min_score is not None and score < self.min_score:
            return LOW_SCORE
        if self.min_stability is not None and stability < self.min_stability:
            return UNSTABLE
        return MADE


@dataclass(frozen=True)
class BoxLabeller:
    """Makes a mask of each box of an image.

    Attributes:
        predictor: with a model that takes prompts.
        filters: what is dropped.
        provenance: ``model`` and ``checkpoint_sha256`` of each annotation's provenance.
        form: of the masks: run lengths, or polygons, which have no holes.
    """

    predictor: Predictor
    filters: Filters
    provenance: dict[str, str]
    form: Format = "rle"

    def __call__(self, image: BoxedImage) -> list[MadeAnnotation]:
        """Return what becomes of the boxes of an image, in their order.

        The image is encoded once, and so many masks are held at a time as the decoder takes at once. Where a GPU's
        memory does not suffice it is done again, mask by mask.

        Raises:
            DamagedModelError: a score is not finite.
            UserError: the image cannot be read, is of another size than the file says, too thin for the canvas, or
                too large for the GPU even so.
        """
        made = self._try(image, nullcontext())
        if made is None:
            made = self._try(image, self.predictor.model.saving_memory())
        if made is None:
            raise UserError(
                f"{image.file_name}: the GPU's memory does not suffice for it, even mask by mask. End what else uses "
                "the GPU and repeat the command, or cut the image into tiles."
            )
        return made

    def _try(self, image: BoxedImage, way: AbstractContextManager[None]) -> list[MadeAnnotation] | None:
        """Return what becomes of the boxes, or None where memory did not suffice."""
        try:
            with way:
                return self._label(image)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Not before the error is gone: its traceback holds what filled the memory.
        gc.collect()
        torch.cuda.empty_cache()
        return None

    def _label(self, image: BoxedImage) -> list[MadeAnnotation]:
        height, width = image.size
        record = {"file_name": str(image.file_name), "image_id": image.id, "height": height, "width": width}
        model = self.predictor.model
        encoded = self.predictor.encode(read_annotated_image(record, "RGB"))
        boxes = torch.from_numpy(image.boxes.astype(np.float32))
        prompts = Prompts(boxes=boxes).rescaled(encoded.original, encoded.resized)
        made: list[MadeAnnotation] = []
        for start in range(0, len(prompts), model.instances_per_chunk):
            chunk = slice(start, start + model.instances_per_chunk)
            found = model.predict(encoded.embedding, prompts[chunk], encoded.resized, record, rle=True)
            made += self._annotations(image.annotations[chunk], found)
        return made

    def _annotations(self, rows: list[int], found: Any) -> Iterator[MadeAnnotation]:
        """Return what becomes of some boxes; ``found`` are the Instances predicted for them."""
        scores, stabilities = found.scores.tolist(), found.stability.tolist()
        for number, rle in enumerate(found.pred_masks_rle):
            # Rounded before they are compared: no annotation says a score that its filter would not have passed.
            score, stability = round(scores[number], _DIGITS), round(stabilities[number], _DIGITS)
            if not (math.isfinite(score) and math.isfinite(stability)):
                raise DamagedModelError(
                    f"{self.predictor.weights}: the score of a mask is {score}, its stability {stability}: the weights "
                    "are damaged, or come from a training that diverged. Name others with --weights."
                )
            outcome = self.filters.outcome(int(mask_utils.area(rle)), score, stability)
            fields = None if outcome != MADE else self._fields(rle, score, stability)
            yield MadeAnnotation(rows[number], outcome, fields)

    def _fields(self, rle: Any, score: float, stability: float) -> bytes:
        segmentation: Any = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
        if self.form == "polygons":
            segmentation = mask_to_polygons(mask_utils.decode(rle).astype(bool))
            rle = mask_utils.merge(mask_utils.frPyObjects(segmentation, *rle["size"]))
        provenance = {**self.provenance, "prompt": PROMPT, "score": score, "stability": stability}
        area = int(mask_utils.area(rle))
        return msgspec.json.encode({"segmentation": segmentation, "area": area, "provenance": provenance})
