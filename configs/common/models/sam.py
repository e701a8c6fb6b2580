"""SAM ViT-B from segment_anything's classes, the encoder's attention fused; every other size derives from it."""

from functools import partial

from segment_anything.modeling import TwoWayTransformer
from torch import nn

from detectron2.config import LazyCall as L
from sam_d2.modeling.build import square_prompt_encoder
from sam_d2.modeling.image_encoder import FusedImageEncoderViT
from sam_d2.modeling.mask_decoder import SharedMaskDecoder
from sam_d2.modeling.sam import PromptableSAM

from ..prompts import prompts

sam_vit_b = L(PromptableSAM)(
    image_encoder=L(FusedImageEncoderViT)(
        img_size=1024,  # the canvas, pixels; the mappers follow it
        patch_size=16,
        embed_dim=768,
        depth=12,
        num_heads=12,
        mlp_ratio=4,
        qkv_bias=True,
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=[2, 5, 8, 11],
        out_chans=256,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    ),
    prompt_encoder=L(square_prompt_encoder)(
        embed_dim="${..image_encoder.out_chans}",
        image_size="${..image_encoder.img_size}",
        patch_size="${..image_encoder.patch_size}",
        mask_in_chans=16,
    ),
    mask_decoder=L(SharedMaskDecoder)(
        num_multimask_outputs=3,
        transformer=L(TwoWayTransformer)(
            depth=2, embedding_dim="${...image_encoder.out_chans}", mlp_dim=2048, num_heads=8
        ),
        transformer_dim="${..image_encoder.out_chans}",
        iou_head_depth=3,
        iou_head_hidden_dim=256,
    ),
    prompts=prompts,
    prompt="box",
    loss_weights=dict(loss_focal=20.0, loss_dice=1.0, loss_iou=1.0),
    freeze=["image_encoder", "prompt_encoder"],
    multimask=False,  # True: a single point has three answers, the best one is trained
    score="predicted_iou",
    calibrate=False,  # True: as tools/calibrate_scores.py has fitted it to the checkpoint
    instances_per_chunk=32,
    activation_checkpointing=True,  # memory bounded whatever the number of instances; a third slower
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
    input_format="RGB",
)
