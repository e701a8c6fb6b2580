"""From low-res logits to the masks of the original image: as run lengths, with their areas, boxes and scores.

A mask is worked out where it can be, around the cells whose logits are not far below 0, and given up once its runs are
known. So neither time nor memory follow the size of the image times the number of masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_util
import torch
import torch.nn.functional as F
from torch import Tensor

from detectron2.structures import Boxes, Instances
from sam_d2.modeling.float32_precision import exact_products
from sam_d2.modeling.scoring import STABILITY_OFFSET

RLE = dict[str, Any]
"""Compressed run lengths of one mask as pycocotools has them: ``{"size": [H0, W0], "counts": bytes}``."""

PIXELS_AT_ONCE = 2**25
"""Pixels that masks which a GPU works out at once may have together, 128 MiB of logits; a single one may have more."""

_MOST = 1e4
"""Logits are cut to this: with an infinite one, 0 times infinity would be in every pixel of its row."""

_BLOCK = 128
"""Pixels of an axis that are interpolated by one matrix product, from the few cells that they lie between."""


@dataclass(frozen=True)
class MaskCodes:
    """N masks of an image, original frame, and what is measured on their logits there.

    Attributes:
        size: (H0, W0) in pixels.
        rles: their run lengths, byte for byte those of pycocotools.
        areas: (N,) int64, pixels.
        boxes: (N, 4) float32, tight continuous XYXY edges; an empty mask has (0, 0, 0, 0).
        stability: (N,) float32, IoU of the mask thresholded above and below 0, 0 where even the lower threshold leaves
            nothing.
        mean_probability: (N,) float32, of the pixels of the mask; 0 where it is empty.
    """

    size: tuple[int, int]
    rles: list[RLE]
    areas: Tensor
    boxes: Tensor
    stability: Tensor
    mean_probability: Tensor

    def __len__(self) -> int:
        return len(self.rles)

    @staticmethod
    def cat(parts: Sequence[MaskCodes]) -> MaskCodes:
        """Return the masks of several, at least one, of the same image."""
        columns = [field.name for field in fields(MaskCodes)][2:]
        tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in columns}
        return MaskCodes(parts[0].size, [rle for part in parts for rle in part.rles], **tensors)

    def dense(self) -> Tensor:
        """Return the masks as (N, H0, W0) bool, on the CPU."""
        masks = torch.zeros((len(self), *self.size), dtype=torch.bool, device="cpu")
        for mask, rle in zip(masks, self.rles, strict=True):
            mask.copy_(torch.from_numpy(mask_util.decode(rle)))
        return masks


def instances_of(codes: MaskCodes, predicted_iou: Tensor, class_score: Tensor, *, dense: bool) -> Instances:
    """Return masks as Detectron2 has them, with each score of :data:`sam_d2.modeling.scoring.SCORES` by its name.

    Args:
        codes: N masks.
        predicted_iou: (N,).
        class_score: (N,) confidence of what made the prompts; 1 for ground-truth prompts.
        dense: give ``pred_masks`` (N, H0, W0) bool on the CPU; otherwise ``pred_masks_rle``, N run lengths.

    Returns:
        ``pred_boxes`` and the scores, float32, on the device of the codes.
    """
    result = Instances(codes.size)
    if dense:
        result.pred_masks = codes.dense()
    else:
        result.pred_masks_rle = codes.rles
    result.pred_boxes = Boxes(codes.boxes)
    result.class_score = class_score.float()
    result.predicted_iou = predicted_iou.float()
    result.stability = codes.stability
    result.mean_probability = codes.mean_probability
    return result


@torch.no_grad()
def encode_logits(logits: Tensor, canvas: int, resized: tuple[int, int], original: tuple[int, int]) -> MaskCodes:
    """Upsample logits to the original frame in SAM's own two steps, threshold them at 0 and encode the masks.

    The steps are to the canvas, whose padding is cut, and from there to the image. Both are linear along each axis, so
    together they are one small matrix per axis.

    Args:
        logits: (N, L, L) float32 mask logits, low-res frame.
        canvas: S, side of the padded frame.
        resized: (H, W) of the resized frame.
        original: (H0, W0) of the original frame.

    Returns:
        N masks; tensors on the device of the logits.
    """
    device = logits.device
    if not len(logits):
        none = torch.zeros(0, dtype=torch.float32, device=device)
        return MaskCodes(original, [], none.long(), none.reshape(0, 4), stability=none, mean_probability=none)
    logits = logits.clamp(-_MOST, _MOST)
    rows = _Axis.between(logits.shape[-2], canvas, resized[0], original[0], device)
    columns = _Axis.between(logits.shape[-1], canvas, resized[1], original[1], device)
    scan = _scan_on_cpu if device.type == "cpu" else _scan
    sums = torch.zeros((len(logits), 3), dtype=torch.float64, device=device)
    edges = [np.zeros((0, 2), dtype=np.int64)] * len(logits)
    # In the lower precisions that a training may have, masks would have other edges.
    with torch.autocast(device.type, enabled=False), exact_products():
        for chosen, crop in _batches(_crops(logits, rows, columns), PIXELS_AT_ONCE if device.type != "cpu" else 1):
            index = torch.from_numpy(chosen).to(device)
            bottom, top = rows.cells(crop.y0, crop.y1)
            part = columns.interpolate(logits[index, bottom:top], crop.x0, crop.x1, 0)
            # Column by column from here on, as run lengths count.
            part = rows.interpolate(part.transpose(1, 2), crop.y0, crop.y1, bottom)
            sums[index], changes = scan(part)
            for number, positions in zip(chosen.tolist(), changes, strict=True):
                edges[number] = crop.in_image(positions, original[0])
    above, below, excess = sums.unbind(dim=1)
    areas = torch.tensor([int((one[:, 1] - one[:, 0]).sum()) for one in edges], dtype=torch.int64, device=device)
    return MaskCodes(
        size=original,
        rles=[_rle(one, original) for one in edges],
        areas=areas,
        boxes=torch.tensor([_box(one, original[0]) for one in edges], dtype=torch.float32, device=device),
        stability=(above / below.clamp(min=1)).float(),
        mean_probability=torch.where(areas > 0, 0.5 + excess / areas.clamp(min=1), 0.0).float(),
    )


def axis_weights(cells: int, canvas: int, resized: int, original: int) -> Tensor:
    """Return what the two steps are along one axis: (cells, original) float32, whose columns add up to 1.

    Made by torch's own interpolation of unit vectors, so that it rounds positions as SAM's masks do.
    """
    unit_vectors = torch.eye(cells, dtype=torch.float32, device="cpu")  # whatever torch's defaults are
    upsampled = F.interpolate(unit_vectors[None], canvas, mode="linear", align_corners=False)
    return F.interpolate(upsampled[..., :resized], original, mode="linear", align_corners=False)[0]


@dataclass(frozen=True)
class _Axis:
    """Weights (cells, pixels), and of each pixel the first cell that it is interpolated from and the end of them."""

    weights: Tensor
    first: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]

    @staticmethod
    @lru_cache(maxsize=8)  # the axes of some image sizes: of 4,000 pixels one has 4 MiB
    def between(cells: int, canvas: int, resized: int, original: int, device: torch.device) -> _Axis:
        weights = axis_weights(cells, canvas, resized, original)
        used = weights.numpy() != 0
        return _Axis(weights.to(device), used.argmax(axis=0), cells - used[::-1].argmax(axis=0))

    def reach(self, first: int, end: int) -> tuple[int, int]:
        """Return the range of pixels that some cells have a share in, with one more on either side."""
        start, stop = int(np.searchsorted(self.end, first, "right")), int(np.searchsorted(self.first, end, "left"))
        return (max(start - 1, 0), min(stop + 1, len(self.first))) if start < stop else (0, 0)

    def cells(self, start: int, stop: int) -> tuple[int, int]:
        """Return the range of cells that some pixels are interpolated from."""
        return int(self.first[start]), int(self.end[stop - 1])

    def interpolate(self, values: Tensor, start: int, stop: int, first_cell: int) -> Tensor:
        """Return the pixels from ``start`` to ``stop`` along the last axis of (..., cells), which begin at a cell."""
        # As one matrix, of which a range of columns is multiplied where it lies.
        matrix, parts = values.reshape(-1, values.shape[-1]), []
        for begin in range(start, stop, _BLOCK):
            end = min(begin + _BLOCK, stop)
            low, high = self.cells(begin, end)
            parts.append(matrix[:, low - first_cell : high - first_cell] @ self.weights[low:high, begin:end])
        return torch.cat(parts, dim=1).view(*values.shape[:-1], stop - start)


class _Crop(NamedTuple):
    """Pixels of the original frame outside of which a mask has none; nor on an edge that is not the image's."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def pixels(self) -> int:
        return (self.x1 - self.x0) * (self.y1 - self.y0)

    def with_(self, other: _Crop) -> _Crop:
        return _Crop(min(self.x0, other.x0), min(self.y0, other.y0), max(self.x1, other.x1), max(self.y1, other.y1))

    def in_image(self, positions: npt.NDArray[np.int64], height: int) -> npt.NDArray[np.int64]:
        """Return (K, 2) first pixel and end of runs, counted down the image's columns, from those in the crop.

        Where a crop does not have the height of the image, no run goes on in the next column.
        """
        pixels = positions.reshape(-1, 2) - np.array((0, 1))
        columns, rows = np.divmod(pixels, self.y1 - self.y0)
        pixels = (columns + self.x0) * height + rows + self.y0
        return pixels + np.array((0, 1))


def _crops(logits: Tensor, rows: _Axis, columns: _Axis) -> list[_Crop]:
    """Return where each of (N, L, L) logits can be above the lower threshold in the original frame."""
    possible = logits > -STABILITY_OFFSET
    ranges = []
    for axis, active in ((columns, possible.any(dim=1)), (rows, possible.any(dim=2))):
        cells = active.cpu().numpy()
        firsts, ends = cells.argmax(axis=1).tolist(), (cells.shape[1] - cells[:, ::-1].argmax(axis=1)).tolist()
        filled = cells.sum(axis=1).tolist()
        ranges.append([axis.reach(*one) if some else (0, 0) for *one, some in zip(firsts, ends, filled, strict=True)])
    return [_Crop(x0, y0, x1, y1) for (x0, x1), (y0, y1) in zip(*ranges, strict=True)]


def _batches(crops: Sequence[_Crop], pixels: int) -> Iterator[tuple[npt.NDArray[np.int64], _Crop]]:
    """Yield the numbers of masks that are worked out at once and the crop of them all; empty ones are left out."""
    chosen: list[int] = []
    common = _Crop(0, 0, 0, 0)
    for number in sorted((n for n, crop in enumerate(crops) if crop.pixels), key=lambda n: crops[n].pixels):
        together = common.with_(crops[number]) if chosen else crops[number]
        if chosen and together.pixels * (len(chosen) + 1) > pixels:
            yield np.array(chosen), common
            chosen, together = [], crops[number]
        chosen.append(number)
        common = together
    if chosen:
        yield np.array(chosen), common


def _scan(logits: Tensor) -> tuple[Tensor, list[npt.NDArray[np.int64]]]:
    """Count and sum over (n, W, H) logits, and find where their masks begin and end.

    Returns:
        (n, 3) float64: pixels above the upper and the lower threshold of the stability, and the sum of what
        probabilities have above 1/2; and of each mask the positions, in order and from 0, of the first pixel and the
        end of each run in turn.
    """
    flat = logits.flatten(1)
    inside = flat > 0
    sums = [(flat > STABILITY_OFFSET).sum(1), (flat > -STABILITY_OFFSET).sum(1), _excess(logits)]
    padded = F.pad(inside, (1, 1))
    mask, position = (padded[:, 1:] ^ padded[:, :-1]).nonzero().cpu().numpy().T
    return torch.stack(sums, dim=1), np.split(position, np.searchsorted(mask, np.arange(1, len(flat))))


def _scan_on_cpu(logits: Tensor) -> tuple[Tensor, list[npt.NDArray[np.int64]]]:
    """Do what :func:`_scan` does with one mask, (1, W, H): by NumPy, whose comparisons take a fifth of the time."""
    values = logits.reshape(-1).numpy()
    inside = values > 0
    position = np.flatnonzero(inside[1:] ^ inside[:-1]) + 1
    position = np.concatenate([np.zeros(int(inside[0]), int), position, np.full(int(inside[-1]), len(inside))])
    counts = [np.count_nonzero(values > STABILITY_OFFSET), np.count_nonzero(values > -STABILITY_OFFSET)]
    return torch.tensor([[*counts, _excess(logits).item()]], dtype=torch.float64, device="cpu"), [position]


def _excess(logits: Tensor) -> Tensor:
    """Return (n,) float64 sums of what the probabilities of (n, W, H) logits have above 1/2; uses the logits up.

    A logit below 0 becomes 0, which has nothing: in a quarter of the time of choosing those above.
    """
    sums = logits.clamp_(min=0).sigmoid_().sum(dim=2)
    return sums.sum(dim=1, dtype=torch.float64) - 0.5 * logits[0].numel()


def _box(edges: npt.NDArray[np.int64], height: int) -> tuple[int, int, int, int]:
    """Return the tight box of a mask whose runs have these (K, 2) first pixels and ends."""
    if not len(edges):
        return (0, 0, 0, 0)
    columns, rows = np.divmod(edges - (0, 1), height)
    x0, x1 = int(columns[0, 0]), int(columns[-1, 1]) + 1
    if (columns[:, 0] != columns[:, 1]).any():  # a run that goes on in the next column has the last row and the first
        return (x0, 0, x1, height)
    return (x0, int(rows[:, 0].min()), x1, int(rows[:, 1].max()) + 1)


def _rle(edges: npt.NDArray[np.int64], size: tuple[int, int]) -> RLE:
    height, width = size
    counts = np.diff(edges.ravel(), prepend=0, append=height * width)
    if len(counts) > 1 and counts[-1] == 0:  # pycocotools names no background behind a mask that reaches the end
        counts = counts[:-1]
    return mask_util.frPyObjects({"size": [height, width], "counts": counts}, height, width)
