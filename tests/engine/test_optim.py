"""What decays and what does not."""

from pathlib import Path

import pytest
import torch
from torch import nn

from detectron2.config import instantiate
from sam_d2.config import apply_overrides, load_config
from sam_d2.engine.optim import parameter_groups

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


def test_a_model_that_names_nothing_and_groups_that_are_empty():
    linear = nn.Linear(2, 3, bias=False)
    assert parameter_groups(linear, 0.1) == [{"params": [linear.weight], "weight_decay": 0.1}]
    assert parameter_groups(nn.LayerNorm(2), 0.1)[0]["weight_decay"] == 0.0
    assert parameter_groups(linear.requires_grad_(False), 0.1) == []


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
