"""Cascade Mask R-CNN, MViTv2-T, 36 COCO epochs in batches of 64, from ImageNet-1k weights.

Trained so by Detectron2, box AP 52.2 and mask AP 45.0 on COCO val2017:
https://dl.fbaipublicfiles.com/detectron2/MViTv2/cascade_mask_rcnn_mvitv2_t_3x/f308344828/model_final_c6967a.pkl
"""

from .common.models.cascade_rcnn import model
from .mvitv2_mask_rcnn import _input, _mvitv2_t, dataloader, lr_multiplier, optimizer, train

model.backbone.bottom_up = _mvitv2_t
model.update(**_input)
model.proposal_generator.head.conv_dims = [-1, -1]  # two convolutions
