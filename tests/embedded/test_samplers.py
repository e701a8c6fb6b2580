import itertools
import logging
from collections import Counter

import pytest
import torch

from detectron2.data.samplers import (
    GroupedBatchSampler,
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm


def take(sampler, count):
    return list(itertools.islice(sampler, count))


def test_each_pass_is_a_permutation_that_the_seed_decides():
    indices = take(TrainingSampler(10, seed=3), 30)
    passes = [indices[:10], indices[10:20], indices[20:]]
    assert all(sorted(p) == list(range(10)) for p in passes)
    assert passes[0] != passes[1]
    assert indices == take(TrainingSampler(10, seed=3), 30)
    assert indices != take(TrainingSampler(10, seed=4), 30)
    generator = torch.Generator().manual_seed(3)
    assert passes[0] == torch.randperm(10, generator=generator).tolist()
    assert take(TrainingSampler(3, shuffle=False), 7) == [0, 1, 2, 0, 1, 2, 0]


def test_processes_share_one_stream(monkeypatch):
    whole = take(TrainingSampler(7, seed=1), 21)
    repeated = take(RepeatFactorTrainingSampler(torch.full((7,), 1.5), seed=1), 21)
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        assert take(TrainingSampler(7, seed=1), 7) == whole[rank::3]
        assert take(RepeatFactorTrainingSampler(torch.full((7,), 1.5), seed=1), 7) == repeated[rank::3]


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError)])
def test_training_sampler_refuses(size, error):
    with pytest.raises(error):
        TrainingSampler(size)


def test_subset_is_the_same_in_each_pass():
    sampler = RandomSubsetTrainingSampler(20, 0.25, seed_shuffle=1, seed_subset=2)
    indices = take(sampler, 15)
    assert set(indices[:5]) == set(indices[5:10]) == set(indices[10:])
    assert len(set(indices)) == 5
    other_order = RandomSubsetTrainingSampler(20, 0.25, seed_shuffle=9, seed_subset=2)
    assert set(take(other_order, 5)) == set(indices)
    for ratio in (0, 1.5, 0.01):
        with pytest.raises(AssertionError):
            RandomSubsetTrainingSampler(20, ratio)


def test_repeat_factors_on_average():
    factors = torch.tensor([1.0, 2.0, 0.5, 1.25])
    sampler = RepeatFactorTrainingSampler(factors, seed=0, shuffle=False)
    passes, current = [], []
    for index in sampler:
        if current and index < current[-1]:  # in order within a pass
            passes.append(Counter(current))
            current = []
        current.append(index)
        if len(passes) == 2000:
            break
    mean = [sum(p[i] for p in passes) / 2000 for i in range(4)]
    assert mean[:2] == [1.0, 2.0]
    assert mean[2] == pytest.approx(0.5, abs=0.05)
    assert mean[3] == pytest.approx(1.25, abs=0.05)


def test_repeat_factors_of_rare_categories(caplog):
    # Category 0 is in 4 of 4 images, category 1 in 1 of 4: sqrt(0.64 / 0.25) = 1.6.
    records = [{"annotations": [{"category_id": c} for c in cs]} for cs in ([0], [0, 1], [0, 0], [0])]
    rule = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
    with caplog.at_level(logging.INFO, logger="detectron2"):
        assert rule(records, 0.64).tolist() == pytest.approx([1, 1.6, 1, 1])
    assert rule(records, 0.64, sqrt=False).tolist() == pytest.approx([1, 2.56, 1, 1])
    assert rule([{"annotations": []}, *records], 1.0)[0] == 1


def test_inference_parts_cover_everything_once():
    for size, world in [(10, 3), (3, 4), (8, 2)]:
        parts = [InferenceSampler._get_local_indices(size, world, rank) for rank in range(world)]
        assert [i for part in parts for i in part] == list(range(size))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    sampler = InferenceSampler(5)
    assert list(sampler) == [0, 1, 2, 3, 4] and len(sampler) == 5
    with pytest.raises(AssertionError):
        InferenceSampler(0)


def test_grouped_batches():
    sampler = torch.utils.data.SequentialSampler(range(7))
    batches = GroupedBatchSampler(sampler, [0, 1, 0, 0, 1, 1, 0], 2)
    # Group 0 is 0, 2, 3, 6 and group 1 is 1, 4, 5.
    assert [batch for batch in batches] == [[0, 2], [1, 4], [3, 6]]  # noqa: C416  list() asks for the length
    assert next(iter(batches)) == [5, 1]  # 5 was left over
    with pytest.raises(ValueError):
        GroupedBatchSampler([0, 1], [0, 1], 2)
    with pytest.raises(NotImplementedError):
        len(batches)
