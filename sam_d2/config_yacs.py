"""The words of Detectron2's YAML configs, for those who bring a command line from there."""

_KEYS = {
    "MODEL.WEIGHTS": "train.init_checkpoint",
    "MODEL.DEVICE": "train.device",
    "MODEL.ROI_HEADS.NUM_CLASSES": "model.roi_heads.num_classes",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": "model.roi_heads.batch_size_per_image",
    "SOLVER.BASE_LR": "optimizer.lr",
    "SOLVER.WEIGHT_DECAY": "optimizer.weight_decay",
    "SOLVER.IMS_PER_BATCH": "dataloader.train.total_batch_size",
    "SOLVER.MAX_ITER": "train.max_iter",
    "SOLVER.CHECKPOINT_PERIOD": "train.checkpointer.period",
    "SOLVER.AMP.ENABLED": "train.amp.enabled",
    "TEST.EVAL_PERIOD": "train.eval_period",
    "DATALOADER.NUM_WORKERS": "dataloader.train.num_workers",
    "DATASETS.TRAIN": "train.dataset",
    "DATASETS.TEST": "train.dataset",
    "OUTPUT_DIR": "train.output_dir",
    "SEED": "train.seed",
}


def lazy_key(word: str) -> str | None:
    """Return the key here that a key of Detectron2's YAML configs stands for; None where there is none.

    Args:
        word: such as ``SOLVER.BASE_LR``.
    """
    return _KEYS.get(word)
