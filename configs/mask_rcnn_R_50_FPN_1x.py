"""Mask R-CNN, ResNet-50, 1x schedule (12 COCO epochs), from MSRA's ImageNet weights.

Trained so by Detectron2, box AP 38.6 and mask AP 35.2 on COCO val2017:
https://dl.fbaipublicfiles.com/detectron2/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x/137260431/model_final_a54504.pkl
"""

from .common.data.coco_loader import dataloader
from .common.models.mask_rcnn_fpn import model
from .common.optim import SGD as optimizer
from .common.schedule import steps_1x as lr_multiplier
from .common.train import train

train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
train.max_iter = 90_000
train.eval_base = False  # heads that are not trained yet find nothing
train.eval_period = 5000
train.checkpointer.period = 5000
