"""The hooks: when each acts, and what it leaves behind."""

import json
import logging
import re

import pytest
import torch
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.param_scheduler import LinearParamScheduler
from torch import nn

import sam_d2  # noqa: F401
from detectron2.engine import TrainerBase, hooks
from detectron2.utils.events import EventWriter, get_event_storage
from sam_d2.detectron2_source import describe_detectron2


class Idle(TrainerBase):
    """A trainer whose step only calls a function."""

    def __init__(self, step=lambda iteration: None):
        super().__init__()
        self.step = step

    def run_step(self):
        self.step(self.iter)


def train(hook_list, start=0, end=5, step=lambda iteration: None):
    trainer = Idle(step)
    trainer.register_hooks(hook_list)
    trainer.train(start, end)
    return trainer


def fail_at(iteration):
    def step(current):
        if current == iteration:
            raise RuntimeError("made to fail")

    return step


@pytest.fixture(autouse=True)
def visible_log(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    caplog.set_level(logging.INFO)


def test_callback_hook():
    log = []
    events = ("before_train", "before_step", "after_step", "after_train")
    callbacks = {event: lambda trainer, event=event: log.append((event, trainer.iter)) for event in events}
    train([hooks.CallbackHook(**callbacks), hooks.CallbackHook()], end=1)
    assert log == [("before_train", 0), ("before_step", 0), ("after_step", 0), ("after_train", 1)]


def test_callback_hook_takes_keywords_only():
    with pytest.raises(TypeError):
        hooks.CallbackHook(print)


class TestIterationTimer:
    def test_stores_time_after_the_warm_up(self):
        trainer = train([hooks.IterationTimer(warmup_iter=3)], start=10, end=15)
        # The third iteration of the warm-up (number 12) is the first that is timed.
        assert [iteration for _, iteration in trainer.storage.history("time").values()] == [12, 13, 14]

    def test_measures_the_step_and_not_the_hooks(self):
        clock = iter(range(1000))
        slow = hooks.CallbackHook(after_step=lambda trainer: [next(clock) for _ in range(50)])
        with pytest.MonkeyPatch.context() as patch:
            # Every look at the clock takes a second; a step looks 7 times more.
            patch.setattr("time.perf_counter", lambda: float(next(clock)))
            patch.setattr("fvcore.common.timer.perf_counter", lambda: float(next(clock)))
            trainer = train(
                [hooks.IterationTimer(warmup_iter=0), slow],
                end=3,
                step=lambda _: [next(clock) for _ in range(7)],
            )
        for seconds, _ in trainer.storage.history("time").values():
            assert 7 < seconds < 20

    def test_log_lines(self, caplog):
        train([hooks.IterationTimer(warmup_iter=3)], end=5)
        # storage.iter is 5 at the end: 5 + 1 - 0 - 3 iterations
        assert re.search(r"Overall training speed: 3 iterations in 0:00:00 \(\d\.\d{4} s / it\)", caplog.text)
        assert re.search(r"Total training time: 0:00:00 \(0:00:00 on hooks\)", caplog.text)

    def test_no_speed_within_the_warm_up(self, caplog):
        train([hooks.IterationTimer(warmup_iter=3)], end=2)
        assert "Overall training speed" not in caplog.text
        assert "Total training time" in caplog.text


class RecordingWriter(EventWriter):
    def __init__(self):
        self.log = []

    def write(self):
        self.log.append(get_event_storage().iter)

    def close(self):
        self.log.append("close")


def test_periodic_writer():
    writer = RecordingWriter()
    train([hooks.PeriodicWriter([writer], period=2)], end=5)
    # after iterations 1 and 3, after the last one, and at the end (storage.iter = max_iter)
    assert writer.log == [1, 3, 4, 5, "close"]


def test_periodic_writer_writes_after_a_failure():
    writer = RecordingWriter()
    with pytest.raises(RuntimeError):
        train([hooks.PeriodicWriter([writer], period=2)], step=fail_at(2))
    assert writer.log == [1, 2, "close"]


def test_periodic_writer_refuses_what_is_no_writer():
    with pytest.raises(AssertionError):
        hooks.PeriodicWriter([object()])


class TestPeriodicCheckpointer:
    def test_files(self, tmp_path):
        checkpointer = Checkpointer(nn.Linear(1, 1), str(tmp_path))
        train([hooks.PeriodicCheckpointer(checkpointer, period=2)], end=5)
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"model_0000001.pth", "model_0000003.pth", "model_final.pth", "last_checkpoint"}
        assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
        assert torch.load(tmp_path / "model_0000003.pth")["iteration"] == 3
        assert torch.load(tmp_path / "model_final.pth")["iteration"] == 4

    def test_max_to_keep(self, tmp_path):
        checkpointer = Checkpointer(nn.Linear(1, 1), str(tmp_path))
        train([hooks.PeriodicCheckpointer(checkpointer, period=1, max_to_keep=2)], end=4)
        assert {path.name for path in tmp_path.glob("*.pth")} == {
            "model_0000002.pth",
            "model_0000003.pth",
            "model_final.pth",
        }

    def test_no_final_file_after_a_failure(self, tmp_path):
        checkpointer = Checkpointer(nn.Linear(1, 1), str(tmp_path))
        with pytest.raises(RuntimeError):
            train([hooks.PeriodicCheckpointer(checkpointer, period=2)], step=fail_at(2))
        assert {path.name for path in tmp_path.glob("*.pth")} == {"model_0000001.pth"}


class FakeCheckpointer:
    def __init__(self):
        self.saved = []

    def save(self, name, **extra):
        self.saved.append((name, extra))


class TestBestCheckpointer:
    def run(self, scores, **kwargs):
        """Train with one evaluation per iteration that gives these scores in turn."""
        checkpointer, source = FakeCheckpointer(), iter(scores)
        best = hooks.BestCheckpointer(1, checkpointer, "segm/AP", **kwargs)
        evaluate = hooks.EvalHook(1, lambda: {"segm": {"AP": next(source)}})
        train([evaluate, best], end=len(scores))
        return checkpointer.saved, best

    def test_keeps_the_highest(self):
        saved, best = self.run([10.0, 30.0, 30.0, 20.0, 40.0])
        # The last evaluation happens in after_train, where the iteration is max_iter.
        assert saved == [("model_best", {"iteration": i}) for i in (0, 1, 5)]
        assert (best.best_metric, best.best_iter) == (40.0, 5)

    def test_keeps_the_lowest(self):
        saved, best = self.run([10.0, 30.0, 5.0], mode="min", file_prefix="lowest")
        assert saved == [("lowest", {"iteration": i}) for i in (0, 3)]
        assert best.best_metric == 5.0

    def test_nan_is_never_the_best(self):
        saved, best = self.run([float("nan"), 1.0, float("nan"), 2.0, 1.5])
        assert [extra["iteration"] for _, extra in saved] == [1, 3]
        assert best.best_metric == 2.0

    def test_a_missing_metric_is_a_warning(self, caplog):
        checkpointer = FakeCheckpointer()
        train([hooks.BestCheckpointer(2, checkpointer, "bbox/AP")], end=2)
        assert checkpointer.saved == []
        assert "bbox/AP" in caplog.text

    def test_period_zero_compares_at_the_end_only(self):
        checkpointer = FakeCheckpointer()
        score = hooks.CallbackHook(
            after_step=lambda trainer: trainer.storage.put_scalar("x", -trainer.iter, smoothing_hint=False)
        )
        train([score, hooks.BestCheckpointer(0, checkpointer, "x")], end=3)
        assert checkpointer.saved == [("model_best", {"iteration": 2})]

    def test_not_after_a_failure(self):
        checkpointer = FakeCheckpointer()
        score = hooks.CallbackHook(after_step=lambda trainer: trainer.storage.put_scalar("x", 1.0))
        with pytest.raises(RuntimeError):
            train([score, hooks.BestCheckpointer(0, checkpointer, "x")], step=fail_at(2))
        assert checkpointer.saved == []

    def test_unknown_mode(self):
        with pytest.raises(AssertionError, match="mean"):
            hooks.BestCheckpointer(1, FakeCheckpointer(), "x", mode="mean")


def sgd(*groups):
    """An optimizer with groups of (number of parameters, learning rate)."""
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1)) for _ in range(n)], "lr": lr} for n, lr in groups])


class TestLRScheduler:
    def stored(self, trainer):
        return [value for value, _ in trainer.storage.history("lr").values()]

    def test_fvcore_schedule_multiplies_the_initial_rate(self):
        optimizer = sgd((1, 0.4))
        trainer = train([hooks.LRScheduler(optimizer, LinearParamScheduler(1.0, 0.0))], end=4)
        # 0.4 * (1 - iteration / 4)
        assert self.stored(trainer) == pytest.approx([0.4, 0.3, 0.2, 0.1])
        assert trainer.storage.smoothing_hints()["lr"] is False
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0)

    def test_starts_in_the_middle(self):
        optimizer = sgd((1, 0.4))
        optimizer.param_groups[0]["initial_lr"] = 0.4
        trainer = train([hooks.LRScheduler(optimizer, LinearParamScheduler(1.0, 0.0))], start=2, end=4)
        assert self.stored(trainer) == pytest.approx([0.2, 0.1])

    def test_torch_schedule(self):
        optimizer = sgd((1, 1.0))
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.1)
        trainer = train([hooks.LRScheduler(optimizer, scheduler)], end=5)
        assert self.stored(trainer) == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01])

    def test_parts_of_the_trainer(self):
        trainer = Idle()
        trainer.optimizer = sgd((1, 1.0))
        trainer.scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, step_size=1, gamma=0.5)
        hook = hooks.LRScheduler()
        trainer.register_hooks([hook])
        trainer.train(0, 3)
        assert self.stored(trainer) == [1.0, 0.5, 0.25]
        assert hook.scheduler is trainer.scheduler

    @pytest.mark.parametrize(
        ("groups", "expected"),
        [
            ([(1, 0.1), (3, 0.2), (3, 0.3)], 1),  # the first of the largest
            ([(1, 0.1), (1, 0.2), (1, 0.2)], 1),  # single parameters: the commonest rate
            ([(1, 0.1)], 0),
        ],
    )
    def test_group_that_stands_for_all(self, groups, expected):
        assert hooks.LRScheduler.get_best_param_group_id(sgd(*groups)) == expected

    def test_state(self):
        optimizer = sgd((1, 1.0))
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.1)
        hook = hooks.LRScheduler(optimizer, scheduler)
        train([hook], end=3)
        state = hook.state_dict()
        assert state["last_epoch"] == 3
        fresh = torch.optim.lr_scheduler.StepLR(sgd((1, 1.0)), step_size=2, gamma=0.1)
        hooks.LRScheduler(scheduler=fresh).load_state_dict(state)
        assert fresh.last_epoch == 3

    def test_a_bare_fvcore_schedule_has_no_state(self):
        hook = hooks.LRScheduler(sgd((1, 1.0)), LinearParamScheduler(1.0, 0.0))
        assert hook.state_dict() == {}


class TestEvalHook:
    def test_when(self):
        seen = []
        trainer = Idle()
        trainer.register_hooks([hooks.EvalHook(2, lambda: seen.append(trainer.iter))])
        trainer.train(0, 6)
        # After iterations 1 and 3; the one after 5, the last, is left to after_train.
        assert seen == [1, 3, 6]

    def test_only_at_the_end(self):
        seen = []
        train([hooks.EvalHook(0, lambda: seen.append(1))])
        assert seen == [1]

    def test_not_at_the_end(self):
        seen = []
        train([hooks.EvalHook(2, lambda: seen.append(1), eval_after_train=False)], end=4)
        assert seen == [1]

    def test_not_after_a_failure(self):
        seen = []
        with pytest.raises(RuntimeError):
            train([hooks.EvalHook(0, lambda: seen.append(1))], step=fail_at(3))
        assert seen == []

    def test_results_are_stored_flat_and_unsmoothed(self):
        trainer = train([hooks.EvalHook(0, lambda: {"bbox": {"AP": 1, "AP-cat": 2.5}, "speed": 3})], end=2)
        assert trainer.storage.latest() == {"bbox/AP": (1.0, 2), "bbox/AP-cat": (2.5, 2), "speed": (3.0, 2)}
        assert trainer.storage.smoothing_hints()["bbox/AP"] is False

    def test_results_that_are_no_dict(self):
        with pytest.raises(AssertionError):
            train([hooks.EvalHook(0, lambda: [1, 2])])

    def test_results_that_are_no_numbers(self):
        with pytest.raises(ValueError, match="bbox/AP"):
            train([hooks.EvalHook(0, lambda: {"bbox": {"AP": "high"}})])


class TestPreciseBN:
    def test_true_average(self):
        model = nn.BatchNorm1d(1)
        batches = [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [6.0]])]
        train([hooks.PreciseBN(0, model, batches, 2)], end=1)
        assert model.running_mean.item() == pytest.approx(3.0)
        # the population 0, 2, 4, 6: (9 + 1 + 1 + 9) / 4
        assert model.running_var.item() == pytest.approx(5.0)
        assert model.training

    def test_goes_on_where_it_stopped(self):
        model = nn.BatchNorm1d(1)
        batches = [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [6.0]])]
        hook = hooks.PreciseBN(1, model, batches, 1)
        hook.update_stats()
        assert model.running_mean.item() == pytest.approx(1.0)
        hook.update_stats()
        assert model.running_mean.item() == pytest.approx(5.0)

    def test_when(self, monkeypatch):
        seen = []
        hook = hooks.PreciseBN(2, nn.BatchNorm1d(1), [], 1)
        trainer = Idle()
        trainer.register_hooks([hook])
        monkeypatch.setattr(hook, "update_stats", lambda: seen.append(trainer.iter))
        trainer.train(0, 5)
        assert seen == [1, 3, 4]

    def test_nothing_to_do(self):
        model = nn.BatchNorm1d(1).eval()
        hooks.PreciseBN(1, model, [], 1).update_stats()  # would fail on the empty data
        assert model.running_mean.item() == 0.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_memory_stats_without_cuda(caplog):
    train([hooks.TorchMemoryStats(period=1)])
    assert "reserved_mem" not in caplog.text


def test_memory_stats_log(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for counter in ("max_memory_reserved", "memory_reserved", "max_memory_allocated", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, counter, lambda: 3 * 2**20)
    monkeypatch.setattr(torch.cuda, "memory_summary", lambda: "the summary")
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    train([hooks.TorchMemoryStats(period=2, max_runs=1)], end=7)
    lines = [record.getMessage() for record in caplog.records if "allocated_mem" in record.getMessage()]
    # After iterations 1 and 3; the summary comes with number max_runs, and one line more.
    assert len(lines) == 2
    assert re.search(r"iter: 1\b.*max_reserved_mem: 3MB.* allocated_mem: 3MB", lines[0])
    assert caplog.text.count("the summary") == 1


def test_torch_profiler_writes_a_trace(tmp_path):
    hook = hooks.TorchProfiler(lambda trainer: trainer.iter == 1, str(tmp_path), save_tensorboard=False)
    train([hook], end=3, step=lambda _: torch.ones(2) + 1)
    assert [path.name for path in tmp_path.iterdir()] == ["profiler-trace-iter1.json"]
    assert "traceEvents" in json.loads((tmp_path / "profiler-trace-iter1.json").read_text())


@pytest.mark.skipif("installed" in describe_detectron2(), reason="Detectron2's calls an API that torch dropped")
def test_autograd_profiler_writes_a_trace(tmp_path):
    with pytest.warns(UserWarning, match="TorchProfiler"):
        hook = hooks.AutogradProfiler(lambda trainer: trainer.iter == 0, str(tmp_path / "new"), use_cuda=False)
    train([hook], end=1, step=lambda _: torch.ones(2) + 1)
    assert (tmp_path / "new" / "profiler-trace-iter0.json").is_file()
