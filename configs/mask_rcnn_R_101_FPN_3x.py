"""Mask R-CNN, ResNet-101, 3x schedule (37 COCO epochs), from MSRA's ImageNet weights.

Trained so by Detectron2, box AP 42.932 and mask AP 38.634 on COCO val2017:
https://dl.fbaipublicfiles.com/detectron2/COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x/138205316/model_final_a3ec72.pkl
"""

from .mask_rcnn_R_50_FPN_3x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
