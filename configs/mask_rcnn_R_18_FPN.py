"""A small Mask R-CNN, ResNet-18 with group normalisation, that a CPU trains from nothing; needs no weights.

docs/results.md has what it learns of the quickstart scenes, and how long that takes.
"""

from .common.optim import AdamW as optimizer
from .common.schedule import cosine as lr_multiplier
from .mask_rcnn_R_50_FPN_1x import dataloader, model, train

model.backbone.update(norm="GN", out_channels=128)
model.backbone.bottom_up.update(freeze_at=0)
model.backbone.bottom_up.stem.norm = "GN"
model.backbone.bottom_up.stages = dict(_target_=model.backbone.bottom_up.stages._target_, depth=18, norm="GN")
model.proposal_generator.anchor_generator.sizes = [[16], [32], [64], [128], [256]]
model.proposal_generator.update(pre_nms_topk=[500, 300], post_nms_topk=[300, 150])
model.roi_heads.update(batch_size_per_image=64)
model.roi_heads.box_head.fc_dims = [512]
model.roi_heads.box_predictor.input_shape.channels = 512
model.roi_heads.mask_head.conv_dims = [128, 128, 128]
model.pixel_std = [57.375, 57.12, 58.395]
dataloader.train.mapper.augmentations[0].update(short_edge_length=[160, 176, 192, 208, 224], max_size=400)
dataloader.test.mapper.augmentations[0].update(short_edge_length=192, max_size=343)
dataloader.train.update(total_batch_size=4, num_workers=2)
dataloader.test.num_workers = 2
optimizer.update(lr=1e-3, weight_decay=0.05)  # SGD learns the masks more slowly
train.init_checkpoint = ""
train.update(max_iter=800, eval_period=200)
train.checkpointer.period = 200
