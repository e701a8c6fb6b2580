"""The crop of SSD, which keeps a drawn overlap with the boxes."""

import numpy as np
from fvcore.transforms.transform import CropTransform, NoOpTransform, Transform

from detectron2.structures import Boxes, pairwise_iou

from .augmentation import Augmentation


class MinIoURandomCrop(Augmentation):
    """Cut a window that overlaps every box by a drawn minimum IoU and holds the centre of one box at least.

    As in SSD (arXiv:1512.02325, section 2.2). Without boxes in the input the image is left alone.

    Args:
        min_ious: minimum IoUs to draw from, beside 0 (any window) and 1 (no crop).
        min_crop_size: smallest height and width of the window, parts of the image's.
        mode_trials: how often a minimum is drawn.
        crop_trials: how many windows are tried for each.
    """

    def __init__(
        self,
        min_ious: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9),
        min_crop_size: float = 0.3,
        mode_trials: int = 1000,
        crop_trials: int = 50,
    ) -> None:
        self.min_ious, self.min_crop_size = min_ious, min_crop_size
        self.sample_mode = (1, *min_ious, 0)
        self.mode_trials, self.crop_trials = mode_trials, crop_trials

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None) -> Transform:
        """Draw minimum IoUs and windows until one fits.

        Raises:
            AssertionError: no window was found in all the trials.
        """
        if boxes is None:
            return NoOpTransform()
        height, width, _ = image.shape
        for _ in range(self.mode_trials):
            min_iou = np.random.choice(self.sample_mode)
            if min_iou == 1:
                return NoOpTransform()
            for _ in range(self.crop_trials):
                left, top, crop_w, crop_h = self._draw_window(height, width)
                corners = np.array([int(left), int(top), int(left + crop_w), int(top + crop_h)])
                if _is_sound(crop_w, crop_h, corners) and _keeps_boxes(corners, boxes, min_iou):
                    return CropTransform(int(left), int(top), int(crop_w), int(crop_h))
        raise AssertionError(f"{self} found no window in {self.mode_trials} x {self.crop_trials} trials.")

    def _draw_window(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Draw left, top, width and height of a window, pixels; the place only where the shape will do."""
        crop_w = np.random.uniform(self.min_crop_size * width, width)
        crop_h = np.random.uniform(self.min_crop_size * height, height)
        if not 0.5 <= crop_h / crop_w <= 2:
            return 0, 0, crop_w, crop_h
        # One argument is the lower end and 1 the upper, not 0 and the argument. Detectron2 draws it so: the
        # window lies at the right and bottom.
        left = np.random.uniform(width - crop_w)
        top = np.random.uniform(height - crop_h)
        return left, top, crop_w, crop_h


def _is_sound(width: float, height: float, corners: np.ndarray) -> bool:
    """Whether a window is at most twice as long as wide and has pixels; ``corners`` are XYXY, integers."""
    x0, y0, x1, y1 = corners
    return 0.5 <= height / width <= 2 and x1 != x0 and y1 != y0


def _keeps_boxes(corners: np.ndarray, boxes: np.ndarray, min_iou: float) -> bool:
    """Whether a window overlaps all boxes by ``min_iou`` and holds the centre of one, if there are any."""
    overlaps = pairwise_iou(Boxes(corners[None]), Boxes(boxes.reshape(-1, 4)))[0]
    if len(overlaps) == 0:
        return True
    if overlaps.min() < min_iou:
        return False
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = (centers > corners[:2]) & (centers < corners[2:])
    return bool(inside.all(axis=1).any())
