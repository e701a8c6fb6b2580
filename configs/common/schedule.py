"""Learning-rate schedules, as shares of the whole training."""

from fvcore.common.param_scheduler import CosineParamScheduler

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler

cosine = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
    warmup_length=0.05,  # share of the steps
    warmup_factor=0.01,  # of the learning rate at the first step
)
