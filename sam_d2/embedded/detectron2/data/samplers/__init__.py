"""Orders in which a dataset's indices are visited, shared among the processes of a job."""

from .grouped_batch_sampler import GroupedBatchSampler
from .inference_sampler import InferenceSampler
from .repeat_factor_sampler import RepeatFactorTrainingSampler
from .training_sampler import RandomSubsetTrainingSampler, TrainingSampler

__all__ = [
    "GroupedBatchSampler",
    "InferenceSampler",
    "RandomSubsetTrainingSampler",
    "RepeatFactorTrainingSampler",
    "TrainingSampler",
]
