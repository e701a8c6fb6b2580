"""Mask R-CNN, ResNet-50, 3x schedule (37 COCO epochs), from MSRA's ImageNet weights.

Trained so by Detectron2, box AP 41.0 and mask AP 37.2 on COCO val2017:
https://dl.fbaipublicfiles.com/detectron2/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl
"""

from .common.schedule import steps_3x as lr_multiplier
from .mask_rcnn_R_50_FPN_1x import dataloader, model, optimizer, train

train.max_iter = 270_000
