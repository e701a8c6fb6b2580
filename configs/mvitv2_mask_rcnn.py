"""Mask R-CNN, MViTv2-T, 36 COCO epochs in batches of 64, from ImageNet-1k weights.

Trained so by Detectron2, box AP 48.3 and mask AP 43.8 on COCO val2017:
https://dl.fbaipublicfiles.com/detectron2/MViTv2/mask_rcnn_mvitv2_t_3x/f307611773/model_final_1a1c30.pkl
"""

from .common.data.coco_loader_mvit import dataloader
from .common.models.mask_rcnn_fpn import model
from .common.models.mvitv2 import mvitv2_input as _input
from .common.models.mvitv2 import mvitv2_t as _mvitv2_t
from .common.optim import AdamW_mvitv2 as optimizer
from .common.schedule import steps_36_epochs as lr_multiplier
from .common.train import train

model.backbone.bottom_up = _mvitv2_t
model.update(**_input)
train.amp.enabled = True
train.init_checkpoint = "detectron2://ImageNetPretrained/mvitv2/MViTv2_T_in1k.pyth"
train.max_iter = 67_500
train.eval_base = False  # heads that are not trained yet find nothing
train.eval_period = 5000
train.checkpointer.period = 5000
