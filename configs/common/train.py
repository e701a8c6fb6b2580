"""What every run has; a leaf changes what differs."""

train = dict(
    dataset="",  # what --dataset says: a name, a folder or a file
    output_dir="",  # empty: experiments/output/<config>_<dataset>_<prompt>
    init_checkpoint="",  # path, or file name in checkpoints/; empty: random weights
    max_iter=5000,  # optimizer steps
    max_epoch=None,  # passes over the training images, such as 20, instead of max_iter; null: max_iter counts
    device="auto",  # auto: the GPU where there is one, else the CPU
    seed=0,  # of data order, augmentation and prompts
    amp=dict(enabled=False, dtype="auto"),  # auto: bfloat16 where the device has it, else float16
    accumulate=1,  # batches of dataloader.train.total_batch_size images per optimizer step
    compile=False,  # True: SAM's encoder and decoder by torch.compile, for GPUs; needs Triton, on a CPU a C++ compiler
    oom_retry=True,  # out of GPU memory: take the step in smaller parts, or else skip it; False: the run ends
    on_not_finite="error",  # a loss that is NaN or infinite ends the run; skip: its step is left out, and counted
    clip_gradient_norm=None,  # largest norm of the gradient; None: not clipped
    cache_embeddings=False,  # True: a frozen image encoder runs once per image (docs/embedding-cache.md)
    embedding_cache=dict(
        folder="",  # empty: embedding_cache beside the run's folder, shared by its neighbours
        dtype="float32",  # or bfloat16: half of the space, rounded to 3 digits
        max_gib=100.0,  # what the folder may grow to; an image of ViT-B takes 4 MiB, mirrored as much again
    ),
    ema=dict(decay=None),  # of the weights' moving average, such as 0.999, evaluated and saved instead; None: off
    checkpointer=dict(period=1000, max_to_keep=2),  # steps between checkpoints; how many are kept
    eval_period=1000,  # steps between evaluations; 0: only after training
    eval_base=True,  # evaluate the model before training too, the row "base"
    validation_loss=False,  # at each evaluation the training's loss on the test images too
    early_stop=dict(
        patience=None,  # evaluations in a row without improvement that end the training; None: never
        metric=None,  # segm/AP, validation_loss, prompt/mIoU, ...; None: the mask AP that chooses model_best.pth
    ),
    log_period=50,  # steps between log lines and points of the curves
    wandb=dict(enabled=False, project="sam_d2", name=None, mode=None),  # extra wandb; mode offline: into the run folder
    expected_results=[],  # [task, metric, value, tolerance] that an evaluation must give, such as [segm, AP, 38.6, 0.1]
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False),
)
