"""A trained model, or a detector and SAM, on one image at a time, from Python."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from detectron2.config import instantiate
from detectron2.structures import Instances
from sam_d2.box_finder import BoxFinder
from sam_d2.data.canvas_resize import canvas_resize, require_resizable
from sam_d2.data.image import image_array, read_image
from sam_d2.detector import Detector
from sam_d2.engine.checkpoint import Checkpointer
from sam_d2.engine.distributed import choose_device
from sam_d2.errors import UserError
from sam_d2.evaluation.coco_evaluator import encode_masks
from sam_d2.evaluation.detections import ImageDetections
from sam_d2.model_classes import ModelClasses, classes_of
from sam_d2.model_source import find_model
from sam_d2.modeling.postprocess import MaskCodes, encode_logits, instances_of
from sam_d2.modeling.prompt_recipes import PromptRecipe, detector_recipe
from sam_d2.modeling.prompts import Prompts
from sam_d2.modeling.scoring import SCORES

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedImage:
    """What :meth:`Predictor.encode` makes of an image; the costly part, which prompts of any number share.

    Attributes:
        embedding: (C, S/p, S/p), on the predictor's device.
        resized: (H, W), size of the resized frame.
        original: (H0, W0), size of the image as it was given.
    """

    embedding: Tensor
    resized: tuple[int, int]
    original: tuple[int, int]


class Predictor:
    """Masks on an image, with the numbers of an evaluation: SAM's for boxes or points, a detector's by itself.

    Example::

        predictor = sam_d2.Predictor("experiments/output/sam_cells_box")
        instances = predictor("cells.png", boxes=[[10, 20, 110, 90], [130, 40, 200, 180]])
        instances.pred_masks  # (2, H0, W0) bool

        detector = sam_d2.Predictor("experiments/output/mask_rcnn_R_50_FPN_3x_cells")
        instances = detector("cells.png")  # with scores and pred_classes

        pair = sam_d2.Predictor("experiments/output/sam_cells_box", detector="experiments/output/mask_rcnn_R_50_cells")
        instances = pair("cells.png")  # SAM's masks in the boxes that the detector finds, with its classes

    Args:
        config: a config file, a config, or the folder of a run, which means its ``config.yaml``.
        weights: a path, or a file name in a checkpoints folder. By default the ``model_final.pth`` of a run's
            folder, and what ``train.init_checkpoint`` of a config names.
        device: ``auto`` is the GPU where there is one, and the CPU elsewhere.
        detector: of SAM: finds the boxes of images that come without prompts; as ``config``. By default what the
            config's ``dataloader.detector`` names; it is loaded when it is first needed. Its ``min_score`` and
            ``max_boxes`` hold for either.
        detector_weights: of the detector, as ``weights``.

    Raises:
        UserError: config or weights do not exist or do not fit.
    """

    def __init__(
        self,
        config: str | Path | DictConfig,
        weights: str | Path | None = None,
        device: str = "auto",
        *,
        detector: str | Path | DictConfig | None = None,
        detector_weights: str | Path | None = None,
    ) -> None:
        cfg, file = find_model(config, weights)
        self.weights = str(file)
        self.model: Any
        self.detector = None if "prompts" in cfg.model else Detector(cfg, file, choose_device(device))
        if self.detector is not None:
            self.model = self.detector.model
        else:
            self.model = instantiate(cfg.model).to(choose_device(device)).eval()
            Checkpointer(self.model).load(str(file))
        logger.info("Predicting with %s", file)
        self.finder = BoxFinder(cfg, detector, detector_weights, choose_device(device))
        if self.detector is not None and self.finder:
            raise UserError("Predictor: detector=... is for SAM; this model is a detector itself.")

    @property
    def classes(self) -> ModelClasses | None:
        """Names and category ids by ``pred_classes``: of the detector, where one finds the boxes; None of SAM alone.

        They are those that the detector's run has recorded in its ``config.yaml``, so the dataset need not be there; of
        a config without a run see :func:`sam_d2.model_classes.classes_of`.
        """
        detector = self.detector or (self.finder.detector if self.finder else None)
        return None if detector is None else classes_of(detector.cfg, detector.num_classes)

    @torch.no_grad()
    def encode(self, image: str | Path | np.ndarray | Image.Image) -> EncodedImage:
        """Run the image encoder once, for many calls with prompts.

        Args:
            image: a file, (H0, W0, 3) uint8 in the order RGB, or a Pillow image.

        Raises:
            UserError: the image cannot be read or is too thin for the canvas, or the array is another one, or the
                model takes no prompts.
        """
        if self.detector is not None:
            raise UserError("Predictor: this model takes no prompts; call it with the image alone.")
        array = _pixels(image, self.model.input_format)
        original = (array.shape[0], array.shape[1])
        require_resizable(original, self.model.canvas, str(image) if isinstance(image, str | Path) else "image")
        resize = canvas_resize(self.model.canvas).get_transform(array)
        pixels = torch.from_numpy(np.ascontiguousarray(resize.apply_image(array).transpose(2, 0, 1)))
        images = self.model.preprocess([{"image": pixels}])
        height, width = images.image_sizes[0]
        return EncodedImage(self.model.encode(images.tensor)[0], (int(height), int(width)), original)

    def __call__(
        self,
        image: str | Path | np.ndarray | Image.Image | EncodedImage,
        *,
        boxes: Any = None,
        points: Any = None,
        labels: Any = None,
        multimask: bool = False,
        rle: bool = False,
    ) -> Instances:
        """Return the mask of each prompt; of a detector, which takes none, everything that it finds.

        SAM with a detector and without prompts gives a mask for each box that the detector finds, as an evaluation
        with ``--prompt detector`` does.

        Prompts are arrays, tensors or nested lists in pixels of the image as it was given. With boxes and points
        both, row i of either is one prompt.

        Args:
            image: as :meth:`encode` takes it, or what it returned.
            boxes: (N, 4) edges x0, y0, x1, y1.
            points: (N, P, 2) x, y pixel indices (an integer is the centre of a pixel): P points of each of N
                instances. (N, 2) is one point each; points of a single instance are (1, P, 2).
            labels: (N, P), or (N,) for (N, 2) points: 1 the point is in the instance, 0 it is not, -1 no point.
                All 1 by default.
            multimask: SAM's three masks of each prompt, for one that is ambiguous; rows 3i to 3i + 2 belong to
                prompt i. SAM's published weights have learned them, and what is fine-tuned from those; a training
                from random weights only where ``model.multimask`` says so. Otherwise each prompt has the mask that an
                evaluation gives it.
            rle: ``pred_masks_rle`` in place of ``pred_masks``: a list of N compressed run lengths, as pycocotools has
                them. Dense masks take N * H0 * W0 bytes; for run lengths SAM never holds all of them dense. A detector
                makes dense ones, which are then encoded.

        Returns:
            Instances on the CPU, original frame, one row per mask: ``pred_masks`` (N, H0, W0) bool, ``pred_boxes``,
            ``scores`` (N,) and ``prompt_index`` (N,), the prompt's row, and what ``scores`` may be made of:
            ``predicted_iou``, ``stability``, ``mean_probability`` and ``class_score`` (N,), which is 1 but of a
            detector's boxes. SAM knows no classes, so there are none.
            A detector's have ``pred_classes`` (N,) and no ``prompt_index``, in falling order of ``scores``; so have
            those of SAM with a detector, with ``prompt_index`` by falling score of the detector.

        Raises:
            UserError: neither boxes nor points are given, or a detector is given some; one of them has another shape,
                is not a number or lies outside of the image; the weights never learned the masks of ``multimask``.
        """
        if self.detector is not None:
            if not (boxes is None and points is None and labels is None and not multimask):
                raise UserError("Predictor: this model takes no prompts; call it with the image alone.")
            if isinstance(image, EncodedImage):
                raise UserError("Predictor: a detector takes the image itself.")
            found = self.detector(_pixels(image, self.detector.input_format))
            return _encoded(found) if rle else found
        if boxes is None and points is None:
            if labels is not None or multimask or not self.finder:
                raise UserError(
                    "Predictor: give boxes=... or points=..., or name a detector that finds the boxes: "
                    "Predictor(..., detector=...)."
                )
            if isinstance(image, EncodedImage):
                raise UserError("Predictor: a detector takes the image itself.")
            return self._in_found_boxes(image, rle)
        if not isinstance(image, EncodedImage):
            image = self.encode(image)
        prompts = _prompts(boxes, points, labels, image.original).rescaled(image.original, image.resized)
        if multimask:
            return self._three_masks(image, prompts, rle)
        height, width = image.original
        sample = {"height": height, "width": width}
        result = self.model.predict(image.embedding, prompts, image.resized, sample, rle=rle)
        result.remove("pred_classes")
        return result.to("cpu")

    def _in_found_boxes(self, image: str | Path | np.ndarray | Image.Image, rle: bool) -> Instances:
        asked = self.finder(lambda order: _pixels(image, order))
        return self._in_prompts(self.encode(image), asked, rle)

    def in_boxes_of(
        self,
        image: str | Path | np.ndarray | Image.Image | EncodedImage,
        found: ImageDetections,
        *,
        rle: bool = False,
    ) -> tuple[Instances, Counter[str]]:
        """Return the masks in boxes that another system has found, as an evaluation with ``--prompt-boxes`` does.

        Boxes are clipped to the image; what is without area there, or less sure than ``dataloader.detector.min_score``,
        or beyond the ``max_boxes`` surest, is left out.

        Args:
            image: as :meth:`encode` takes it, or what it returned.
            found: N boxes of the image with scores and classes.
            rle: run lengths in place of dense masks, as a call gives them.

        Returns:
            Instances as a call with a detector gives them, and how many boxes were left out or clipped, by the keys of
            :data:`sam_d2.evaluation.detector_prompts.COUNTS`.

        Raises:
            UserError: the image cannot be read or is too thin for the canvas, or the model takes no prompts.
        """
        if not isinstance(image, EncodedImage):
            image = self.encode(image)
        asked, counts = self.finder.prompts(found, image.original)
        return self._in_prompts(image, asked, rle), counts

    def _in_prompts(self, encoded: EncodedImage, asked: Instances, rle: bool) -> Instances:
        prompts = Prompts(boxes=asked.pred_boxes.tensor).rescaled(encoded.original, encoded.resized)
        height, width = encoded.original
        sample = {"height": height, "width": width, "prompt_instances": asked}
        recipe = detector_recipe(self.model.prompts, self.model.test_prompts)
        result = self.model.predict(encoded.embedding, prompts, encoded.resized, sample, recipe, rle=rle).to("cpu")
        order = result.scores.argsort(descending=True, stable=True)
        if not rle:
            return result[order]
        codes = result.pred_masks_rle
        result.remove("pred_masks_rle")  # a list takes no tensor of indices
        result = result[order]
        result.pred_masks_rle = [codes[row] for row in order.tolist()]
        return result

    @torch.no_grad()
    def _three_masks(self, image: EncodedImage, prompts: Prompts, rle: bool) -> Instances:
        model = self.model
        frames = (model.canvas, image.resized, image.original)
        parts = [encode_logits(torch.zeros((0, model.low_res, model.low_res), device=model.device), *frames)]
        predicted_ious = [torch.zeros(0, device=model.device)]
        for start in range(0, len(prompts), model.instances_per_chunk):
            chunk = prompts[start : start + model.instances_per_chunk].to(model.device)
            logits, predicted_iou = model.decode(image.embedding, chunk, multimask=True)
            parts.append(encode_logits(logits.flatten(0, 1).float(), *frames))
            predicted_ious.append(predicted_iou.flatten().float())
        scores = torch.cat(predicted_ious)
        result = instances_of(MaskCodes.cat(parts), scores, torch.ones_like(scores), dense=not rle)
        result.scores = model.rank({name: result.get(name) for name in SCORES}, PromptRecipe(), prompts)
        result.prompt_index = torch.arange(len(prompts)).repeat_interleave(3)
        return result.to("cpu")


def _encoded(found: Instances) -> Instances:
    """Return a detector's instances with run lengths in place of masks, where it has masks."""
    if found.has("pred_masks"):
        found.pred_masks_rle = encode_masks(found.pred_masks)
        found.remove("pred_masks")
    return found


def _pixels(image: str | Path | np.ndarray | Image.Image, image_format: str) -> np.ndarray:
    """Return an image as (H0, W0, 3) uint8 in the model's order of channels."""
    if isinstance(image, str | Path):
        return read_image(image, image_format)
    if isinstance(image, Image.Image):
        return image_array(image, image_format)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(
            f"image: expected a file, a Pillow image or a (height, width, 3) uint8 array in RGB, found {found}."
        )
    if 0 in image.shape:
        raise UserError(f"image: the array {image.shape} has no pixels.")
    return image[:, :, ::-1] if image_format == "BGR" else image


def _prompts(boxes: Any, points: Any, labels: Any, size: tuple[int, int]) -> Prompts:
    """Check the prompts of an image of ``size`` (height, width) and return them, in its frame."""
    checked_boxes = None if boxes is None else _checked_boxes(_numbers(boxes, "boxes", (0, 4)), size)
    if points is None:
        if labels is not None:
            raise UserError("labels are of points: give points=... too.")
        return Prompts(boxes=checked_boxes)
    array = _numbers(points, "points", (0, 1, 2))
    if array.ndim not in (2, 3) or array.shape[-1] != 2 or (array.ndim == 3 and array.shape[1] == 0):
        raise UserError(f"points: expected (N, P, 2) or (N, 2), found {array.shape}.")
    shape = array.shape[:-1]
    signs = np.ones(shape) if labels is None else _numbers(labels, "labels", shape)
    if signs.shape != shape:
        raise UserError(f"labels: expected {shape}, one for each of the points {array.shape}, found {signs.shape}.")
    if not np.isin(signs, (1, 0, -1)).all():
        raise UserError("labels: expected 1 (in the instance), 0 (not in it) or -1 (no point).")
    if array.ndim == 2:
        array, signs = array[:, None], signs[:, None]
    # Half a pixel around the image's pixels and half for rounding: further out a point is of another frame.
    outside = ((array < -1) | (array > (size[1], size[0]))).any(axis=2) & (signs >= 0)
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise UserError(
            f"points[{row}] = {array[row, column].tolist()} lies outside of the image of {size[1]} x {size[0]} pixels "
            "(x, y of the image as it is given)."
        )
    if checked_boxes is not None and len(checked_boxes) != len(array):
        raise UserError(f"boxes and points of one call belong together: {len(checked_boxes)} boxes, {len(array)} rows.")
    return Prompts(
        boxes=checked_boxes,
        points=torch.from_numpy(array.astype(np.float32)),
        labels=torch.from_numpy(signs.astype(np.int64)),
    )


def _checked_boxes(boxes: np.ndarray, size: tuple[int, int]) -> Tensor:
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise UserError(f"boxes: expected (N, 4), found {boxes.shape}; one box is [[x0, y0, x1, y1]].")
    turned = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    outside = (boxes[:, 2:] < 0).any(axis=1) | (boxes[:, :2] > (size[1], size[0])).any(axis=1)
    for wrong, problem in (
        (turned, "ends before it begins: expected x0, y0, x1, y1 (not width and height)"),
        (outside, f"lies outside of the image of {size[1]} x {size[0]} pixels"),
    ):
        if wrong.any():
            row = int(wrong.argmax())
            raise UserError(f"boxes[{row}] = {boxes[row].tolist()} {problem}.")
    return torch.from_numpy(boxes.astype(np.float32))


def _numbers(values: Any, name: str, empty: tuple[int, ...]) -> np.ndarray:
    """Return values as a float64 array of finite numbers; a list without entries gets the shape ``empty``."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: not an array of numbers ({error}).") from error
    if array.shape == (0,):
        return array.reshape(empty) if 0 in empty else array
    if not np.isfinite(array).all():
        raise UserError(f"{name}[{np.argwhere(~np.isfinite(array))[0][0]}] holds a value that is no finite number.")
    return array
