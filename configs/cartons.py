"""Stacked cartons from photographs of packages: torchvision's Mask R-CNN, fine-tuned for 20 epochs of batches of 2."""

from fvcore.common.param_scheduler import MultiStepParamScheduler

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from sam_d2.data.augmentations import Equalize, Perspective, Posterize

from .torchvision.coco import dataloader, model, optimizer, train

model.update(rpn_fg_iou_thresh=0.8, rpn_bg_iou_thresh=0.4, rpn_positive_fraction=0.6, rpn_nms_thresh=0.6, norm_eps=0.0)
dataloader.train.mapper.augmentations = [
    L(Equalize)(prob=0.2),
    L(Posterize)(bits=3, prob=0.5),
    L(T.RandomFlip)(prob=0.5, horizontal=True),
    L(Perspective)(distortion_scale=0.3, prob=0.5),
]
dataloader.train.update(total_batch_size=2, num_workers=2, aspect_ratio_grouping=False)
optimizer.update(lr=0.005, weight_decay=5e-4)
lr_multiplier = L(MultiStepParamScheduler)(  # a fifth every three epochs
    values=[1.0, 0.2, 0.04, 8e-3, 1.6e-3, 3.2e-4, 6.4e-5], milestones=[3, 6, 9, 12, 15, 18, 20]
)
train.init_checkpoint = "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"
train.update(max_epoch=20, eval_period=1000)
train.checkpointer.period = 1000
