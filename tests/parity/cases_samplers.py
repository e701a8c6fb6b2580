"""Cases of detectron2.data.samplers and detectron2.utils.comm: orders for a seed, alone and in several processes."""

import itertools

import numpy as np
import torch
from inputs import raised
from ranks import on_ranks

from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.data.samplers import (
    GroupedBatchSampler,
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm

FACTORS = [1.0, 2.5, 0.4, 1.25, 3.0, 1.0]


def first(sampler, n=60):
    return list(itertools.islice(sampler, n))


def endless():
    """One of each sampler that never ends."""
    factors = torch.tensor(FACTORS)
    return {
        "training": TrainingSampler(7, seed=5),
        "in_order": TrainingSampler(7, shuffle=False, seed=5),
        "subset": RandomSubsetTrainingSampler(20, 0.3, seed_shuffle=1, seed_subset=2),
        "subset_in_order": RandomSubsetTrainingSampler(20, 0.3, False, 1, 2),
        "repeat": RepeatFactorTrainingSampler(factors, seed=3),
        "repeat_in_order": RepeatFactorTrainingSampler(factors, shuffle=False, seed=3),
    }


def case_samplers():
    groups = [0, 1, 0, 0, 1, 1, 0]
    return {
        **{name: first(sampler, 100) for name, sampler in endless().items()},
        "begun_twice": [first(sampler, 9) for sampler in [TrainingSampler(7, seed=5)] * 2],
        "inference": list(InferenceSampler(9)),
        "inference_length": len(InferenceSampler(9)),
        "shares": [list(InferenceSampler._get_local_indices(11, 4, rank)) for rank in range(4)],
        "batches": first(GroupedBatchSampler(TrainingSampler(7, seed=5), groups, 3), 12),
        "errors": [
            raised(lambda: TrainingSampler(0)),
            raised(lambda: TrainingSampler(-3)),
            raised(lambda: TrainingSampler(3.0)),
            raised(lambda: RandomSubsetTrainingSampler(20, 0.0)),
            raised(lambda: RandomSubsetTrainingSampler(20, 1.5)),
            raised(lambda: RandomSubsetTrainingSampler(20, 0.01)),
            raised(lambda: InferenceSampler(0)),
            raised(lambda: GroupedBatchSampler([0, 1, 2], [0, 0, 0], 2)),
            raised(lambda: GroupedBatchSampler(TrainingSampler(2), [[0], [1]], 2)),
            raised(lambda: len(GroupedBatchSampler(TrainingSampler(2), [0, 1], 2))),
        ],
    }


def case_orders_of_many_sizes():
    """Three passes and a bit for sizes from 1 to 1000, with five seeds each."""
    sizes = [1, 2, 3, 17, 64, 1000]
    return {
        str(size): np.array([first(TrainingSampler(size, seed=seed), 3 * size + 2) for seed in range(5)])
        for size in sizes
    }


def case_repeat_factors():
    """Factors from the frequency of categories, rare ones among them, and the orders that they give."""
    random = np.random.RandomState(4)
    rare_to_common = 1 / np.arange(1, 13)
    records = []
    for _ in range(80):
        ids = np.flatnonzero(random.rand(12) < rare_to_common)
        records.append({"annotations": [{"category_id": int(c)} for c in np.repeat(ids, random.randint(1, 3))]})
    of = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
    few = [{"annotations": [{"category_id": c} for c in ids]} for ids in ([0], [0, 1], [0, 2, 2], [], [0])]
    found = {"few": [of(few, 0.5), of(few, 0.9, sqrt=False)]}
    for threshold in (0.0, 0.001, 0.1, 0.3, 1.0):
        for sqrt in (True, False):
            factors = of(records, threshold, sqrt)
            order = first(RepeatFactorTrainingSampler(factors, seed=11), 700)
            found[f"{threshold} {sqrt}"] = [factors, np.array(order)]
    return found


def case_several_ranks():
    """What each of two and of three processes gets."""

    def seen():
        np.random.seed(30 + comm.get_rank())
        return {
            **{name: first(sampler, 40) for name, sampler in endless().items()},
            "inference": [list(InferenceSampler(size)) for size in (1, 2, 9, 11)],
            "agreed_seed": [comm.shared_random_seed(), comm.shared_random_seed()],
            "order_of_agreed_seed": first(TrainingSampler(13)),
        }

    return {str(count): on_ranks(seen, count) for count in (2, 3)}


def case_loaders_of_two_ranks():
    """Images of each process: batches are split, and none of an evaluation comes twice."""
    records = [{"image_id": i, "width": 10 + i % 2, "height": 10, "annotations": []} for i in range(11)]

    def ids(batches):
        return [[record["image_id"] for record in batch] for batch in batches]

    def seen():
        sampler = TrainingSampler(len(records), seed=9)
        grouped = build_detection_train_loader(records, mapper=dict, sampler=sampler, total_batch_size=4)
        plain = build_detection_train_loader(
            records, mapper=dict, sampler=sampler, total_batch_size=6, aspect_ratio_grouping=False
        )
        odd = raised(lambda: build_detection_train_loader(records, mapper=dict, sampler=sampler, total_batch_size=3))
        test = build_detection_test_loader(records, mapper=dict, batch_size=2)
        return {"grouped": ids(first(grouped, 8)), "plain": ids(first(plain, 8)), "odd": odd, "test": ids(test)}

    return {"ranks": on_ranks(seen)}


def case_talk_of_two_ranks():
    """What the processes tell one another, and the same calls in a single process."""

    def told():
        rank = comm.get_rank()
        numbers = {"b": torch.tensor(1.5 + rank), "a": torch.tensor(4.0 * rank)}
        mean = comm.reduce_dict(numbers)
        total = comm.reduce_dict(numbers, average=False)
        return {
            "place": [
                rank,
                comm.get_world_size(),
                comm.get_local_rank(),
                comm.get_local_size(),
                comm.is_main_process(),
            ],
            "all": comm.all_gather({"rank": rank, "of": list(range(rank + 1))}),
            "gathered": comm.gather(f"from {rank}"),
            "gathered_on_1": comm.gather(rank, dst=comm.get_world_size() - 1),
            # beside the first process the sums are whatever the backend leaves
            "reduced": [mean, total] if comm.is_main_process() else [sorted(mean), sorted(total)],
        }

    return {"ranks": on_ranks(told), "alone": told()}
