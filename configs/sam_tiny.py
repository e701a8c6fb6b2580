"""A SAM of under a million parameters that a CPU trains from nothing in minutes; needs no weights."""

from .sam import dataloader, lr_multiplier, model, optimizer, train

model.image_encoder.update(
    img_size=128,
    patch_size=8,
    embed_dim=96,
    depth=4,
    num_heads=4,
    out_chans=64,
    window_size=0,
    global_attn_indexes=[],
)
model.mask_decoder.transformer.mlp_dim = 256
model.mask_decoder.transformer.num_heads = 4
model.mask_decoder.iou_head_hidden_dim = 64
model.freeze = []
model.activation_checkpointing = False
optimizer.lr = 1e-3
optimizer.weight_decay = 0.01
train.init_checkpoint = ""
train.max_iter = 1500
train.eval_period = 500
