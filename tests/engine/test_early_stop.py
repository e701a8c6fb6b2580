"""When a training ends before its last step."""

import json
import math

import pytest
import torch
from torch import nn

from detectron2.engine import HookBase
from sam_d2.engine.checkpoint import Checkpointer
from sam_d2.engine.early_stop import EarlyStop
from sam_d2.engine.trainer import Trainer
from sam_d2.errors import UserError
from sam_d2.evaluation import read_report


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        return {"loss": self.weight.sum() * len(batch)}


class Says(HookBase):
    """Evaluations that give these values, one after every second step."""

    def __init__(self, name, values):
        self.name, self.values = name, values
        self.seen = []

    def after_step(self):
        done = self.trainer.iter + 1
        if done % 2 == 0:
            self.trainer.storage.put_scalar(self.name, self.values[done // 2 - 1])

    def after_train(self):
        self.seen.append(self.trainer.iter)


def training(folder, values, patience, metric="segm/AP", start=0, state=None, max_iter=20):
    model = Model()
    loader = [[0]] * 100
    trainer = Trainer(model, loader, torch.optim.SGD(model.parameters(), lr=0.1))
    checkpointer = Checkpointer(model, str(folder), trainer=trainer)
    stop = EarlyStop(2, checkpointer, metric, patience)
    trainer.register_hooks([Says(metric, values), stop])
    if state:
        trainer.load_state_dict(state)
    trainer.train(start, max_iter)
    return trainer


@pytest.mark.parametrize(
    ("values", "patience", "steps"),
    [
        # best after step 4; after 6 and 8 nothing better: two in a row
        ([10, 20, 15, 20, 30, 40, 50, 60, 70, 80], 2, 8),
        ([10, 9, 11, 10, 12, 11, 13, 12, 14, 13], 2, 20),  # never two in a row
        ([10, 9, 8, 7, 6, 5, 4, 3, 2, 1], 1, 4),
        ([10, 9, 8, 7, 6, 5, 4, 3, 2, 1], None, 20),
        ([math.nan] * 10, 3, 6),
    ],
)
def test_it_ends_after_so_many_evaluations_without_improvement(tmp_path, values, patience, steps):
    trainer = training(tmp_path, values, patience)
    assert trainer.iter == steps
    assert trainer.stopped == (steps < 20)
    assert (tmp_path / "model_final.pth").is_file() == (steps < 20)
    assert trainer.model.weight.item() == pytest.approx(-0.1 * steps)


def test_of_a_loss_less_is_better(tmp_path):
    # best after step 6
    trainer = training(tmp_path, [5, 4, 3, 3.5, 3.1, 2, 1, 1, 1, 1], 2, metric="validation_loss")
    assert trainer.iter == 10


def test_a_class_may_be_called_loss(tmp_path):
    # more is better: best after step 4, and after 6 and 8 nothing better
    assert training(tmp_path, [1, 5, 4, 3, 2, 1, 1, 1, 1, 1], 2, metric="segm/AP-hair loss").iter == 8


def test_what_it_knows_survives_a_resume(tmp_path):
    values = [10, 20, 15, 19, 18, 40, 50, 60, 70, 80]
    state = training(tmp_path, values, 3, max_iter=7).state_dict()
    assert training(tmp_path, values, 3, start=7, state=state).iter == 10
    # one that forgot that 20 was there would find 19 after step 8 to be the best so far, and 40 after step 12


def test_a_training_that_was_over_ends_at_once_unless_there_is_more_patience(tmp_path):
    values = [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    first = training(tmp_path, values, 2)
    state = {**first.state_dict(), "iteration": first.iter - 1}
    again = training(tmp_path, values, 2, start=first.iter, state=state)
    assert (first.iter, again.iter) == (6, 6) and again.model.weight.item() == 0
    assert training(tmp_path, values, 4, start=first.iter, state=state).iter == 10


def test_another_metric_begins_anew(tmp_path):
    state = training(tmp_path, [10] * 10, 3, max_iter=5).state_dict()
    state["hooks"]["EarlyStop"]["metric"] = "prompt/mIoU"
    # steps 6 (the first, the best), 8, 10, 12
    assert training(tmp_path, [10] * 10, 3, start=5, state=state).iter == 12


class TestRefusals:
    def test_patience(self, tmp_path):
        with pytest.raises(UserError, match=r"train\.early_stop\.patience=0: expected at least 1"):
            EarlyStop(2, None, "segm/AP", 0)

    def test_no_evaluations(self):
        with pytest.raises(UserError, match=r"set train\.eval_period, which is 0, to at least 1"):
            EarlyStop(0, None, "segm/AP", 1)
        EarlyStop(0, None, "segm/AP", None)

    @pytest.mark.parametrize("period", [10, 1000])
    def test_an_evaluation_at_the_end_alone(self, period):
        with pytest.raises(UserError, match=rf"which is {period}, to at least 1 and less than its steps \(10\)"):
            EarlyStop(period, None, "segm/AP", 1, max_iter=10)
        EarlyStop(period, None, "segm/AP", None, max_iter=10)

    @pytest.mark.parametrize(("max_iter", "said"), [(6, True), (7, False)])
    def test_a_patience_longer_than_the_training(self, caplog, max_iter, said):
        """The earliest end is after the third evaluation, step 6, and that of the last step ends nothing."""
        EarlyStop(2, None, "segm/AP", 2, max_iter=max_iter)
        text = "train.early_stop.patience=2: no training of 6 steps ends early with train.eval_period=2"
        assert caplog.messages == [text] * said
        caplog.clear()
        EarlyStop(2, None, "segm/AP", None, max_iter=max_iter)
        assert not caplog.messages

    def test_a_metric_that_nobody_gives(self, tmp_path):
        model = Model()
        trainer = Trainer(model, [[0]] * 9, torch.optim.SGD(model.parameters(), lr=0.1))
        stop = EarlyStop(2, Checkpointer(model, str(tmp_path)), "validation_loss", 1)
        trainer.register_hooks([Says("segm/AP", [1] * 9), stop])
        with pytest.raises(UserError, match=r"validation_loss: the evaluation gave none, but segm/AP\."):
            trainer.train(0, 8)


def test_a_run(tmp_path, train_net):
    """A model that learns nothing stops at the second evaluation, and what it leaves is complete."""
    options = ["train.max_iter=20", "train.eval_period=2", "train.log_period=2", "train.eval_base=false"]
    options += ["optimizer.lr=0", "train.early_stop.patience=1", "train.early_stop.metric=validation_loss"]
    folder = train_net(tmp_path / "run", *options, "train.validation_loss=true")
    log = (folder / "log.txt").read_text()
    assert "Stopped after step 4 of 20: validation_loss has not improved in 1 evaluations" in log
    assert "Traceback" not in log and "model_final.pth, step 4" not in log.partition("Stopped")[0]
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    values = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert len(values) == 2 and values[0] == values[1]
    assert (folder / "model_final.pth").is_file() and (folder / "report.json").is_file()
    assert "Early stop looks at validation_loss on the test images" in log.partition("Stopped")[0]
    report = (folder / "report.html").read_text()
    assert "model_final.pth, step 4 of 20 (stopped early)<" in report
    assert report.count("(selected on this split)") == 1  # the model's row, the baselines' are not
    train_net(folder, "--eval-only")
    [model] = [row for row in read_report(folder / "report.json") if row.method == "model" and row.ranks]
    assert model.selected
