"""Detectron2's augmentation for MViTv2: half of the images are resized and cropped before the sizes are drawn."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from .coco_loader import dataloader

dataloader.train.mapper.augmentations = [
    L(T.RandomApply)(
        tfm_or_aug=L(T.AugmentationList)(
            augs=[
                L(T.ResizeShortestEdge)(short_edge_length=[400, 500, 600], sample_style="choice"),
                L(T.RandomCrop)(crop_type="absolute_range", crop_size=[384, 600]),
            ]
        ),
        prob=0.5,
    ),
    L(T.ResizeShortestEdge)(
        short_edge_length=[480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800],
        sample_style="choice",
        max_size=1333,
    ),
    L(T.RandomFlip)(prob=0.5, horizontal=True),
]
dataloader.train.total_batch_size = 64
