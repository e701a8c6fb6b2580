"""A step that runs out of GPU memory: the same step in parts, or no step; injected, in one process and in two."""

import importlib.util
import logging
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.engine import HookBase
from detectron2.layers import NaiveSyncBatchNorm
from sam_d2.engine.ema import WeightAverage
from sam_d2.engine.oom import OomRetry, is_out_of_memory

HERE = Path(__file__).resolve().parent


def load(name):
    # By path, because the test runner imports this folder as no package.
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


net = load("oom_net")
Net, images, steps_of, train, poisoned, momentum, norm = (
    getattr(net, name) for name in ("Net", "images", "steps_of", "train", "poisoned", "momentum", "norm")
)
EXACT = {"rtol": 0, "atol": 0}
CLOSE = {"rtol": 0, "atol": 1e-6}


def poison(batches, *places):
    """Mark single images, (batch, number), as too large for any memory."""
    for batch, number in places:
        batches[batch][number]["poison"] = True
    return batches


def state_of(trainer):
    return {"weights": trainer.model.state_dict(), "momentum": momentum(trainer)}


def values(trainer, name):
    return trainer.storage.history(name).values()


class Records(HookBase):
    """Copies of something after each step."""

    def __init__(self, get):
        self.get = get
        self.seen = []

    def after_step(self):
        self.seen.append(self.get())


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sam_d2"), "propagate", True)
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records if record.name == "sam_d2.engine.oom"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("anything"), True),
        (torch.cuda.OutOfMemoryError(net.MESSAGE), True),
        (RuntimeError(net.MESSAGE), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. It is possibly out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


class TestInParts:
    @pytest.mark.parametrize("where", ["forward", "backward"])
    @pytest.mark.parametrize(
        ("batch", "accumulate", "most", "seen"),
        [
            # 5 images, of which 2 fit: all, 3 of them, then 2, 2 and 1
            (5, 1, 2, [5, 3, 2, 2, 1]),
            (4, 1, 1, [4, 2, 1, 1, 1, 1]),
            # both batches begin again
            (4, 2, 2, [4, 2, 2, 2, 2]),
        ],
    )
    def test_it_is_the_step_of_the_whole(self, batch, accumulate, most, seen, where):
        batches = steps_of(batch, count=3 * accumulate)
        whole = train(Net(), batches, accumulate=accumulate)
        model = Net(lambda samples: len(samples) > most, where)
        parts = train(model, batches, accumulate=accumulate)
        assert model.seen == 3 * seen
        torch.testing.assert_close(state_of(parts), state_of(whole), **CLOSE)
        assert not torch.allclose(whole.model.first.weight, Net().first.weight, atol=1e-2), "or 1e-6 would say nothing"
        for name in ("loss_square", "loss_mean", "total_loss"):
            expected = [value for value, _ in values(whole, name)]
            assert [value for value, _ in values(parts, name)] == pytest.approx(expected, abs=1e-6)
        assert values(parts, "images") == values(whole, "images")
        assert parts.oom.state_dict() == {"retried": 3, "skipped": 0}
        assert values(parts, "oom_retried") == [(1, 0), (2, 1), (3, 2)]

    def test_only_the_second_batch_of_a_step_fails(self):
        """What the first one has added is thrown away and made again."""
        batches = poison(steps_of(2, count=2), (1, 0))
        model = Net(lambda samples: len(samples) > 1 and poisoned(samples), "backward")
        parts = train(model, batches, accumulate=2)
        assert model.seen == [2, 2, 1, 1, 1, 1]
        torch.testing.assert_close(state_of(parts), state_of(train(Net(), batches, accumulate=2)), **CLOSE)

    def test_a_single_image_is_tried_again(self):
        """With the cache emptied it may fit."""
        model = Net(lambda samples: len(model.seen) == 1)
        parts = train(model, steps_of(1))
        assert model.seen == [1, 1, 1, 1]
        torch.testing.assert_close(state_of(parts), state_of(train(Net(), steps_of(1))), **EXACT)

    def test_nothing_of_the_failed_try_is_recorded(self):
        parts = train(Net(lambda samples: len(samples) > 2), steps_of(5, count=2))
        assert values(parts, "images_at_once") == [(2, 0), (2, 0), (1, 0), (2, 1), (2, 1), (1, 1)]
        assert [iteration for _, iteration in values(parts, "total_loss")] == [0, 1]

    def test_each_try_draws_what_the_whole_would_have_drawn(self):
        whole, parts = Net(), Net(lambda samples: len(samples) == 4)
        train(whole, steps_of(4))
        train(parts, steps_of(4))
        # of a step: all images, then two parts
        assert parts.draws[0::3] == parts.draws[1::3] == whole.draws
        assert len(set(parts.draws)) == 6

    def test_running_statistics_are_those_of_the_parts_alone(self):
        parts = train(Net(lambda samples: len(samples) > 2, norm=norm), steps_of(4, count=1))
        accumulated = train(Net(norm=norm), steps_of(2, count=2), accumulate=2)
        assert parts.model.norm[1].num_batches_tracked == 2
        torch.testing.assert_close(state_of(parts), state_of(accumulated), **EXACT)

    def test_without_an_error_no_bit_changes(self):
        for options in ({}, {"accumulate": 2, "clip_gradient_norm": 0.05}):
            handled, plain = (train(Net(), steps_of(4, count=4), oom_retry=on, **options) for on in (True, False))
            torch.testing.assert_close(state_of(handled), state_of(plain), **EXACT)
            assert "oom_retried" not in handled.storage.histories()

    def test_what_is_logged(self, said):
        train(Net(lambda samples: len(samples) > 2), steps_of(4, count=1))
        assert len(said()) == 1
        assert said()[0].startswith(
            "Step 1: out of GPU memory with 4 images at once, where it needed 2.00 GiB more. Taken in parts of 2 "
            "images. So far 1 steps in parts, 0 skipped. What helps: a smaller dataloader.train.total_batch_size"
        )


class TestSkip:
    def both(self, **options):
        """A training whose second of three steps fails in all parts, and one that has never seen that step."""
        batches = poison(steps_of(4), (1, 3))
        return train(Net(poisoned, **options), batches), train(Net(**options), [batches[0], batches[2]])

    @pytest.mark.parametrize("where", ["forward", "backward"])
    def test_weights_and_momentum_are_those_without_the_step(self, where):
        skipped, without = self.both(where=where)
        # Of the second step the whole, halves (the second has the poison), and single images, the last of which has it.
        assert skipped.model.seen == [4, 4, 2, 2, 1, 1, 1, 1, 4]
        torch.testing.assert_close(state_of(skipped), state_of(without), **EXACT)
        assert values(skipped, "oom_skipped") == [(1, 1)] and values(skipped, "oom_retried") == [(0, 1)]
        for name in ("total_loss", "images_at_once", "images"):
            assert [iteration for _, iteration in values(skipped, name)] == [0, 2]
        assert values(skipped, "total_loss")[1][0] == values(without, "total_loss")[1][0]

    def test_running_statistics_are_those_without_the_step(self):
        skipped, without = self.both(norm=norm)
        assert without.model.norm[1].num_batches_tracked == 2
        torch.testing.assert_close(state_of(skipped), state_of(without), **EXACT)

    def test_the_average_stays(self):
        model = Net(poisoned)
        average = WeightAverage(model, 0.9)
        records = Records(lambda: {name: value.clone() for name, value in average.state_dict()["weights"].items()})
        trainer = train(model, poison(steps_of(4), (1, 3)), hooks=[average, records])
        first, second, third = records.seen
        torch.testing.assert_close(second, first, **EXACT)
        assert not torch.equal(third["first.weight"], first["first.weight"])
        assert trainer.step_taken

    @pytest.mark.parametrize("limit", [None, 0.05])
    def test_the_scale_of_float16_stays(self, limit):
        def scaler():
            return torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)

        options = {"amp_dtype": torch.float16, "clip_gradient_norm": limit}
        batches = poison(steps_of(4), (1, 3))
        records = Records(lambda: dict(records.trainer.grad_scaler.state_dict()))
        skipped = train(Net(poisoned), batches, hooks=[records], scaler=scaler(), **options)
        # It grows after two steps that were taken.
        assert [state["scale"] for state in records.seen] == [8, 8, 16]
        assert [state["_growth_tracker"] for state in records.seen] == [1, 1, 0]
        without = train(Net(), [batches[0], batches[2]], scaler=scaler(), **options)
        torch.testing.assert_close(state_of(skipped), state_of(without), **EXACT)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_parts_in_mixed_precision(self, dtype):
        def trained(model):
            scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=dtype == torch.float16)
            return train(model, steps_of(4), amp_dtype=dtype, scaler=scaler)

        parts, whole = trained(Net(lambda samples: len(samples) > 1)), trained(Net())
        assert parts.grad_scaler.state_dict() == whole.grad_scaler.state_dict()
        # Gradients are rounded to 11 bits or 8, image by image.
        torch.testing.assert_close(
            state_of(parts), state_of(whole), rtol=0, atol=2e-3 if dtype == torch.float16 else 0.02
        )

    def test_what_is_logged(self, said):
        self.both()
        assert said()[0].startswith(
            "Step 2: out of GPU memory with 7.png alone, where it needed 2.00 GiB more. Skipped: the weights stay as "
            "they are. So far 0 steps in parts, 1 skipped. What helps: "
        )

    @pytest.mark.parametrize(
        ("steps", "skipped", "share"),
        [(100, 1, None), (99, 1, "1 of 99 steps (1.0 %)"), (40, 2, "2 of 40 steps (5.0 %)")],
    )
    def test_a_run_that_skipped_more_than_one_in_a_hundred_says_so_at_its_end(self, said, steps, skipped, share):
        batches = [images(1) for _ in range(steps)]
        trainer = train(Net(poisoned), poison(batches, *((number, 0) for number in range(skipped))))
        assert trainer.oom.skipped == skipped
        ends = [line for line in said() if line.startswith("***")]
        assert len(ends) == (share is not None)
        assert share is None or ends[0].startswith(f"*** {share} were skipped for want of GPU memory")
        assert share is None or ends[0] == said()[-1]

    def test_a_resume_goes_on_counting(self, said):
        first = train(
            Net(lambda samples: poisoned(samples) or len(samples) == 3), poison([images(1), images(3)], (0, 0))
        )
        assert first.oom.state_dict() == {"retried": 1, "skipped": 1}
        rest = poison([images(1) for _ in range(98)], (5, 0))
        second = train(Net(poisoned), rest, start=2, state=first.state_dict())
        assert values(second, "oom_skipped") == [(2, 7)] and values(second, "oom_retried") == [(1, 7)]
        assert said()[-1].startswith("*** 2 of 100 steps (2.0 %)")
        earlier = first.state_dict()
        del earlier["oom"]
        assert train(Net(), steps_of(1), start=2, state=earlier).oom.skipped == 0


@pytest.mark.parametrize("on", [True, False])
def test_other_errors_pass(on):
    model = Net(lambda samples: True, error=RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        train(model, steps_of(4), oom_retry=on)
    assert caught.value is model.error and model.seen == [4]


def test_without_oom_retry_the_run_ends():
    model = Net(lambda samples: True)
    with pytest.raises(torch.OutOfMemoryError):
        train(model, steps_of(4), oom_retry=False)
    assert model.seen == [4]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes has after trainings with and without an error in the second one."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        worker = importlib.import_module("oom_net")
        torch.multiprocessing.spawn(worker.train_as_rank, args=(folder,), nprocs=2)
        del sys.modules["oom_net"]
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(2)]


class TestProcesses:
    @pytest.mark.parametrize("name", ["ddp", "whole", "in_parts", "skipped"])
    def test_both_have_the_same_weights(self, two, name):
        for part in ("weights", "momentum", "counts"):
            torch.testing.assert_close(two[0][name][part], two[1][name][part], **EXACT)

    def test_exchanging_after_the_backward_pass_changes_no_bit(self, two):
        for part in ("weights", "momentum"):
            torch.testing.assert_close(two[0]["whole"][part], two[0]["ddp"][part], **EXACT)

    @pytest.mark.parametrize("name", ["whole", "in_parts", "skipped"])
    def test_they_equal_one_process_on_the_whole(self, two, name):
        batches = net.rows_of_two()
        one = train(Net(), [batches[0], batches[2]] if name == "skipped" else batches)
        found = {part: two[0][name][part] for part in ("weights", "momentum")}
        torch.testing.assert_close(found, state_of(one), **CLOSE)
        # A parameter without gradient is not moved, and one with a gradient in one process is, in both.
        assert torch.equal(found["weights"]["unused"], torch.ones(2)) and "unused" not in found["momentum"]
        assert found["weights"]["rare"] != 1

    def test_only_the_one_that_failed_repeats_its_work(self, two):
        assert [ranks["in_parts"]["seen"] for ranks in two] == [[3] * 3, [3, 2, 1, 1, 1] * 3]
        assert two[0]["in_parts"]["counts"] == {"retried": 3, "skipped": 0}
        # Of the second process's second step the first image fails always.
        assert [ranks["skipped"]["seen"] for ranks in two] == [[3] * 3, [3, 3, 2, 1, 3]]
        assert two[0]["skipped"]["counts"] == {"retried": 0, "skipped": 1}

    def test_a_step_that_is_skipped_leaves_no_statistics_in_the_other(self, two):
        for ranks in two:
            assert ranks["skipped_with_norm"]["weights"]["norm.1.num_batches_tracked"] == 2

    def test_each_says_what_it_knows(self, two):
        for name in ("ddp", "whole"):
            assert two[0][name]["said"] == two[1][name]["said"] == []
        first, second = (ranks["skipped"]["said"][0] for ranks in two)
        assert first.startswith("Step 2: out of GPU memory in process 1, whose log has more. Skipped: the weights stay")
        assert second.startswith("Step 2: out of GPU memory with 9.png alone")
        first, second = (ranks["in_parts"]["said"][0] for ranks in two)
        assert first.startswith("Step 1: out of GPU memory in process 1, whose log has more. Taken in parts there.")
        assert second.startswith("Step 1: out of GPU memory with 3 images at once") and "image by image" in second

    @pytest.mark.parametrize(
        ("norm", "broadcast", "reason"),
        [
            (lambda: NaiveSyncBatchNorm(8), False, "norm is a NaiveSyncBatchNorm"),
            (norm, True, "train.ddp has buffers broadcast in each forward pass"),
            (norm, False, ""),
            (nn.Identity, True, ""),
        ],
    )
    def test_where_they_wait_for_one_another_in_the_forward_pass(self, said, tmp_path, norm, broadcast, reason):
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        try:
            model = DistributedDataParallel(Net(norm=norm), broadcast_buffers=broadcast)
            handled = OomRetry(model, torch.optim.SGD(model.parameters(), lr=0.1), enabled=True)
            assert handled.enabled == (reason == "")
            assert len(said()) == bool(reason) and all(f"no effect: {reason}, so" in line for line in said())
        finally:
            torch.distributed.destroy_process_group()
