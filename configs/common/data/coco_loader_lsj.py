"""Large-scale jittering (arXiv 2012.07177): images at 0.1 to 2 times a fixed canvas, cropped or padded to it."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from .coco_loader import dataloader

_side = 1024  # pixels of the canvas

dataloader.train.mapper.augmentations = [
    L(T.RandomFlip)(prob=0.5, horizontal=True),
    L(T.ResizeScale)(min_scale=0.1, max_scale=2.0, target_height=_side, target_width=_side),
    L(T.FixedSizeCrop)(crop_size=[_side, _side]),
]
dataloader.train.mapper.recompute_boxes = True  # a crop leaves the file's boxes too large
dataloader.train.total_batch_size = 64
