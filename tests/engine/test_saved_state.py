"""What a training goes on from: the state of any optimizer, and of which training a file is that does not fit."""

import copy

import pytest
import torch
from torch import nn

from sam_d2.engine.checkpoint import Checkpointer
from sam_d2.engine.trainer import Trainer
from sam_d2.errors import UserError


class Trusting(torch.optim.AdamW):
    """Keeps one more value of each parameter than its base."""

    def step(self, closure=None):
        super().step(closure)
        for state in self.state.values():
            state["trust"] = 0.5


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def forward(self, batch):
        return {"loss": self.layers(torch.stack(batch)).square().mean()}


def _clip_and_step(self, closure=None):
    nn.utils.clip_grad_value_([parameter for group in self.param_groups for parameter in group["params"]], 1.0)
    super(type(self), self).step(closure)


clipping = type("AdamWWithGradientClip", (torch.optim.AdamW,), {"step": _clip_and_step})
"""As Detectron2's maybe_add_gradient_clipping makes it."""


def training(kind, folder, trained="", amp_dtype=None, **options):
    model = TwoLayers()
    parameters = [value for name, value in model.named_parameters() if trained in name]
    data = torch.randn(8, 5, 3, generator=torch.Generator().manual_seed(1))
    trainer = Trainer(model, [list(batch) for batch in data], kind(parameters, **options), amp_dtype=amp_dtype)
    return trainer, Checkpointer(model, str(folder), trainer=trainer)


def saved_after_two(folder, kind=torch.optim.AdamW, change=lambda state: None, **options):
    trainer, checkpointer = training(kind, folder, **options)
    trainer.train(0, 2)
    checkpointer.save("model_0000001", iteration=1)
    file = folder / "model_0000001.pth"
    content = torch.load(file, weights_only=True)
    change(content["trainer"])
    torch.save(content, file)
    return trainer


def steps(trainer, start):
    """The weights after one more step, of the same batch for all."""
    trainer._data_loader_iter_obj = iter([list(torch.ones(5, 3))])
    trainer.train(start, start + 1)
    return copy.deepcopy(trainer.model.state_dict())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.AdamW, {}),
        (torch.optim.AdamW, {"amsgrad": True}),
        (torch.optim.AdamW, {"foreach": True}),
        (torch.optim.AdamW, {"fused": True}),
        (torch.optim.AdamW, {"lr": torch.tensor(0.1)}),
        (torch.optim.Adam, {}),
        (torch.optim.Adam, {"amsgrad": True}),
        (torch.optim.SGD, {}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.RMSprop, {}),
        (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
        (torch.optim.Adagrad, {}),
        (torch.optim.Adadelta, {}),
        (torch.optim.NAdam, {}),
        (Trusting, {}),
        (clipping, {}),
    ],
)
def test_any_optimizer_goes_on_as_if_it_had_not_stopped(kind, options, tmp_path):
    options = {"lr": 0.1, **options}
    before = saved_after_two(tmp_path, kind, **options)
    after, checkpointer = training(kind, tmp_path, **options)
    checkpointer.resume_or_load("")
    assert after.iter == 2
    torch.testing.assert_close(steps(after, 2), steps(before, 2), rtol=0, atol=0)


def test_a_rate_that_was_a_tensor(tmp_path):
    saved_after_two(tmp_path, lr=torch.tensor(0.1))
    after, checkpointer = training(torch.optim.AdamW, tmp_path, lr=0.1)
    checkpointer.resume_or_load("")
    steps(after, 2)
    assert float(after.optimizer.param_groups[0]["lr"]) == pytest.approx(0.1)


@pytest.mark.parametrize("rate", [torch.ones(2), torch.tensor(True), torch.tensor(1j), "0.1"], ids=str)
def test_a_rate_that_is_no_number(rate, tmp_path):
    saved_after_two(tmp_path, change=lambda state: state["optimizer"]["param_groups"][0].update(lr=rate))
    with pytest.raises(UserError, match=r"model_0000001\.pth: .*param_groups\.0\.lr is no number"):
        training(torch.optim.AdamW, tmp_path)[1].resume_or_load("")


@pytest.mark.parametrize(
    ("kind", "setting"),
    [(torch.optim.AdamW, "amsgrad"), (torch.optim.RMSprop, "centered"), (torch.optim.RMSprop, "momentum")],
)
def test_a_setting_that_needs_what_was_not_kept(kind, setting, tmp_path):
    saved_after_two(tmp_path, kind)
    with pytest.raises(UserError, match=rf"0001\.pth: {setting} of the optimizer was off.*\. Repeat the config"):
        training(kind, tmp_path, **{setting: True})[1].resume_or_load("")


def test_a_setting_that_is_switched_off(tmp_path):
    saved_after_two(tmp_path, amsgrad=True)
    after, checkpointer = training(torch.optim.AdamW, tmp_path)
    checkpointer.resume_or_load("")
    assert after.iter == 2
    after.optimizer.param_groups[0]["amsgrad"] = False  # as apply_options does
    before = copy.deepcopy(after.model.state_dict())
    steps(after, 2)
    assert all(not torch.equal(value, before[name]) for name, value in after.model.state_dict().items())


def test_a_file_that_lacks_what_its_own_setting_needs(tmp_path):
    saved_after_two(tmp_path, amsgrad=True, change=lambda state: state["optimizer"]["state"][2].pop("max_exp_avg_sq"))
    with pytest.raises(UserError, match=r"of parameter 2 it lacks max_exp_avg_sq.* Either it was trained .* damaged"):
        training(torch.optim.AdamW, tmp_path, amsgrad=True)[1].resume_or_load("")


@pytest.mark.parametrize("kind", [torch.optim.AdamW, clipping])
def test_a_moment_that_is_none(kind, tmp_path):
    saved_after_two(tmp_path, kind, change=lambda state: state["optimizer"]["state"][0].update(exp_avg=[0.0]))
    with pytest.raises(UserError, match=r"of parameter 0 exp_avg is no tensor of \(4, 3\)"):
        training(kind, tmp_path)[1].resume_or_load("")


def test_other_parameters_than_in_the_file(tmp_path):
    saved_after_two(tmp_path)
    with pytest.raises(UserError) as caught:
        training(torch.optim.AdamW, tmp_path, trained="layers.2")[1].resume_or_load("")
    # of two layers the weight and bias each, and of the second alone
    assert str(caught.value) == (
        f"{tmp_path / 'model_0000001.pth'}: other parameters are trained than in this file: its optimizer has 4 in 1 "
        "group, that of the config 2 in 1 group. Repeat the config that it was trained with (config.yaml beside "
        "it, or its command line), or begin another run with --output-dir DIR."
    )


def test_another_optimizer_than_in_the_file(tmp_path):
    saved_after_two(tmp_path, torch.optim.SGD, momentum=0.9)
    with pytest.raises(UserError, match=r"lacks exp_avg.*Either it was trained with another config: repeat that one"):
        training(torch.optim.AdamW, tmp_path)[1].resume_or_load("")


def test_a_checkpoint_without_a_scaler_goes_on_in_float16(tmp_path):
    """Detectron2's trainer without AMP saves none."""
    saved_after_two(tmp_path, change=lambda state: state.pop("grad_scaler"))
    after, checkpointer = training(torch.optim.AdamW, tmp_path, amp_dtype=torch.float16)
    assert after.grad_scaler.is_enabled()
    scale = after.grad_scaler.get_scale()
    checkpointer.resume_or_load("")
    assert after.iter == 2 and after.grad_scaler.get_scale() == scale


def test_a_value_that_only_another_torch_keeps(tmp_path):
    saved_after_two(tmp_path, change=lambda state: state["optimizer"]["state"][0].update(scale=[1.0]))
    after, checkpointer = training(torch.optim.AdamW, tmp_path)
    checkpointer.resume_or_load("")
    steps(after, 2)
    assert after.optimizer.state_dict()["state"][0]["scale"] == [1.0], "kept for the torch that knows it"
