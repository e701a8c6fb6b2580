"""AdamW as SAM was trained with (arXiv 2304.02643, appendix A), at a learning rate for fine-tuning."""

import torch

from detectron2.config import LazyCall as L
from sam_d2.engine.optim import parameter_groups

AdamW = L(torch.optim.AdamW)(
    params=L(parameter_groups)(  # params.model is set by train_net.py
        weight_decay="${..weight_decay}",
        lr="${..lr}",
        lr_factors=None,  # learning rates per part, such as {image_encoder: 0.1}: a factor on lr
    ),
    lr=1e-4,
    betas=(0.9, 0.999),
    weight_decay=0.1,
)
