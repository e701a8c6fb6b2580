"""SAM ViT-B, mask decoder fine-tuned from segment_anything's weights."""

from .common.data.coco_loader_sam import dataloader
from .common.models.sam import sam_vit_b as model
from .common.optim import AdamW as optimizer
from .common.schedule import cosine as lr_multiplier
from .common.train import train

train.init_checkpoint = "sam_vit_b_01ec64.pth"
