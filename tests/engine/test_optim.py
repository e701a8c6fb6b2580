"""What decays and what does not, and how fast each part learns."""

from pathlib import Path

import pytest
import torch
from torch import nn

from detectron2.config import instantiate
from detectron2.solver import LRMultiplier
from sam_d2.config import apply_overrides, load_config
from sam_d2.engine.optim import build_optimizer, parameter_groups
from sam_d2.errors import UserError

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "sam_tiny.py"


class Scale2d(nn.Module):
    """A norm of nobody's class, as SAM's LayerNorm2d is."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.norm = nn.LayerNorm([2, 2])
        self.table = nn.Embedding(4, 2)
        self.scale = Scale2d()
        self.conv = nn.Conv2d(1, 1, 3)
        self.token = nn.Parameter(torch.zeros(1, 1, 2))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def no_weight_decay(self):
        return {"token"}


def names(model, group):
    return [name for name, p in model.named_parameters() if any(p is other for other in group["params"])]


def test_biases_norms_embeddings_and_named_parameters_do_not_decay():
    model = Model()
    decayed, kept = parameter_groups(model, 0.3)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    assert names(model, decayed) == ["linear.weight", "conv.weight"]
    # also norm.weight, of two dimensions
    expected = {"token", "linear.bias", "norm.weight", "norm.bias", "table.weight", "scale.weight", "conv.bias"}
    assert set(names(model, kept)) == expected


def test_a_model_that_names_nothing_groups_that_are_empty_and_nothing_at_all():
    linear = nn.Linear(2, 3, bias=False)
    assert parameter_groups(linear, 0.1) == [{"params": [linear.weight], "weight_decay": 0.1}]
    assert parameter_groups(nn.LayerNorm(2), 0.1)[0]["weight_decay"] == 0.0
    with pytest.raises(UserError, match=r"no parameter to train\. Take a part out of model\.freeze"):
        parameter_groups(linear.requires_grad_(False), 0.1)


def test_a_weight_that_two_modules_share_is_in_one_group_once():
    model = nn.ModuleDict({"first": nn.Linear(2, 3), "second": nn.Linear(2, 3), "table": nn.Embedding(3, 2)})
    model["second"].weight = model["table"].weight = model["first"].weight
    decayed, kept = parameter_groups(model, 0.3, lr=0.5, lr_factors={"second": 0.1})[:2]
    assert names(model, decayed) == ["first.weight"] and names(model, kept) == ["first.bias"]
    torch.optim.AdamW(parameter_groups(model, 0.3), lr=1e-3)  # refuses one that is in two


@pytest.mark.parametrize("freeze", ["[]", "[image_encoder,prompt_encoder]"])
def test_every_trainable_parameter_of_sam_is_in_one_group_once(tiny_overrides, freeze):
    cfg = apply_overrides(
        load_config(CONFIG),
        [*tiny_overrides, f"model.freeze={freeze}"],
    )
    model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    trainable = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    assert sorted(grouped) == sorted(trainable)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    assert any(name.startswith("image_encoder") for name in trainable.values()) == (freeze == "[]")


class TestBuildOptimizer:
    def config(self, **options):
        cfg = load_config(CONFIG).optimizer
        cfg.update(options)
        return cfg

    def test_of_the_model(self):
        model = Model()
        optimizer = build_optimizer(self.config(), model)
        assert type(optimizer) is torch.optim.AdamW and optimizer.defaults["lr"] == 2e-3
        assert names(model, optimizer.param_groups[0]) == ["linear.weight", "conv.weight"]

    @pytest.mark.parametrize(
        ("options", "reason"), [({"eps": -1.0}, "Invalid epsilon value: -1.0"), ({"momentum": 0.9}, "'momentum'")]
    )
    def test_a_setting_that_it_refuses(self, options, reason):
        with pytest.raises(UserError, match=r"^optimizer: it cannot be built with these settings \(") as caught:
            build_optimizer(self.config(**options), Model())
        assert reason in str(caught.value) and "\n" not in str(caught.value)


class TestLearningRatesPerPart:
    def rates(self, model, **options):
        groups = parameter_groups(model, 0.3, **options)
        return {name: (group["lr"], group["weight_decay"]) for group in groups for name in names(model, group)}, groups

    def test_the_longest_name_that_fits_wins(self):
        model = nn.ModuleDict(
            {"encoder": nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), "encoder_2": nn.Linear(2, 2)}
        )
        rates, groups = self.rates(model, lr=0.5, lr_factors={"encoder": 0.1, "encoder.1": 4})
        assert {name: rate for name, (rate, _) in rates.items()} == pytest.approx(
            {
                "encoder.0.weight": 0.05,
                "encoder.0.bias": 0.05,
                "encoder.1.weight": 2.0,
                "encoder.1.bias": 2.0,
                "encoder_2.weight": 0.5,  # its name begins with encoder, but it is not in it
                "encoder_2.bias": 0.5,
            }
        )
        assert {decay for name, (_, decay) in rates.items() if name.endswith("bias")} == {0.0}
        assert len(groups) == 6

    def test_without_factors_the_optimizer_has_the_rate(self):
        assert all("lr" not in group for group in parameter_groups(Model(), 0.3, lr=0.5))

    @pytest.mark.parametrize(
        ("factors", "match"),
        [
            ({"encoder": 0.1}, r"no parameters in 'encoder' \(it has linear, norm"),
            ({"lin": 0.1}, "no parameters in 'lin'"),
            ({"linear": 0.1, "frozen": 0.1}, "all parameters in 'frozen' are frozen. .* out of model.freeze"),
            ({"frozen.bias": 0.1}, "all parameters in 'frozen.bias' are frozen"),
            ({"linear": 0}, "linear has 0, not a positive number"),
            ({"linear": float("nan")}, "not a positive number"),
            ({"linear": "fast"}, "'fast', not a positive number"),
        ],
    )
    def test_refusals(self, factors, match):
        with pytest.raises(UserError, match=match):
            parameter_groups(Model(), 0.3, lr=0.5, lr_factors=factors)

    def test_the_schedule_multiplies_each_rate(self, tiny_overrides):
        options = ["model.freeze=[]", "optimizer.lr=0.01"]
        options += ["optimizer.params.lr_factors={image_encoder:0.1,mask_decoder.transformer:0.5}"]
        cfg = apply_overrides(load_config(CONFIG), [*tiny_overrides, *options])
        cfg.optimizer.params.model = instantiate(cfg.model)
        optimizer = instantiate(cfg.optimizer)
        schedule = LRMultiplier(optimizer, instantiate(cfg.lr_multiplier), 100)
        first = [group["lr"] for group in optimizer.param_groups]
        # warm from a hundredth: factors 1, 0.5 and 0.1, each of what decays and what does not
        assert first == pytest.approx([1e-4, 1e-4, 5e-5, 5e-5, 1e-5, 1e-5])
        for _ in range(50):
            optimizer.step()
            schedule.step()
        later = [group["lr"] for group in optimizer.param_groups]
        assert later == pytest.approx([later[0] * rate / first[0] for rate in first])
        assert later[0] > first[0]
