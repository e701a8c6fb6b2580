"""SAM ViT-H."""

from .sam import dataloader, lr_multiplier, model, optimizer, train

model.image_encoder.embed_dim = 1280
model.image_encoder.depth = 32
model.image_encoder.num_heads = 16
model.image_encoder.global_attn_indexes = [7, 15, 23, 31]
train.init_checkpoint = "sam_vit_h_4b8939.pth"
