"""SAM ViT-B, mask decoder fine-tuned from segment_anything's weights."""

from .common.train import train

train.init_checkpoint = "sam_vit_b_01ec64.pth"
