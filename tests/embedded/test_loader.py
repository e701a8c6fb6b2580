import itertools
import logging
import pickle

import numpy as np
import pytest
import torch

from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    MapDataset,
    MetadataCatalog,
    ToIterableDataset,
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
    print_instances_class_histogram,
)
from detectron2.data.build import filter_images_with_only_crowd_annotations, trivial_batch_collator
from detectron2.data.common import AspectRatioGroupedDataset, set_default_dataset_from_list_serialize_method
from detectron2.data.samplers import InferenceSampler, TrainingSampler
from detectron2.utils import comm


def records(count=8):
    return [{"n": i, "width": 20 if i % 2 else 10, "height": 15} for i in range(count)]


def with_draw(record):
    return {**record, "draw": np.random.rand()}


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(range(5))

    def __len__(self):
        return 5


@pytest.mark.parametrize("serialize", [True, False])
def test_list_dataset_gives_copies(serialize):
    source = [{"a": [1]}, {"a": [2, 3]}]
    dataset = DatasetFromList(source, serialize=serialize)
    assert len(dataset) == 2
    dataset[1]["a"].append(4)
    assert dataset[1] == {"a": [2, 3]}
    shared = DatasetFromList(source, copy=False, serialize=False)
    assert shared[0] is source[0]
    assert pickle.loads(pickle.dumps(dataset))[1] == {"a": [2, 3]}


def test_list_dataset_takes_another_way_to_store():
    assert DatasetFromList([1, 2], serialize=lambda items: [-i for i in items])[1] == -2
    with set_default_dataset_from_list_serialize_method(lambda items: [10 * i for i in items]):
        assert DatasetFromList([1, 2])[1] == 20
    assert DatasetFromList([1, 2])[1] == 2
    with pytest.raises(TypeError):
        DatasetFromList([1], serialize="yes")


def test_map_dataset_tries_another_where_the_function_gives_none():
    dataset = MapDataset(list(range(10)), lambda x: x if x > 6 else None)
    assert len(dataset) == 10
    assert dataset[8] == 8
    assert dataset[2] in (7, 8, 9)
    assert pickle.loads(pickle.dumps(dataset))[8] == 8


def test_map_dataset_tries_no_index_twice():
    tried = []
    dataset = MapDataset(list(range(20)), lambda x: tried.append(x) or (x if x == 13 else None))
    assert dataset[2] == 13
    assert len(tried) == len(set(tried))


def test_map_of_a_stream_skips_none():
    mapped = MapDataset(Stream(), lambda x: None if x == 2 else 10 * x)
    assert isinstance(mapped, torch.utils.data.IterableDataset)
    assert list(mapped) == [0, 10, 30, 40] and len(mapped) == 5


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_workers_take_turns_with_whole_batches(workers):
    dataset = DatasetFromList(list(range(12)), serialize=False)
    stream = ToIterableDataset(dataset, InferenceSampler(12), shard_chunk_size=2)
    loader = torch.utils.data.DataLoader(stream, batch_size=2, num_workers=workers, collate_fn=trivial_batch_collator)
    assert list(loader) == [[i, i + 1] for i in range(0, 12, 2)]
    assert len(stream) == 12


def test_stream_refuses_streams_and_lists_of_indices():
    with pytest.raises(AssertionError):
        ToIterableDataset(Stream(), InferenceSampler(5))
    with pytest.raises(AssertionError):
        ToIterableDataset(DatasetFromList([1]), [0])


def test_aspect_ratio_groups():
    grouped = AspectRatioGroupedDataset(records(7), 2)
    # High: 0, 2, 4, 6; wide: 1, 3, 5. The wide 5 waits.
    assert [[r["n"] for r in batch] for batch in grouped] == [[0, 2], [1, 3], [4, 6]]
    assert [r["n"] for r in next(iter(grouped))] == [5, 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_train_loader_groups_and_repeats(workers):
    loader = build_detection_train_loader(
        records(), mapper=None, sampler=TrainingSampler(8, seed=0), total_batch_size=2, num_workers=workers
    )
    batches = list(itertools.islice(loader, 8))
    assert all(len({r["width"] for r in batch}) == 1 for batch in batches)
    if workers == 0:
        order = list(itertools.islice(TrainingSampler(8, seed=0), 8))
        wide = [i for i in order if i % 2]
        assert next(b for b in batches if b[0]["width"] == 20)[0]["n"] == wide[0]


def test_train_loader_in_sampler_order_and_with_collate():
    loader = build_detection_train_loader(
        records(),
        mapper=lambda r: r["n"],
        sampler=TrainingSampler(8, shuffle=False),
        total_batch_size=3,
        aspect_ratio_grouping=False,
        collate_fn=sum,
    )
    assert list(itertools.islice(loader, 3)) == [0 + 1 + 2, 3 + 4 + 5, 6 + 7 + 0]
    grouped = build_detection_train_loader(records(), mapper=None, total_batch_size=2, collate_fn=len)
    assert next(iter(grouped)) == 2


def test_test_loader_gives_each_once():
    loader = build_detection_test_loader(records(), mapper=lambda r: r["n"], batch_size=3)
    assert list(loader) == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert len(build_detection_test_loader(records(), mapper=None)) == 8
    assert list(build_detection_test_loader(Stream(), mapper=lambda x: -x, batch_size=5)) == [[0, -1, -2, -3, -4]]
    with pytest.raises(AssertionError):
        build_detection_test_loader(Stream(), mapper=None, sampler=InferenceSampler(5))


def test_test_loader_shares_among_processes(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    assert list(build_detection_test_loader(records(), mapper=lambda r: r["n"])) == [[4], [5], [6], [7]]


def test_worker_count_leaves_the_batches_as_they_are():
    def batches(workers):
        sampler = TrainingSampler(8, seed=0)
        loader = build_batch_data_loader(DatasetFromList(list(range(8))), sampler, 3, num_workers=workers)
        return list(itertools.islice(loader, 6))

    assert batches(2) == batches(0)


def test_seeded_workers_draw_the_same_again_and_differ_from_each_other():
    def draws(seed):
        dataset = MapDataset(DatasetFromList(records()), with_draw)
        loader = build_batch_data_loader(dataset, TrainingSampler(8, seed=1), 2, num_workers=2, seed=seed)
        return [r["draw"] for batch in itertools.islice(loader, 4) for r in batch]

    first = draws(5)
    assert first == draws(5)
    assert first != draws(6)
    assert len(set(first)) == 8


def test_batch_sizes():
    dataset = DatasetFromList(records())
    sampler = TrainingSampler(8, shuffle=False)
    loader = build_batch_data_loader(dataset, sampler, None, single_gpu_batch_size=3)
    assert [r["n"] for r in next(iter(loader))] == [0, 1, 2]
    with pytest.raises(ValueError):
        build_batch_data_loader(dataset, sampler, 4, single_gpu_batch_size=2)
    with pytest.raises(AssertionError):
        build_batch_data_loader(dataset, sampler, 0)
    with pytest.raises(AssertionError):
        build_batch_data_loader(Stream(), sampler, 2)
    with pytest.raises(AssertionError):
        build_batch_data_loader(dataset, sampler, 2, aspect_ratio_grouping=True, drop_last=False)
    last = build_batch_data_loader(dataset, InferenceSampler(8), 3, drop_last=False)
    assert [len(batch) for batch in last] == [3, 3, 2]


@pytest.fixture
def dataset():
    annotated = [
        {"image_id": 0, "annotations": [{"category_id": 0}, {"category_id": 1, "iscrowd": 0}]},
        {"image_id": 1, "annotations": []},
        {"image_id": 2, "annotations": [{"category_id": 1, "iscrowd": 1}]},
    ]
    for name, classes in {"loader_a": ["x", "y"], "loader_b": ["x", "y"], "loader_c": ["x"]}.items():
        DatasetCatalog.register(name, lambda: list(annotated))
        MetadataCatalog.get(name).thing_classes = classes
    yield annotated
    for name in ("loader_a", "loader_b", "loader_c"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_dataset_dicts_of_one_and_of_several(dataset):
    assert [r["image_id"] for r in get_detection_dataset_dicts("loader_a")] == [0]
    merged = get_detection_dataset_dicts(["loader_a", "loader_b"], filter_empty=False)
    assert [r["image_id"] for r in merged] == [0, 1, 2, 0, 1, 2]
    assert filter_images_with_only_crowd_annotations(dataset) == dataset[:1]


def test_dataset_dicts_errors(dataset):
    with pytest.raises(ValueError, match="different metadata"):
        get_detection_dataset_dicts(["loader_a", "loader_c"])
    assert len(get_detection_dataset_dicts(["loader_a", "loader_b"], check_consistency=False)) == 2
    with pytest.raises(KeyError):
        get_detection_dataset_dicts("not registered")
    with pytest.raises(AssertionError):
        get_detection_dataset_dicts([])


def test_dataset_dicts_of_torch_datasets():
    DatasetCatalog.register("loader_torch", lambda: DatasetFromList([1, 2]))
    try:
        assert len(get_detection_dataset_dicts("loader_torch")) == 2
        assert list(get_detection_dataset_dicts(["loader_torch"] * 2)) == [1, 2, 1, 2]
    finally:
        DatasetCatalog.remove("loader_torch")


def test_histogram_counts_all_but_crowd(dataset, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    with caplog.at_level(logging.INFO):
        print_instances_class_histogram([*dataset, dataset[0]], ["a class with a long name", "y"])
    cells = [cell.strip() for cell in caplog.text.replace("\n", "|").split("|")]
    assert cells[cells.index("a class wit..") + 1] == "2"
    assert cells[cells.index("y") + 1] == "2"
    assert cells[cells.index("total") + 1] == "4"
    with pytest.raises(AssertionError, match="category_id=1"):
        print_instances_class_histogram(dataset, ["x"])
