"""The MViTv2-T Mask R-CNN with large-scale jittering, for long trainings (100 COCO epochs and more)."""

from .common.data.coco_loader_lsj import dataloader
from .mvitv2_mask_rcnn import lr_multiplier, model, optimizer, train
