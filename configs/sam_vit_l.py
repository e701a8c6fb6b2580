"""SAM ViT-L."""

from .sam import dataloader, lr_multiplier, model, optimizer, train

model.image_encoder.embed_dim = 1024
model.image_encoder.depth = 24
model.image_encoder.num_heads = 16
model.image_encoder.global_attn_indexes = [5, 11, 17, 23]
train.init_checkpoint = "sam_vit_l_0b3195.pth"
