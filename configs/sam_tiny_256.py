"""The tiny SAM on a 256-pixel canvas, for aerial tiles with many small objects: no side of an image is up."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from .sam_tiny import dataloader, lr_multiplier, model, optimizer, train

model.image_encoder.img_size = 256
model.draw_boxes = True  # a box of two tokens is more exact as a mask than as the positions of its corners
model.prompts.box.train.jitter = 0.0  # 5 % of a box of 20 pixels is what its mask is to be exact to
dataloader.train.mapper.augmentations = [
    L(T.RandomFlip)(prob=0.5, horizontal=True),
    L(T.RandomRotation)(angle=[0, 90, 180, 270], sample_style="choice"),
]
dataloader.train.mapper.max_instances = 32
dataloader.train.mapper.recompute_boxes = True  # the files' boxes are often a pixel off, which here is a lot
optimizer.lr = 1.5e-3
train.max_iter = 900
train.eval_period = 300
