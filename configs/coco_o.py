"""COCO-O's drawings, paintings and bad weather: torchvision's Mask R-CNN v2, fine-tuned for 10 epochs."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from sam_d2.data.augmentations import GaussianBlur

from .common.optim import AdamW as optimizer
from .common.schedule import cosine as lr_multiplier
from .torchvision.coco import dataloader, model, train

model.architecture = "maskrcnn_resnet50_fpn_v2"
dataloader.train.mapper.augmentations = [
    L(T.RandomFlip)(prob=0.5, horizontal=True),
    L(T.RandomFlip)(prob=0.5, horizontal=False, vertical=True),
    L(GaussianBlur)(kernel_size=5, sigma=[0.1, 2.0], prob=0.5),
]
dataloader.train.update(total_batch_size=1, num_workers=2, aspect_ratio_grouping=False)
optimizer.update(lr=1e-4, weight_decay=1e-3)
train.init_checkpoint = "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth"
train.update(max_epoch=10, eval_period=1000)
train.checkpointer.period = 1000
