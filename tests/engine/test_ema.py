"""The average of the weights: by hand, in the files of a run, and after a resume."""

import shutil

import pytest
import torch
from torch import nn

from detectron2.engine import TrainerBase
from sam_d2.engine.ema import AverageCheckpointer, WeightAverage
from sam_d2.errors import UserError
from sam_d2.evaluation import read_report


class Steps(TrainerBase):
    """Each step adds 1 to the weight."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def run_step(self):
        with torch.no_grad():
            self.model.weight += 1


def model_of(weight=0.0):
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, weight)
    model.bias.requires_grad_(False)
    return model


def after(steps, decay):
    model = model_of()
    average = WeightAverage(model, decay)
    trainer = Steps(model)
    trainer.register_hooks([average])
    trainer.train(0, steps)
    return model, average


def test_by_hand():
    # decay of steps 1, 2, 3: min(0.2, 2/11 = 0.18182) = 2/11, min(0.2, 3/12) = 0.2, 0.2; weights 1, 2, 3
    # averages: 0 + 9/11 (1 - 0) = 0.81818; 0.81818 + 0.8 (2 - 0.81818) = 1.76364; 1.76364 + 0.8 (3 - 1.76364) = 2.75273
    model, average = after(3, 0.2)
    assert model.weight.item() == 3
    bias = model.bias.item()
    with average.applied():
        assert model.weight.item() == pytest.approx(2.752727, abs=1e-6)
        with average.applied():  # of an evaluation that saves
            assert model.weight.item() == pytest.approx(2.752727, abs=1e-6)
        assert model.weight.item() == pytest.approx(2.752727, abs=1e-6)
    assert model.weight.item() == 3
    assert average.parameters.keys() == {"weight"} and model.bias.item() == bias


def test_a_long_training_has_the_decay_that_was_asked_for():
    model, average = after(200, 0.5)
    # weights grow by 1, so the average lags by d / (1 - d) = 1 once it has settled
    with average.applied():
        assert model.weight.item() == pytest.approx(199, abs=1e-4)


def test_off():
    model, average = after(3, None)
    with average.applied():
        assert model.weight.item() == 3
    assert average.state_dict() == {}


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2])
def test_refusal(decay):
    with pytest.raises(UserError, match=r"train\.ema\.decay=.*less than 1"):
        WeightAverage(model_of(), decay)


class TestCheckpoints:
    def test_a_file_has_the_average_as_its_model_and_the_rest_to_go_on(self, tmp_path):
        model, average = after(3, 0.2)
        checkpointer = AverageCheckpointer(average, model, str(tmp_path), average=average)
        checkpointer.save("model_0000002")
        assert model.weight.item() == 3
        saved = torch.load(tmp_path / "model_0000002.pth", weights_only=True)
        assert saved["model"]["weight"].item() == pytest.approx(2.752727, abs=1e-6)
        assert saved["average"]["weights"]["weight"].item() == 3
        other = model_of()
        again = WeightAverage(other, 0.2)
        AverageCheckpointer(again, other, str(tmp_path), average=again).load(str(tmp_path / "model_0000002.pth"))
        assert other.weight.item() == 3
        with again.applied():
            assert other.weight.item() == pytest.approx(2.752727, abs=1e-6)

    @pytest.mark.parametrize("decay", [None, 0.5])
    def test_an_average_of_other_parameters(self, decay):
        _, average = after(1, 0.2)
        state = {**average.state_dict(), "weights": {"other": torch.zeros(1)}}
        with pytest.raises(UserError, match="average of other parameters"):
            WeightAverage(model_of(), decay).load_state_dict(state)


class TestRun:
    OPTIONS = (
        "train.ema.decay=0.9",
        "train.max_iter=6",
        "train.checkpointer.period=2",
        "train.eval_period=3",
        "train.eval_base=false",
    )

    @pytest.fixture(scope="class")
    def run(self, tmp_path_factory, train_net):
        return train_net(tmp_path_factory.mktemp("ema") / "run", *self.OPTIONS)

    def weights(self, folder, name="model_final"):
        return torch.load(folder / f"{name}.pth", weights_only=True)["model"]

    def test_what_is_evaluated_is_what_is_saved(self, run, tmp_path, train_net):
        copied = shutil.copytree(run, tmp_path / "copied")
        (copied / "report.json").unlink()
        words = "model_final.pth, step 6, average of the weights (EMA)<"
        assert words in (run / "report.html").read_text()
        (copied / "report.html").unlink()
        train_net(copied, "--eval-only")
        assert words in (copied / "report.html").read_text()
        again, trained = (read_report(folder / "report.json")[0] for folder in (copied, run))
        assert again.metric("mIoU") == trained.metric("mIoU")

    def test_it_is_not_the_trained_weights(self, run, finished_run, tmp_path):
        average, trained = self.weights(run), self.weights(finished_run)
        assert average.keys() == trained.keys()
        name = "mask_decoder.mask_tokens.weight"
        assert not torch.equal(average[name], trained[name])

    def test_a_resumed_run_ends_with_the_same_average(self, run, tmp_path, train_net):
        copied = shutil.copytree(run, tmp_path / "copied")
        (copied / "last_checkpoint").write_text("model_0000003.pth")
        (copied / "model_final.pth").unlink()
        train_net(copied, "--resume", *self.OPTIONS)
        torch.testing.assert_close(self.weights(copied), self.weights(run), rtol=0, atol=0)
