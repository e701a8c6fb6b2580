"""The tiny SAM with LoRA on its image encoder; train.init_checkpoint names a run of sam_tiny.py to begin with."""

from .common.lora import lora as _lora
from .sam_tiny import dataloader, lr_multiplier, model, optimizer, train

model.image_encoder.update(encoder=model.image_encoder._target_, **_lora)
model.freeze = ["prompt_encoder"]
