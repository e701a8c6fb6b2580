"""LoRA on the attention of an image encoder (arXiv 2106.09685); needs peft, the extra ``lora``."""

from sam_d2.modeling.lora import lora_encoder

lora = dict(
    _target_=lora_encoder,
    rank=8,  # of the trained matrices
    alpha=16,  # alpha/rank multiplies what they add
    targets=["qkv"],  # linear layers by the end of their name; attn.proj, lin1 and lin2 are others
    dropout=0.0,  # of their input, in training
)
