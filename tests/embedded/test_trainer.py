"""The training loop: order of the hooks, the step's arithmetic, the metrics, the state."""

import gc
import logging
import weakref

import pytest
import torch
from torch import nn

import sam_d2  # noqa: F401
from detectron2.engine import AMPTrainer, HookBase, SimpleTrainer, TrainerBase
from detectron2.engine import train_loop as public_train_loop
from detectron2.utils.events import EventStorage


class Scale(nn.Module):
    """loss(x) = w * x, with w = 1 at first, so that the gradient is x."""

    def __init__(self, form=lambda loss: {"loss_w": loss}):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0))
        self.form = form

    def forward(self, x):
        return self.form(self.w * x)


def make_trainer(data=(1.0, 2.0, 3.0), form=lambda loss: {"loss_w": loss}, **kwargs):
    model = Scale(form)
    return SimpleTrainer(model, list(data), torch.optim.SGD(model.parameters(), lr=0.1), **kwargs)


def values(trainer, name):
    return [value for value, _ in trainer.storage.history(name).values()]


class Recorder(HookBase):
    def __init__(self, log):
        self.log = log

    def before_train(self):
        self.log.append(("before_train", self.trainer.iter))

    def after_train(self):
        self.log.append(("after_train", self.trainer.iter))

    def before_step(self):
        self.log.append(("before_step", self.trainer.iter))

    def after_backward(self):
        self.log.append(("after_backward", self.trainer.iter))

    def after_step(self):
        self.log.append(("after_step", self.trainer.iter))


@pytest.fixture(autouse=True)
def visible_log(monkeypatch):
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)


def test_hooks_run_in_the_documented_order():
    log = []
    trainer = make_trainer()
    trainer.register_hooks([Recorder(log), None])
    trainer.train(4, 6)
    step = ["before_step", "after_backward", "after_step"]
    # iter is max_iter only once training has ended.
    expected = [("before_train", 4), *((e, 4) for e in step), *((e, 5) for e in step), ("after_train", 6)]
    assert log == expected
    assert (trainer.start_iter, trainer.iter, trainer.max_iter, trainer.storage.iter) == (4, 6, 6, 6)


def test_hooks_are_called_in_the_order_of_registration():
    log = []

    class Named(HookBase):
        def __init__(self, name):
            self.name = name

        def after_step(self):
            log.append(self.name)

    trainer = make_trainer()
    trainer.register_hooks([Named("a"), Named("b")])
    trainer.register_hooks([Named("c")])
    trainer.train(0, 1)
    assert log == ["a", "b", "c"]


def test_register_hooks_refuses_what_is_no_hook():
    with pytest.raises(AssertionError):
        make_trainer().register_hooks([object()])


def test_hook_without_a_trainer():
    assert HookBase().trainer is None
    assert HookBase().state_dict() == {}


def test_hooks_do_not_keep_the_trainer_alive():
    trainer = make_trainer()
    hook = HookBase()
    trainer.register_hooks([hook])
    alive = weakref.ref(trainer)
    del trainer
    gc.collect()
    assert alive() is None


def test_step_arithmetic_and_metrics():
    trainer = make_trainer()
    trainer.train(0, 3)
    # w: 1 -> 1 - 0.1 * 1 = 0.9 -> 0.9 - 0.1 * 2 = 0.7 -> 0.7 - 0.1 * 3 = 0.4
    assert trainer.model.w.item() == pytest.approx(0.4, abs=1e-6)
    # losses: 1 * 1, 0.9 * 2, 0.7 * 3
    assert values(trainer, "total_loss") == pytest.approx([1.0, 1.8, 2.1], abs=1e-6)
    # A single loss is not stored a second time under its own name.
    assert set(trainer.storage.latest()) == {"rank_data_time", "data_time", "total_loss"}
    assert values(trainer, "data_time") == values(trainer, "rank_data_time")


def test_several_losses_are_summed_and_stored_each():
    trainer = make_trainer(form=lambda loss: {"loss_a": loss, "loss_b": 2 * loss})
    trainer.train(0, 1)
    latest = trainer.storage.latest()
    assert latest["loss_a"] == (1.0, 0)
    assert latest["loss_b"] == (2.0, 0)
    assert latest["total_loss"] == (3.0, 0)
    assert trainer.model.w.item() == pytest.approx(0.7)  # gradient 1 + 2


def test_a_bare_loss_is_the_total_loss():
    trainer = make_trainer(form=lambda loss: loss)
    trainer.train(0, 2)
    assert values(trainer, "total_loss") == pytest.approx([1.0, 1.8])


def test_gather_metric_period():
    trainer = make_trainer(data=[1.0] * 5, gather_metric_period=2)
    trainer.train(0, 5)
    # (iter + 1) % 2 == 0
    assert [iteration for _, iteration in trainer.storage.history("total_loss").values()] == [1, 3]


def test_async_metrics_are_the_same():
    plain, threaded = make_trainer(), make_trainer(async_write_metrics=True)
    seen = []

    class Wait(HookBase):
        def after_step(self):  # the storage is found through a global, so it must not change under the thread
            self.trainer.concurrent_executor.submit(lambda: None).result()
            seen.append(self.trainer.iter)

    threaded.register_hooks([Wait()])
    plain.train(0, 3)
    threaded.train(0, 3)
    assert seen == [0, 1, 2]
    assert threaded.storage.history("total_loss").values() == plain.storage.history("total_loss").values()


@pytest.mark.parametrize(
    ("early", "order"), [(True, ["zero_grad", "forward", "step"]), (False, ["forward", "zero_grad", "step"])]
)
def test_zero_grad_before_forward(early, order):
    log = []
    trainer = make_trainer(zero_grad_before_forward=early)
    inner_zero, inner_step = trainer.optimizer.zero_grad, trainer.optimizer.step
    trainer.optimizer.zero_grad = lambda: (log.append("zero_grad"), inner_zero())
    trainer.optimizer.step = lambda: (log.append("step"), inner_step())
    trainer.model.register_forward_pre_hook(lambda *_: log.append("forward"))
    trainer.train(0, 1)
    assert log == order


def test_after_backward_sees_the_gradient_before_the_update():
    seen = []

    class Look(HookBase):
        def after_backward(self):
            seen.extend([self.trainer.model.w.grad.item(), self.trainer.model.w.item()])

    trainer = make_trainer()
    trainer.register_hooks([Look()])
    trainer.train(0, 2)
    assert seen == pytest.approx([1.0, 1.0, 2.0, 0.9])


def test_a_nan_loss_ends_training_before_the_update():
    log = []
    trainer = make_trainer(data=[1.0, float("nan"), 1.0])
    trainer.register_hooks([Recorder(log)])
    with pytest.raises(FloatingPointError, match="infinite or NaN at iteration=1"):
        trainer.train(0, 3)
    assert log[-1] == ("after_train", 1)  # less than max_iter: hooks can tell
    assert trainer.model.w.item() == pytest.approx(0.9)  # the bad gradient was not applied


def test_infinite_loss():
    with pytest.raises(FloatingPointError):
        make_trainer(data=[float("inf")]).train(0, 1)


def test_a_model_in_eval_mode_is_refused():
    trainer = make_trainer()
    trainer.model.eval()
    with pytest.raises(AssertionError, match="eval mode"):
        trainer.train(0, 1)


def test_the_trainer_puts_the_model_in_training_mode():
    model = Scale().eval()
    SimpleTrainer(model, [], torch.optim.SGD(model.parameters(), lr=0.1))
    assert model.training


def test_end_of_data_ends_training_with_an_exception(caplog):
    log = []
    trainer = make_trainer(data=[1.0])
    trainer.register_hooks([Recorder(log)])
    with pytest.raises(StopIteration):
        trainer.train(0, 2)
    assert log[-1] == ("after_train", 1)
    assert "Exception during training" in caplog.text


def test_reset_data_loader():
    trainer = make_trainer(data=[1.0])
    trainer.train(0, 1)
    trainer.reset_data_loader(lambda: [4.0])
    trainer.train(1, 2)
    # w: 1 - 0.1 * 1 - 0.1 * 4
    assert trainer.model.w.item() == pytest.approx(0.5)
    assert trainer.data_loader == [4.0]


def test_write_metrics_prefix():
    with EventStorage(0) as storage:
        SimpleTrainer.write_metrics({"a": torch.tensor(1.0), "b": torch.tensor(3.0)}, 0.5, 7, "val_")
    assert storage.latest() == {
        "rank_data_time": (0.5, 7),
        "data_time": (0.5, 7),
        "val_total_loss": (4.0, 7),
        "a": (1.0, 7),
        "b": (3.0, 7),
    }


def test_a_trainer_base_has_no_step():
    trainer = TrainerBase()
    with pytest.raises(NotImplementedError):
        trainer.train(0, 1)


def test_an_empty_range_runs_no_step():
    trainer = make_trainer()
    trainer.train(3, 3)
    assert trainer.model.w.item() == 1.0
    assert trainer.iter == 4


class Counter(HookBase):
    def __init__(self, count=0):
        self.count = count

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_state_dict_round_trip(caplog):
    trainer = make_trainer()
    trainer.register_hooks([HookBase(), Counter(5), Counter(6)])
    trainer.train(0, 2)
    state = trainer.state_dict()
    assert state["iteration"] == 2
    assert state["hooks"] == {"Counter": {"count": 5}}  # the first of a class
    assert state["optimizer"]["param_groups"][0]["lr"] == 0.1

    other = make_trainer()
    hooks = [Counter(), Counter()]
    other.register_hooks(hooks)
    state["hooks"]["Gone"] = {"x": 1}
    state["optimizer"]["param_groups"][0]["lr"] = 0.25
    other.load_state_dict(state)
    assert other.iter == 2
    assert [hook.count for hook in hooks] == [5, 0]
    assert other.optimizer.param_groups[0]["lr"] == 0.25
    assert "Gone" in caplog.text


def test_no_hook_state_no_key():
    assert set(make_trainer().state_dict()) == {"iteration", "optimizer"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_amp_trainer_asks_for_cuda():
    model = Scale()
    trainer = AMPTrainer(model, [1.0], torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(AssertionError, match="CUDA"):
        trainer.train(0, 1)


def test_amp_trainer_refuses_data_parallel():
    model = nn.DataParallel(Scale())
    with pytest.raises(AssertionError, match="multi-device"):
        AMPTrainer(model, [1.0], torch.optim.SGD(model.parameters(), lr=0.1))


def test_amp_trainer_state_has_the_scaler():
    model = Scale()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    trainer = AMPTrainer(model, [1.0], torch.optim.SGD(model.parameters(), lr=0.1), grad_scaler=scaler)
    state = trainer.state_dict()
    assert state["grad_scaler"]["scale"] == 8.0
    state["grad_scaler"]["scale"] = 4.0
    trainer.load_state_dict(state)
    assert scaler.get_scale() == 4.0
    assert trainer.precision is torch.float16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_amp_trainer_on_cuda():
    model = Scale().cuda()
    scaler = torch.amp.GradScaler("cuda", init_scale=8.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = [torch.tensor(value).cuda() for value in (1.0, 2.0)]
    trainer = AMPTrainer(model, data, optimizer, grad_scaler=scaler, log_grad_scaler=True)
    trainer.train(0, 2)
    assert model.w.item() == pytest.approx(0.7, abs=1e-3)  # 1 - 0.1 - 0.2
    assert values(trainer, "[metric]grad_scaler") == [8.0, 8.0]


def test_public_paths():
    for name in ("HookBase", "TrainerBase", "SimpleTrainer", "AMPTrainer"):
        assert hasattr(public_train_loop, name)
