"""Learning-rate schedules, as shares of the whole training."""

from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler

cosine = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
    warmup_length=0.05,  # share of the steps
    warmup_factor=0.01,  # of the learning rate at the first step
)

# Detectron2's for batches of 16 COCO images: 1000 steps of warm-up, two drops.
steps_1x = L(WarmupParamScheduler)(  # 90,000 steps
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[60_000, 80_000, 90_000]),
    warmup_length=1000 / 90_000,
    warmup_factor=0.001,
)
steps_3x = L(WarmupParamScheduler)(  # 270,000 steps
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[210_000, 250_000, 270_000]),
    warmup_length=1000 / 270_000,
    warmup_factor=0.001,
)
steps_36_epochs = L(WarmupParamScheduler)(  # of batches of 64 COCO images, 67,500 steps
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[52_500, 62_500, 67_500]),
    warmup_length=250 / 67_500,
    warmup_factor=0.001,
)
steps_26_epochs = L(WarmupParamScheduler)(  # torchvision's: of batches of 16 COCO images, 190,554 steps
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[16, 22, 26]),
    warmup_length=1000 / 190_554,
    warmup_factor=0.001,
)
