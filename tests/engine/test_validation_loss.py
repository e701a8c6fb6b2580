"""The loss on the test images: which number it is, and that it leaves no trace."""

import json
import random

import numpy as np
import pytest
import torch

from detectron2.config import instantiate
from sam_d2.config import apply_overrides
from sam_d2.data.loader import sample_seed
from sam_d2.engine.validation import ValidationLoss
from sam_d2.errors import UserError


@pytest.fixture
def parts(root, tiny_overrides, shapes_folder, train_net):
    """The config on the shapes, its model, and the validation loss of it."""
    line = ["--config-file", str(root / "configs" / "sam_tiny.py"), "--dataset", str(shapes_folder)]
    cfg = train_net.module.build_cfg(train_net.module.parse_args([*line, *tiny_overrides]))
    torch.manual_seed(0)
    return cfg, instantiate(cfg.model), instantiate(cfg.dataloader.validation)


def test_it_is_the_loss_of_one_step_over_the_whole_dataset(parts):
    cfg, model, validation = parts
    mapper = instantiate(cfg.dataloader.validation.mapper)
    samples = []
    for index, entry in enumerate(instantiate(cfg.dataloader.test.dataset)):
        samples.append({**mapper(entry), "seed": sample_seed(cfg.train.seed, index)})
    assert len(samples) == 4 and min(len(sample["instances"]) for sample in samples) == 0
    expected = {f"validation_{name}": loss.item() for name, loss in model(samples).items()}
    found = validation(model)
    assert found.keys() == {"validation_loss", *expected}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert found["validation_loss"] == pytest.approx(sum(expected.values()), rel=1e-5)


def test_the_same_weights_give_the_same_number_with_workers_too(parts):
    cfg, model, validation = parts
    first = validation(model)
    apply_overrides(cfg, ["dataloader.validation.num_workers=1"])
    assert validation(model) == first == instantiate(cfg.dataloader.validation)(model)
    apply_overrides(cfg, ["dataloader.validation.seed=1"])
    assert instantiate(cfg.dataloader.validation)(model) != first


def test_it_changes_nothing(parts):
    _, model, validation = parts
    model.mask_decoder.eval()  # a mode that is not the rest's
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    validation(model)
    assert [module.training for module in model.modules()] == modes
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert random.getstate() == state[0]
    assert (np.random.get_state()[1] == state[1]).all()
    assert torch.equal(torch.get_rng_state(), state[2])


def test_what_drops_out_in_training_does_not_here():
    class Dropping(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = torch.nn.Dropout(0.5)
            self.norm = torch.nn.BatchNorm1d(4)

        def forward(self, batch):
            assert self.training
            return {"loss": self.drop(self.norm(torch.ones(3, 4))).sum()}

    model = Dropping()
    mapper = lambda entry: entry  # noqa: E731
    # the statistics are 0 and 1 still: 12 ones, over sqrt(1 + 1e-5)
    assert ValidationLoss([{}], mapper=mapper)(model)["validation_loss"] == pytest.approx(12, rel=1e-4)
    assert model.norm.running_mean.tolist() == [0] * 4


def test_no_images():
    with pytest.raises(UserError, match="has no images"):
        ValidationLoss([], mapper=dict)


def test_it_is_written_with_the_metrics_and_does_not_disturb_the_training(tmp_path, train_net, finished_run):
    options = ["train.max_iter=6", "train.checkpointer.period=2", "train.eval_period=3", "train.log_period=2"]
    folder = train_net(tmp_path / "run", *options, "train.validation_loss=true")
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    found = [row for row in rows if "validation_loss" in row]
    assert len(found) == 2
    assert {"validation_loss_focal", "validation_loss_dice", "validation_loss_iou"} <= found[0].keys()
    assert "Validation loss " in (folder / "log.txt").read_text()
    weights = [torch.load(run / "model_final.pth", weights_only=True)["model"] for run in (folder, finished_run)]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
