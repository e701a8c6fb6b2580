"""A SAM of under a million parameters that a CPU trains from nothing in minutes; needs no weights."""

from .sam import dataloader, lr_multiplier, model, optimizer, train

model.image_encoder.update(
    img_size=128, patch_size=8, embed_dim=96, depth=4, num_heads=4, out_chans=64, window_size=0, global_attn_indexes=[]
)
model.mask_decoder.transformer.mlp_dim = 256
model.mask_decoder.transformer.num_heads = 4
model.mask_decoder.iou_head_hidden_dim = 64
model.prompt_encoder.position_scale = 0.5
model.loss_weights.loss_dice = 10.0  # with 20 : 1 a model that starts from nothing long predicts no mask at all
model.prompts.box.train.jitter = 0.05  # annotators' boxes; the 0.1 of SAM is for prompts that wander more
model.prompts.detector.tested_as = ["box", "detector"]  # the cascade needs mask prompts, which it never learned
model.freeze = []
model.activation_checkpointing = False
optimizer.lr = 2e-3
optimizer.betas = (0.9, 0.98)  # gradients change fast in a run this short
optimizer.weight_decay = 0.01
train.init_checkpoint = ""
train.max_iter = 1300
train.eval_period = 650
train.checkpointer.period = 200
