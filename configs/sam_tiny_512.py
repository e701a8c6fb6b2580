"""The tiny SAM on a 512-pixel canvas, for tiles and photographs of a few hundred pixels."""

from .sam_tiny import dataloader, lr_multiplier, model, optimizer, train

model.image_encoder.img_size = 512
model.image_encoder.patch_size = 16
