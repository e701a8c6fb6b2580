"""Cases of detectron2.solver: schedules of the learning rate and groups of parameters."""

import itertools
import warnings

import torch
from answers import Approx
from fvcore.common.param_scheduler import (
    ConstantParamScheduler,
    CosineParamScheduler,
    ExponentialParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    StepParamScheduler,
    StepWithFixedGammaParamScheduler,
)
from inputs import raised
from torch import nn

from detectron2.solver import LRMultiplier, WarmupParamScheduler, get_default_optimizer_params
from detectron2.solver.build import reduce_param_groups

STEPS = 60
SCHEDULES = {
    "cosine": lambda: CosineParamScheduler(1.0, 0.0),
    "cosine_to_a_hundredth": lambda: CosineParamScheduler(1.0, 0.01),
    "multistep": lambda: MultiStepParamScheduler([1.0, 0.1, 0.01], milestones=[30, 50], num_updates=STEPS),
    "multistep_by_milestones": lambda: MultiStepParamScheduler([2.0, 1.0, 0.5], milestones=[7, 20, 59]),
    "fixed_gamma": lambda: StepWithFixedGammaParamScheduler(1.0, num_decays=4, gamma=0.3, num_updates=STEPS),
    "step": lambda: StepParamScheduler(STEPS, [1.0, 0.5, 0.1]),
    "constant": lambda: ConstantParamScheduler(0.7),
    "linear": lambda: LinearParamScheduler(1.0, 0.0),
    "exponential": lambda: ExponentialParamScheduler(2.0, 0.1),
}
WARMUPS = {
    "linear": (0.001, 0.2, "linear"),
    "linear_rescaled": (0.01, 0.35, "linear", True),
    "constant": (0.1, 0.15, "constant"),
    "constant_rescaled": (0.1, 0.15, "constant", True),
    "one_step": (0.5, 1 / STEPS),
    "none": (0.5, 0.0),
    "all": (0.5, 1.0),
}


def optimizer_of(*rates, momentum=0.0):
    groups = [{"params": [nn.Parameter(torch.ones(2))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=1.0, momentum=momentum)


def rates_of(scheduler, optimizer, steps):
    """A list of rates for each group: at the start and after each step."""
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    found.append([group["lr"] for group in optimizer.param_groups])
    return [exactly(list(rates)) for rates in zip(*found, strict=True)]


def exactly(rates):
    """Rates to 12 digits: sine and power may differ in the last one between machines."""
    return Approx(rates, rtol=1e-12, atol=1e-15)


def case_schedules():
    found = {}
    for name, make in SCHEDULES.items():
        optimizer = optimizer_of(0.3, 2e-5)
        found[name] = rates_of(LRMultiplier(optimizer, make(), STEPS), optimizer, STEPS - 1)
    return found


def case_warmup():
    """Every schedule after every warm-up, by rate and by value."""
    found = {}
    for (name, make), (kind, options) in itertools.product(SCHEDULES.items(), WARMUPS.items()):
        try:
            schedule = WarmupParamScheduler(make(), *options)
            optimizer = optimizer_of(0.1)
            found[f"{name} {kind}"] = rates_of(LRMultiplier(optimizer, schedule, STEPS), optimizer, STEPS - 1)
        except Exception as error:
            found[f"{name} {kind}"] = type(error).__name__
    return found


def case_schedule_ends():
    """At the last step and beyond: the same values or the same error."""
    found = {}
    for name, make in SCHEDULES.items():
        for steps in (STEPS, STEPS + 3):
            optimizer = optimizer_of(0.1)
            scheduler = LRMultiplier(optimizer, WarmupParamScheduler(make(), 0.1, 0.2), STEPS)
            try:
                found[f"{name} {steps}"] = rates_of(scheduler, optimizer, steps)
            except Exception as error:
                found[f"{name} {steps}"] = type(error).__name__
    return found


def case_resumed_schedule():
    """State, and the rates after it is loaded or after a start in the middle."""
    make = SCHEDULES["cosine"]
    optimizer = optimizer_of(0.3, 0.1)
    scheduler = LRMultiplier(optimizer, WarmupParamScheduler(make(), 0.01, 0.5), STEPS)
    rates_of(scheduler, optimizer, 17)
    state = scheduler.state_dict()

    other = optimizer_of(0.3, 0.1)
    loaded = LRMultiplier(other, WarmupParamScheduler(make(), 0.01, 0.5), STEPS)
    loaded.load_state_dict(state)

    middle = optimizer_of(0.3, 0.1)
    for group in middle.param_groups:
        group["initial_lr"] = group["lr"]
    continued = LRMultiplier(middle, WarmupParamScheduler(make(), 0.01, 0.5), STEPS, last_iter=16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "state": {name: exactly(value) for name, value in state.items()},
            "order": list(state),
            "loaded": rates_of(loaded, other, 20),
            "continued": rates_of(continued, middle, 20),
            "last": exactly(continued.get_last_lr()),
            "rates": exactly(continued.get_lr()),
        }


def case_solver_errors():
    return {
        "warmup": raised(lambda: WarmupParamScheduler(CosineParamScheduler(1, 0), 0.1, 0.1, "exponential")),
        "longer_than_all": raised(lambda: WarmupParamScheduler(CosineParamScheduler(1, 0), 0.1, 1.5)),
        "not_a_schedule": raised(lambda: LRMultiplier(optimizer_of(0.1), lambda where: where, 10)),
        "no_initial_rate": raised(lambda: LRMultiplier(optimizer_of(0.1), CosineParamScheduler(1, 0), 10, 5)),
        "bias": raised(lambda: get_default_optimizer_params(Mixed(), bias_lr_factor=2.0)),
        "factor": raised(lambda: get_default_optimizer_params(Mixed(), lr_factor_func=len)),
        "conflict": raised(
            lambda: get_default_optimizer_params(Mixed(), weight_decay_bias=0.0, overrides={"bias": {"lr": 1.0}})
        ),
    }


class Mixed(nn.Module):
    """Every kind of parameter that is treated on its own: norm, bias, named, frozen, shared."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 4))
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True)
        )
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 4)
        self.tail = nn.Linear(4, 4)
        self.tail.weight = self.head.weight
        self.frozen = nn.Linear(4, 4)
        self.frozen.requires_grad_(False)


def named(model, groups):
    """Groups with the parameters' names in their place."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [{**group, "params": [names[id(parameter)] for parameter in group["params"]]} for group in groups]


def decay_by_depth(name):
    return 0.5 if name.startswith("body") else 1.0 if "norm" not in name else 0.25


def case_parameter_groups():
    options = {
        "plain": {},
        "rate": {"base_lr": 0.1},
        "decay": {"weight_decay": 0.01},
        "norm": {"weight_decay_norm": 0.0},
        "norm_and_decay": {"base_lr": 0.1, "weight_decay": 0.05, "weight_decay_norm": 0.0},
        "bias": {"base_lr": 0.1, "bias_lr_factor": 2.0, "weight_decay_bias": 0.0, "weight_decay_norm": 0.3},
        "bias_decay": {"weight_decay_bias": 0.0},
        "bias_factor_none": {"bias_lr_factor": None, "weight_decay": 0.1},
        "factors": {"base_lr": 0.1, "lr_factor_func": decay_by_depth},
        "overrides": {"overrides": {"position": {"weight_decay": 0.0}}},
        "overrides_last": {
            "base_lr": 0.1,
            "weight_decay": 0.05,
            "weight_decay_norm": 0.0,
            "lr_factor_func": decay_by_depth,
            "overrides": {"position": {"weight_decay": 0.0, "lr": 0.7}, "bias": {"weight_decay": 0.3}},
        },
    }
    found = {}
    for name, option in options.items():
        model = Mixed()
        groups = get_default_optimizer_params(model, **option)
        found[name] = [[list(group) for group in groups], named(model, groups)]
        optimizer = torch.optim.AdamW(groups, lr=0.001)
        found[f"{name} in the optimizer"] = [[group["lr"], group["weight_decay"]] for group in optimizer.param_groups]
    return found


def case_names_given_to_factors():
    names = []
    get_default_optimizer_params(Mixed(), base_lr=1.0, lr_factor_func=lambda name: names.append(name) or 1.0)
    return {"names": names}


def case_reduced_groups():
    model = nn.ModuleDict({name: nn.Linear(1, 1, bias=False) for name in "abcd"})
    a, b, c, d = model.parameters()
    given = {
        "later_wins": [{"params": [a, b, c], "lr": 0.1}, {"params": [c, d], "lr": 0.2}, {"params": [a], "decay": 1}],
        "joined": [{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.2}, {"params": [c, d], "lr": 0.1}],
        "order_of_values": [{"params": [a], "x": 1, "y": 2}, {"params": [b], "y": 2, "x": 1}],
        "names": [
            {"params": [a, b], "param_names": ["A", "B"], "lr": 0.1},
            {"params": [c], "param_names": ["C"], "lr": 0.2},
            {"params": [d], "param_names": ["D"], "lr": 0.1},
        ],
        "nothing": [],
    }
    return {name: named(model, reduce_param_groups(groups)) for name, groups in given.items()}
