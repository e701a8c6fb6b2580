"""The training stream: a function of seed and position alone, whatever processes read it and wherever it began."""

import itertools
import multiprocessing
import random
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

import detectron2.data.transforms as T
from detectron2.utils import comm
from sam_d2.data.loader import BAD_IMAGES, GroupedBatches, PositionSampler, TrainLoader, sample_seed, seeded
from sam_d2.data.mapper import PromptableMapper
from sam_d2.errors import BadImageError, UserError


def take(stream, count):
    return list(itertools.islice(iter(stream), count))


def global_state():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.fixture
def records(tmp_path):
    """Five noise images of 16 x 24 with three boxes each."""
    rng = np.random.default_rng(1)
    records = []
    for number in range(5):
        file = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(file)
        annotations = [
            {"bbox": [x, 2, x + 4, 9], "bbox_mode": 0, "category_id": 0, "segmentation": [[x, 2, x + 4, 2, x, 9]]}
            for x in (1, 8, 15)
        ]
        record = {"file_name": str(file), "height": 16, "width": 24, "image_id": number}
        records.append({**record, "annotations": annotations})
    return records


def loader(records, workers=0, **options):
    """Batches of 2 whose every sample is random in all that a mapper can draw: colour, flip, instances."""
    mapper = PromptableMapper(
        is_train=True,
        image_size=32,
        augmentations=[T.RandomFlip(), T.RandomBrightness(0.5, 1.5)],
        max_instances=2,
    )
    return TrainLoader(records, mapper=mapper, total_batch_size=2, num_workers=workers, seed=3, **options)


def fingerprint(batch):
    """All that a training step sees of a batch."""
    return [
        (
            sample["image_id"],
            sample["seed"],
            sample["image"].tolist(),
            sample["instances"].gt_boxes.tensor.tolist(),
            [ring.tolist() for rings in sample["instances"].gt_masks.polygons for ring in rings],
        )
        for sample in batch
    ]


class TestPositionSampler:
    def test_each_epoch_holds_every_image_once_in_an_order_of_its_own(self):
        stream = take(PositionSampler(5, seed=0), 20)
        assert [position for position, _ in stream] == list(range(20))
        epochs = [[index for _, index in stream[start : start + 5]] for start in range(0, 20, 5)]
        assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1

    def test_the_seed_decides_the_order(self):
        orders = {tuple(take(PositionSampler(8, seed=seed), 8)) for seed in (0, 0, 1)}
        assert len(orders) == 2

    def test_without_shuffling_the_dataset_is_repeated(self):
        stream = take(PositionSampler(3, seed=0, shuffle=False), 7)
        assert stream == [(0, 0), (1, 1), (2, 2), (3, 0), (4, 1), (5, 2), (6, 0)]

    @pytest.mark.parametrize("world_size", [2, 3])
    def test_the_ranks_share_one_stream(self, world_size):
        whole = take(PositionSampler(5, seed=4), 6 * world_size)
        parts = [take(PositionSampler(5, seed=4, rank=rank, world_size=world_size), 6) for rank in range(world_size)]
        assert [pair for step in zip(*parts, strict=True) for pair in step] == whole

    @pytest.mark.parametrize("start", [1, 5, 7, 13])
    def test_a_later_start_goes_on_with_the_same_stream(self, start):
        assert take(PositionSampler(5, seed=4, start=start), 9) == take(PositionSampler(5, seed=4), start + 9)[start:]

    def test_no_images(self):
        with pytest.raises(UserError, match="no images"):
            PositionSampler(0, seed=0)


def test_every_position_has_a_seed_of_its_own():
    seeds = [sample_seed(seed, position) for seed in range(20) for position in range(200)]
    assert len(set(seeds)) == 4000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**60  # the upper bits are used


def test_seeded_restores_the_global_generators():
    before = global_state()
    draws = []
    for _ in range(2):
        with seeded(5):
            draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]
    with pytest.raises(ZeroDivisionError), seeded(6):
        random.random(), np.random.rand(), torch.rand(1)
        raise ZeroDivisionError
    assert global_state() == before


class TestTrainLoader:
    def test_batches_follow_the_sampler(self, records):
        batches = take(loader(records), 5)
        assert [len(batch) for batch in batches] == [2] * 5
        expected = [index for _, index in take(PositionSampler(5, seed=3), 10)]
        assert [sample["image_id"] for batch in batches for sample in batch] == expected
        assert [s["seed"] for batch in batches for s in batch] == [sample_seed(3, position) for position in range(10)]

    def test_augmentation_differs_between_epochs(self, records):
        # 10 batches of 2 are 4 epochs of 5 images
        seen = {}
        for image_id, _, image, *_ in (row for batch in take(loader(records), 10) for row in fingerprint(batch)):
            seen.setdefault(image_id, []).append(image)
        assert all(len(images) == 4 and any(image != images[0] for image in images) for images in seen.values())

    @pytest.mark.parametrize("workers", [0, 2])
    def test_resumed_at_an_iteration_it_gives_what_an_uninterrupted_run_would_have_seen(self, records, workers):
        whole = [fingerprint(batch) for batch in take(loader(records), 7)]
        resumed = loader(records, workers)
        resumed.start_iteration = 3
        assert [fingerprint(batch) for batch in take(resumed, 4)] == whole[3:]

    @pytest.mark.parametrize(
        ("method", "workers"),
        [
            ("fork", 1),
            ("fork", 2),
            # each of their workers imports torch anew
            pytest.param("forkserver", 1, marks=pytest.mark.slow),
            pytest.param("spawn", 1, marks=pytest.mark.slow),
        ],
    )
    def test_workers_give_the_same_samples_however_they_are_started(self, records, method, workers):
        alone = [fingerprint(batch) for batch in take(loader(records), 4)]
        with start_method(method):
            assert [fingerprint(batch) for batch in take(loader(records, workers), 4)] == alone

    def test_ranks_share_a_batch(self, records, monkeypatch):
        whole = [fingerprint(batch) for batch in take(loader(records), 4)]
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        parts = []
        for rank in range(2):
            monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
            parts.append([fingerprint(batch) for batch in take(loader(records), 4)])
        assert [[first[0], second[0]] for first, second in zip(*parts, strict=True)] == whole

    def test_the_callers_random_state_is_not_touched(self, records):
        before = global_state()
        take(loader(records), 3)
        assert global_state() == before

    @pytest.mark.parametrize(("size", "world_size"), [(0, 1), (-2, 1), (3, 2), (2, 4)])
    def test_a_batch_that_the_processes_cannot_share(self, records, monkeypatch, size, world_size):
        monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
        with pytest.raises(UserError, match=rf"total_batch_size={size} .* {world_size} processes"):
            TrainLoader(records, mapper=dict, total_batch_size=size)

    def test_no_images(self):
        with pytest.raises(UserError, match="no images"):
            TrainLoader([], mapper=dict, total_batch_size=2)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_broken_image_is_one_line_also_from_a_worker(self, records, workers):
        records[2]["file_name"] = "/nothing/here.png"
        with pytest.raises(UserError) as caught:
            take(loader(records, workers), 3)
        assert str(caught.value) == "/nothing/here.png: no such image file."


@contextmanager
def start_method(name):
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(name, force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)


class TestGroupedBatches:
    # 7 images, of which 0, 2 and 5 are landscape
    LANDSCAPE = np.array([1, 0, 1, 0, 0, 1, 0])

    def batches(self, count, start=0, **options):
        stream = PositionSampler(7, seed=5, **options)
        return take(GroupedBatches(stream, self.LANDSCAPE, 2, start=start), count)

    def test_in_the_datasets_order(self):
        # stream 0 1 2 3 | 4 5 6 0 ...: 0+2 are full at position 2, 1+3 at 3, 4+6 at 6, 5+0 at 7
        keys = self.batches(4, shuffle=False)
        assert [[index for _, index in batch] for batch in keys] == [[0, 2], [1, 3], [4, 6], [5, 0]]
        assert [[position for position, _ in batch] for batch in keys] == [[0, 2], [1, 3], [4, 6], [5, 7]]

    def test_no_batch_is_mixed_and_every_image_comes_equally_often(self):
        batches = self.batches(70)
        assert all(len({self.LANDSCAPE[index] for _, index in batch}) == 1 for batch in batches)
        seen = np.bincount([index for batch in batches for _, index in batch], minlength=7)
        assert seen.min() >= 19 and seen.max() <= 20, "140 images are 20 epochs; one of each group may wait"

    @pytest.mark.parametrize("start", [1, 9, 23])
    def test_a_later_start_goes_on_with_the_same_batches(self, start):
        assert self.batches(30, start=start) == self.batches(30 + start)[start:]

    def test_ranks_share_the_stream(self):
        positions = [
            position for rank in (0, 1) for batch in self.batches(40, rank=rank, world_size=2) for position, _ in batch
        ]
        assert len(positions) == len(set(positions))

    @pytest.mark.parametrize("workers", [0, 2])
    def test_the_loader_groups_by_the_datasets_sizes(self, records, workers):
        for record in records[1::2]:
            rotated = Image.open(record["file_name"]).transpose(Image.Transpose.ROTATE_90)
            rotated.save(record["file_name"])
            record.update(width=16, height=24)
        batches = take(loader(records, workers, aspect_ratio_grouping=True), 12)
        assert {len({sample["image"].shape for sample in batch}) for batch in batches} == {1}
        later = loader(records, workers, aspect_ratio_grouping=True)
        later.start_iteration = 5
        assert [fingerprint(batch) for batch in take(later, 7)] == [fingerprint(batch) for batch in batches[5:]]


class TestBadImages:
    """Images 1 and 4 of 6 cannot be read."""

    @staticmethod
    def mapper(record):
        if record["number"] in (1, 4):
            raise BadImageError(f"{record['number']}.png: not a readable image.")
        return {"number": record["number"], "drawn": np.random.rand()}

    def samples(self, workers=0, start=0, steps=6, on_bad_image="skip"):
        records = [{"number": number} for number in range(6)]
        loader = TrainLoader(
            records, mapper=self.mapper, total_batch_size=2, num_workers=workers, seed=5, on_bad_image=on_bad_image
        )
        loader.start_iteration = start
        return [sample for batch in itertools.islice(loader, steps) for sample in batch]

    @pytest.mark.parametrize("workers", [0, 1])
    def test_by_default_they_end_the_training(self, workers):
        with pytest.raises(BadImageError, match=r"^[14]\.png: not a readable image\.$"):
            self.samples(workers, on_bad_image="error")

    def test_another_is_in_their_place_the_same_whoever_reads_and_whenever(self):
        samples = self.samples()
        assert len(samples) == 12 and not {1, 4} & {sample["number"] for sample in samples}
        said = [text for sample in samples for text in sample.get(BAD_IMAGES, ())]
        places = [position for position, index in take(PositionSampler(6, seed=5), 12) if index in (1, 4)]
        assert [place for place, sample in enumerate(samples) if BAD_IMAGES in sample] == places and len(places) == 4
        assert set(said) == {"1.png: not a readable image.", "4.png: not a readable image."}
        assert self.samples(workers=2) == samples
        assert self.samples(start=2, steps=4) == samples[4:]

    def test_all_of_them(self, monkeypatch):
        def missing(record):
            raise BadImageError(f"{record['number']}.png: no such image file.")

        monkeypatch.setattr(self.__class__, "mapper", staticmethod(missing))
        with pytest.raises(UserError, match=r"\.png: no such image file\. It is the last of 10 in a row .*the disk"):
            self.samples()

    def test_a_word_that_is_neither(self):
        with pytest.raises(UserError, match=r"dataloader\.train\.on_bad_image=ignore: expected error or skip"):
            self.samples(on_bad_image="ignore")
