"""AdamW as SAM was trained with (arXiv 2304.02643, appendix A), at a learning rate for fine-tuning; detectors' own."""

import torch

from detectron2.config import LazyCall as L
from detectron2.solver import get_default_optimizer_params
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

SGD = L(torch.optim.SGD)(  # Detectron2's, for batches of 16 images
    params=L(get_default_optimizer_params)(base_lr="${..lr}", weight_decay_norm=0.0),
    lr=0.02,
    momentum=0.9,
    weight_decay=1e-4,
)

AdamW_mvitv2 = L(torch.optim.AdamW)(  # Detectron2's, for batches of 64 images
    params=L(get_default_optimizer_params)(
        base_lr="${..lr}",
        weight_decay_norm=0.0,
        overrides=dict(
            pos_embed=dict(weight_decay=0.0), rel_pos_h=dict(weight_decay=0.0), rel_pos_w=dict(weight_decay=0.0)
        ),
    ),
    lr=1.6e-4,
    betas=(0.9, 0.999),
    weight_decay=0.1,
)
