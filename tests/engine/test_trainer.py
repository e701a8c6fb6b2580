"""The training step against the same step written out, and what stops it."""

import itertools
import logging

import pytest
import torch
from torch import nn

from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from sam_d2.engine.trainer import Trainer
from sam_d2.errors import UserError


class TwoLosses(nn.Module):
    """Two layers; the losses are the mean square and a tenth of the mean of the output."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))

    def forward(self, batch):
        output = self.layers(torch.stack(batch))
        self.output_dtype = output.dtype
        return {"loss_square": output.square().mean(), "loss_mean": 0.1 * output.mean()}


def batches(count=4):
    return list(torch.randn(count, 5, 6, generator=torch.Generator().manual_seed(1)).unbind())


def optimizer_of(model):
    return torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)


def make_trainer(data=None, **options):
    model = TwoLosses()
    return Trainer(model, [list(batch) for batch in data or batches()], optimizer_of(model), **options)


def by_hand(steps, clip=None, amp_dtype=None):
    """The weights after steps written out in plain torch, and the norm of each step's gradient."""
    model = TwoLosses()
    optimizer = optimizer_of(model)
    norms = []
    for batch in batches()[:steps]:
        with torch.autocast("cpu", dtype=amp_dtype, enabled=amp_dtype is not None):
            losses = model(list(batch))
            total = losses["loss_square"] + losses["loss_mean"]
        optimizer.zero_grad()
        total.backward()
        norms.append(torch.stack([p.grad.norm() for p in model.parameters()]).norm().item())
        if clip is not None:
            for parameter in model.parameters():
                parameter.grad *= min(1.0, clip / (norms[-1] + 1e-6))
        optimizer.step()
    return model.state_dict(), norms


def assert_same_weights(model, expected, **tolerance):
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[name], **(tolerance or {"rtol": 0, "atol": 0}))


class Counts(HookBase):
    def after_train(self):
        self.seen = (self.trainer.iter, get_event_storage().iter)


@pytest.mark.parametrize(("start", "end", "done"), [(0, 2, 2), (2, 2, 2), (2, 3, 3), (3, 2, 3)])
def test_iter_is_the_steps_done_also_where_none_is_left(start, end, done):
    trainer = make_trainer()
    trainer.register_hooks([counts := Counts()])
    trainer.train(start, end)
    assert trainer.iter == done and counts.seen == (done, done)


def test_steps_equal_those_written_out_bit_for_bit():
    trainer = make_trainer()
    trainer.train(0, 3)
    assert_same_weights(trainer.model, by_hand(3)[0])


def test_it_stores_losses_and_the_images_of_all_processes(monkeypatch):
    trainer = make_trainer()
    stored = []
    hook = HookBase()
    hook.after_step = lambda: stored.append({name: value for name, (value, _) in get_event_storage().latest().items()})
    trainer.register_hooks([hook])
    with torch.no_grad():
        expected = TwoLosses()(list(batches()[0]))
    trainer.train(0, 1)
    assert stored[0]["loss_square"] == pytest.approx(expected["loss_square"].item(), abs=0)
    assert stored[0]["total_loss"] == pytest.approx(sum(expected.values()).item(), rel=1e-6)
    assert stored[0]["images"] == 5
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    monkeypatch.setattr(comm, "gather", lambda value: [value])
    monkeypatch.setattr(comm, "synchronize", lambda: None)
    again = make_trainer()
    again.register_hooks([hook])
    again.train(0, 1)
    assert stored[1]["images"] == 15


def test_gradient_clipping():
    limit = min(by_hand(3)[1]) / 2  # every step is clipped
    expected, norms = by_hand(3, clip=limit)
    assert all(norm > limit for norm in norms)
    trainer = make_trainer(clip_gradient_norm=limit)
    seen = []
    hook = HookBase()
    hook.after_backward = lambda: seen.append(
        torch.stack([p.grad.norm() for p in trainer.model.parameters()]).norm().item()
    )
    trainer.register_hooks([hook])
    trainer.train(0, 3)
    assert seen == pytest.approx([limit] * 3, rel=1e-4)
    assert_same_weights(trainer.model, expected, rtol=1e-4, atol=1e-6)
    unclipped = make_trainer(clip_gradient_norm=max(norms) * 100)
    unclipped.train(0, 3)
    assert_same_weights(unclipped.model, by_hand(3)[0])


@pytest.mark.parametrize("limit", [-1.0, 0, float("nan")])
def test_a_limit_that_would_turn_gradients_round_is_refused(limit):
    with pytest.raises(UserError, match=r"train\.clip_gradient_norm=.*: expected more than 0"):
        make_trainer(clip_gradient_norm=limit)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_loss_ends_training_before_it_reaches_the_weights(bad):
    data = batches()
    data[1] = data[1] * bad
    trainer = make_trainer(data)
    with pytest.raises(UserError) as caught:
        trainer.train(0, 3)
    # the second step of rate 0.05; weights of either sign turn infinite pixels into inf - inf
    assert str(caught.value).startswith("The loss of step 2 is not finite (loss_square nan, loss_mean nan)")
    assert "lower optimizer.lr (the rate of this step is 0.05), or clip gradients" in str(caught.value)
    assert str(caught.value).endswith("no checkpoint to go on from yet.")
    assert_same_weights(trainer.model, by_hand(1)[0])
    state = trainer.optimizer.state_dict()["state"]
    assert {int(entry["step"]) for entry in state.values()} == {1}


def test_a_model_that_gives_up_by_itself_is_answered_alike():
    """Detectron2's region proposals raise this before there is any loss."""
    trainer = make_trainer()

    def diverged(batch):
        raise FloatingPointError("Predicted boxes or scores contain Inf/NaN. Training has diverged.")

    trainer.model.forward = diverged
    with pytest.raises(UserError, match=r"step 1 is not finite \(the region proposals .*lower optimizer\.lr"):
        trainer.train(0, 2)


def test_bfloat16_autocast_on_the_cpu():
    trainer = make_trainer(amp_dtype=torch.bfloat16)
    trainer.train(0, 3)
    assert trainer.model.output_dtype == torch.bfloat16
    assert not trainer.grad_scaler.is_enabled()  # bfloat16 has float32's exponent: nothing underflows
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    expected, _ = by_hand(3, amp_dtype=torch.bfloat16)
    assert_same_weights(trainer.model, expected)
    assert not torch.equal(expected["layers.0.weight"], by_hand(3)[0]["layers.0.weight"])


class Faint(TwoLosses):
    """Its gradients are a ten-millionth of those: below the smallest number of float16, 6e-8, for most activations."""

    def forward(self, batch):
        return {name: 1e-7 * loss.float() for name, loss in super().forward(batch).items()}


def faint_gradients(amp_dtype):
    model = Faint()
    trainer = Trainer(model, [list(batches()[0])], optimizer_of(model), amp_dtype=amp_dtype)
    found = {}
    hook = HookBase()
    hook.after_backward = lambda: found.update(
        {name: p.grad / trainer.grad_scaler.get_scale() for name, p in model.named_parameters()}
    )
    trainer.register_hooks([hook])
    trainer.train(0, 1)
    return found


def test_float16_gradients_do_not_vanish_on_the_cpu():
    full, half = faint_gradients(None), faint_gradients(torch.float16)
    for name, gradient in full.items():
        largest = gradient.abs().max().item()
        assert largest > 0
        torch.testing.assert_close(half[name], gradient, rtol=0, atol=0.05 * largest)


@pytest.mark.parametrize(("before", "after"), [(None, torch.float16), (torch.float16, torch.bfloat16)])
def test_a_resume_may_change_the_precision(before, after):
    first = make_trainer(amp_dtype=before)
    first.train(0, 2)
    second = make_trainer(batches()[2:], amp_dtype=after)
    second.load_state_dict(first.state_dict())
    second.train(2, 4)
    assert second.grad_scaler.is_enabled() == (after == torch.float16)
    assert all(p.isfinite().all() for p in second.model.parameters())


def test_its_state_goes_on_where_it_was():
    whole = make_trainer()
    whole.train(0, 4)
    first = make_trainer()
    first.train(0, 2)
    state, weights = first.state_dict(), first.model.state_dict()
    assert state.keys() >= {"iteration", "optimizer", "grad_scaler"}
    second = make_trainer(batches()[2:])
    second.model.load_state_dict(weights)
    second.load_state_dict(state)
    second.train(2, 4)
    assert_same_weights(second.model, whole.model.state_dict())


class TestDropout:
    """What a model draws by itself is a function of seed, step and process, whatever was drawn before."""

    def trainer(self, start=0, **options):
        trainer = make_trainer(batches(8)[2 * start :], accumulate=2, **options)
        trainer.model.layers.insert(1, nn.Dropout(0.5))
        return trainer

    def test_a_resume_is_exact(self):
        torch.manual_seed(5)
        whole = self.trainer()
        whole.train(0, 4)
        first = self.trainer()
        first.train(0, 2)
        second = self.trainer(start=2)
        second.model.load_state_dict(first.model.state_dict())
        second.load_state_dict(first.state_dict())
        torch.manual_seed(99)  # another process has drawn something else by then
        second.train(2, 4)
        assert_same_weights(second.model, whole.model.state_dict())

    def test_steps_batches_processes_and_seeds_differ(self, monkeypatch):
        drawn = []

        def draws(rank=0, **options):
            monkeypatch.setattr(comm, "get_rank", lambda: rank)
            trainer = self.trainer(**options)
            found = []
            trainer.model.layers[1].register_forward_hook(lambda *_: found.append(torch.rand(1).item()))
            trainer.train(0, 2)
            drawn.extend(found)
            return found

        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        monkeypatch.setattr(comm, "gather", lambda value: [value])
        monkeypatch.setattr(comm, "synchronize", lambda: None)
        draws()
        draws(seed=1)
        draws(rank=1)
        # 2 steps of 2 batches of 3 trainings
        assert len(drawn) == len(set(drawn)) == 12


class TestErrors:
    """What a step raises passes through; the log has a traceback for faults of ours only."""

    @pytest.fixture(autouse=True)
    def visible_log(self, monkeypatch, caplog):
        monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
        caplog.set_level(logging.INFO)

    def failing(self, error):
        def data():
            yield list(batches()[0])
            raise error

        return Trainer(model := TwoLosses(), data(), optimizer_of(model))

    @pytest.mark.parametrize(
        ("error", "in_log"),
        [
            (UserError("a.png: no such image file."), False),
            (RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer"), False),
            (ZeroDivisionError("x"), True),
        ],
    )
    def test_traceback(self, caplog, error, in_log):
        for _ in range(2):  # the second run: nothing of the first is left on the logger
            caplog.clear()
            with pytest.raises(type(error)) as caught:
                self.failing(error).train(0, 3)
            assert caught.value is error
            assert any(record.exc_info for record in caplog.records) == in_log
            assert any("Starting training" in record.getMessage() for record in caplog.records)


def test_a_users_message_survives_the_way_from_a_worker():
    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            try:
                raise KeyError("inner")
            except KeyError as error:
                raise UserError("a.png: two lines\nof text.") from error

    data = torch.utils.data.DataLoader(Broken(), num_workers=1)
    with pytest.raises(UserError) as caught:
        list(itertools.islice(data, 1))
    assert str(caught.value) == "a.png: two lines\nof text."
    assert str(UserError("Caught no fish")) == "Caught no fish"
