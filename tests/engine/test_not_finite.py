"""A loss that is no longer a number: what the message says."""

import math

import pytest
import torch
from torch import nn

from detectron2.engine import HookBase
from sam_d2.engine.checkpoint import Checkpointer, PeriodicCheckpoint
from sam_d2.engine.not_finite import not_finite_text
from sam_d2.errors import UserError


def text(hooks=(), clip=None, **losses):
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": 0.25}], lr=0.5)
    return not_finite_text(7, {name: torch.tensor(value) for name, value in losses.items()}, optimizer, clip, hooks)


def test_step_losses_rate_and_clipping():
    message = text(loss_dice=math.nan, loss_iou=0.5, loss_focal=math.inf)
    assert message.startswith("The loss of step 7 is not finite (loss_dice nan, loss_focal inf)")
    assert "rate of this step is 0.25" in message and "clip gradients (train.clip_gradient_norm=1.0)" in message
    assert "clip more than at train.clip_gradient_norm=2" in text(clip=2.0, loss_dice=math.nan)
    assert "(on another process)" in text(loss_dice=1.0)
    assert "(the region proposals hold values that are no numbers)" in text()


def test_the_checkpoint_to_go_on_from(tmp_path):
    checkpointer = Checkpointer(nn.Linear(1, 1), str(tmp_path))
    hooks = [HookBase(), PeriodicCheckpoint(checkpointer, period=2)]
    assert text(hooks, loss_dice=math.nan).endswith("there is no checkpoint to go on from yet.")
    checkpointer.save("model_0000003", iteration=3)
    assert text(hooks, loss_dice=math.nan).endswith(f"--resume goes on from {tmp_path / 'model_0000003.pth'}.")


def test_a_run(train_net, tmp_path):
    options = ["train.max_iter=9", "optimizer.lr=1e30", "train.eval_base=false", "train.checkpointer.period=1"]
    with pytest.raises(UserError, match=r"The loss of step \d is not finite .*goes on from .*model_000000\d\.pth"):
        train_net(tmp_path / "run", *options)
    assert "Traceback" not in (tmp_path / "run" / "log.txt").read_text()
