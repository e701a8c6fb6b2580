import math

import pytest
import torch
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler
from torch import nn

from detectron2.solver import LRMultiplier, WarmupParamScheduler, get_default_optimizer_params
from detectron2.solver.build import reduce_param_groups


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.norm = nn.LayerNorm(2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.again = self.conv
        self.pos_embed = nn.Parameter(torch.zeros(3))


def settings(groups, net):
    """From parameter name to the values of its group."""
    names = {parameter: name for name, parameter in net.named_parameters()}
    return {
        names[parameter]: {key: value for key, value in group.items() if key != "params"}
        for group in groups
        for parameter in group["params"]
    }


class TestParameterGroups:
    def test_without_settings_there_is_one_group_of_what_trains(self):
        net = Net()
        (group,) = get_default_optimizer_params(net)
        assert set(group) == {"params"}
        # a module's own parameters come before those of its children
        expected = [net.pos_embed, net.conv.weight, net.conv.bias, net.norm.weight, net.norm.bias]
        assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in expected]

    def test_norm_bias_and_overrides(self):
        net = Net()
        overrides = {"pos_embed": {"weight_decay": 0.3, "lr": 9.0}}
        groups = get_default_optimizer_params(
            net,
            base_lr=1.0,
            weight_decay=0.1,
            weight_decay_norm=0.0,
            bias_lr_factor=2.0,
            weight_decay_bias=0.2,
            overrides=overrides,
        )
        assert settings(groups, net) == {
            "pos_embed": {"lr": 9.0, "weight_decay": 0.3},
            "conv.weight": {"lr": 1.0, "weight_decay": 0.1},
            "conv.bias": {"lr": 2.0, "weight_decay": 0.2},
            "norm.weight": {"lr": 1.0, "weight_decay": 0.0},
            "norm.bias": {"lr": 2.0, "weight_decay": 0.2},  # the name "bias" comes after the kind of layer
        }
        assert len(groups) == 4

    def test_factors_by_full_name(self):
        net = Net()
        groups = get_default_optimizer_params(
            net, base_lr=2.0, lr_factor_func=lambda name: 0.5 if name.startswith("conv.") else 1.0
        )
        rates = {name: values["lr"] for name, values in settings(groups, net).items()}
        assert rates == {
            "pos_embed": 2.0,
            "conv.weight": 1.0,
            "conv.bias": 1.0,
            "norm.weight": 2.0,
            "norm.bias": 2.0,
        }

    def test_contradictions(self):
        with pytest.raises(ValueError, match="base_lr"):
            get_default_optimizer_params(Net(), bias_lr_factor=2.0)
        with pytest.raises(ValueError, match="base_lr"):
            get_default_optimizer_params(Net(), lr_factor_func=lambda name: 1.0)
        with pytest.raises(ValueError, match="bias"):
            get_default_optimizer_params(Net(), weight_decay_bias=0.0, overrides={"bias": {"lr": 1.0}})

    def test_groups_with_equal_values_are_joined(self):
        assert reduce_param_groups(
            [
                {"params": ["a", "b"], "lr": 1.0},
                {"params": ["c"], "lr": 2.0},
                {"params": ["b"], "lr": 2.0},
                {"params": ["d"], "lr": 1.0},
            ]
        ) == [{"lr": 1.0, "params": ["a", "d"]}, {"lr": 2.0, "params": ["b", "c"]}]

    def test_names_go_with_the_parameters(self):
        assert reduce_param_groups(
            [
                {"params": ["a"], "param_names": ["n_a"], "lr": 1.0},
                {"params": ["b", "c"], "param_names": ["n_b", "n_c"], "lr": 1.0},
            ]
        ) == [{"lr": 1.0, "params": ["a", "b", "c"], "param_names": ["n_a", "n_b", "n_c"]}]


def rates(multiplier, iterations, lrs=(5.0,)):
    """Learning rate of the first group at each iteration, the first included."""
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs])
    schedule = LRMultiplier(optimizer, multiplier, max_iter=iterations)
    result = [optimizer.param_groups[0]["lr"]]
    for _ in range(iterations - 1):
        optimizer.step()
        schedule.step()
        result.append(optimizer.param_groups[0]["lr"])
    return result


class TestSchedules:
    def test_steps_with_a_linear_warmup(self):
        steps = MultiStepParamScheduler([1, 0.1], milestones=[20], num_updates=30)
        values = rates(WarmupParamScheduler(steps, 0.2, 5 / 30), 30)
        # from 0.2 * 5 = 1 to 5 in 5 iterations: 0.8 more in each
        assert values[:7] == pytest.approx([1.0, 1.8, 2.6, 3.4, 4.2, 5.0, 5.0])
        assert values[19:21] == pytest.approx([5.0, 0.5]) and values[-1] == pytest.approx(0.5)

    def test_a_constant_warmup_hides_the_beginning(self):
        cosine = CosineParamScheduler(1, 0)
        values = rates(WarmupParamScheduler(cosine, 0.1, 0.2, "constant"), 10)
        assert values[:2] == pytest.approx([0.5, 0.5])
        assert values[2:] == pytest.approx([2.5 * (1 + math.cos(math.pi * i / 10)) for i in range(2, 10)])

    def test_a_linear_warmup_ends_where_the_schedule_then_is(self):
        end = 0.5 * (1 + math.cos(0.2 * math.pi))
        scheduler = WarmupParamScheduler(CosineParamScheduler(1, 0), 0.1, 0.2)
        assert scheduler(0.1) == pytest.approx((0.1 + end) / 2) and scheduler(0.2) == pytest.approx(end)

    def test_a_rescaled_schedule_begins_after_the_warmup(self):
        scheduler = WarmupParamScheduler(CosineParamScheduler(1, 0), 0.0, 0.5, rescale_interval=True)
        # half of the training is warm-up, so at 3/4 the cosine is at its middle
        assert [scheduler(where) for where in (0.0, 0.25, 0.5, 0.75)] == pytest.approx([0, 0.5, 1, 0.5])

    def test_groups_keep_their_ratio_and_the_state_is_small(self):
        optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 10.0)])
        schedule = LRMultiplier(optimizer, CosineParamScheduler(1, 0), max_iter=4)
        optimizer.step()
        schedule.step()
        one, ten = schedule.get_last_lr()
        assert one == pytest.approx(0.5 * (1 + math.cos(math.pi / 4))) and ten == pytest.approx(10 * one)
        assert schedule.state_dict() == {"base_lrs": [1.0, 10.0], "last_epoch": 1}
        resumed = LRMultiplier(optimizer, CosineParamScheduler(1, 0), max_iter=4)
        resumed.load_state_dict(schedule.state_dict())
        assert resumed.last_epoch == 1 and resumed.get_lr() == pytest.approx([one, ten])

    def test_errors(self):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        with pytest.raises(ValueError):
            LRMultiplier(optimizer, lambda where: 1.0, max_iter=4)
        with pytest.raises(ValueError, match="cubic"):
            WarmupParamScheduler(CosineParamScheduler(1, 0), 0.1, 0.1, "cubic")
