"""SAM ViT-B, mask decoder and LoRA on the image encoder's attention fine-tuned from segment_anything's weights."""

from .common.lora import lora as _lora
from .sam import dataloader, lr_multiplier, model, optimizer, train

model.image_encoder.update(encoder=model.image_encoder._target_, **_lora)
model.freeze = ["prompt_encoder"]
