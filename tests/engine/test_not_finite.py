"""A loss that is no longer a number: what the message says."""

import copy
import itertools
import json
import logging
import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from detectron2.engine import HookBase
from detectron2.utils import comm
from sam_d2.data.loader import PositionSampler, sample_seed
from sam_d2.engine.checkpoint import Checkpointer, PeriodicCheckpoint
from sam_d2.engine.distributed import distribute
from sam_d2.engine.ema import WeightAverage
from sam_d2.engine.not_finite import not_finite_text
from sam_d2.engine.step_counts import StepCounts
from sam_d2.engine.trainer import Trainer
from sam_d2.errors import UserError
from sam_d2.modeling.weights_record import WeightsRecord


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
    (kept,) = (tmp_path / "run").glob("not_finite_*.json")
    content = json.loads(kept.read_text())
    assert kept.name == f"not_finite_{content['iteration']:07d}.json" and content["seed"] == 0
    assert content["replay"].endswith("--resume") and content["learning_rate"] > 1e27
    (process,) = content["processes"]
    assert set(process["losses"].values()) & {"nan", "inf"}
    # the images of that step: positions 4 x iteration and on of the stream
    positions = itertools.islice(PositionSampler(6, seed=0, start=4 * content["iteration"]), 4)
    assert process["images"] == [
        {"image_id": index, "file_name": image["file_name"], "seed": sample_seed(0, position)}
        for (position, index), image in zip(positions, process["images"], strict=True)
    ]
    assert all(Path(image["file_name"]).name == f"train_{image['image_id']}.png" for image in process["images"])


class Sum(nn.Module):
    """The loss is the sum of the weight and the batch; a batch norm sees the batch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.norm = nn.BatchNorm1d(1)

    def forward(self, batch):
        values = torch.tensor([sample["value"] for sample in batch])[:, None]
        self.norm(values)
        return {"loss": (self.weight + values).mean()}


def trained(values, **options):
    model = Sum()
    batches = [[{"value": value, "file_name": f"{value}.png"}, {"value": 1.0}] for value in values]
    trainer = Trainer(model, batches, torch.optim.SGD(model.parameters(), lr=0.5), **options)
    trainer.train(0, len(values))
    return trainer


class TestSkipped:
    def test_only_the_other_steps_move_the_model(self, caplog):
        trainer = trained([1.0, math.nan, 3.0, math.inf], on_not_finite="skip")
        assert trainer.model.weight.item() == -1.0  # two steps of gradient 1 at a rate of 0.5
        torch.testing.assert_close(trainer.model.state_dict(), trained([1.0, 3.0]).model.state_dict())
        assert trainer.counts.not_finite == 2 and not trainer.step_taken
        assert "Step 2: a loss is not finite. Skipped" in caplog.text
        assert "2 steps were skipped for a loss or gradient that was not a number" in caplog.text

    def test_the_count_goes_on_after_a_resume(self):
        state = trained([math.nan, 1.0], on_not_finite="skip").state_dict()
        again = Trainer(Sum(), [], torch.optim.SGD(Sum().parameters(), lr=0.5))
        again.counts.load_state_dict(state["counts"])
        assert vars(again.counts) == {"bad_images": 0, "not_finite": 1, "in_a_row": 0, "left_out": 0}

    def test_counts_of_another_version(self):
        counts = StepCounts()
        counts.load_state_dict({"not_finite": 2, "report": 3, "of_later": 4})
        assert vars(counts) == {"bad_images": 0, "not_finite": 2, "in_a_row": 0, "left_out": 0}
        counts.report()

    def test_more_than_ten_in_a_row_are_the_weights_fault(self):
        assert trained([math.nan] * 10, on_not_finite="skip").counts.not_finite == 10
        with pytest.raises(UserError, match=r"step 11 is not finite .* 10 steps before it were skipped: the weights"):
            trained([math.nan] * 11, on_not_finite="skip")

    def test_a_word_that_is_neither(self):
        with pytest.raises(UserError, match=r"train\.on_not_finite=ignore: expected error or skip"):
            trained([1.0], on_not_finite="ignore")


class Root(nn.Module):
    """The loss is the root of the weight times each value: finite at 0, where the gradient is not."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, batch):
        return {"loss": sum((self.weight * sample["value"]).sqrt().sum() for sample in batch)}


def _trained_roots(values, model=None, folder=None, **options):
    model = model or Root()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    trainer = Trainer(model, [[{"value": value}] for value in values], optimizer, **options)
    if folder:
        trainer.register_hooks([PeriodicCheckpoint(Checkpointer(model, str(folder)), period=10)])
    trainer.train(0, len(values) // options.get("accumulate", 1))
    return trainer


class TestGradient:
    @pytest.mark.parametrize("options", [{}, {"clip_gradient_norm": 1.0}, {"oom_retry": True}, {"accumulate": 2}])
    def test_the_run_ends_and_its_file_says_why(self, tmp_path, options):
        model = Root()
        with pytest.raises(UserError, match=r"The gradient of step 1 is not finite \(its losses are\); .* not taken"):
            _trained_roots([0.0, 1.0], model, tmp_path, **options)
        assert model.weight.item() == 1.0
        content = json.loads((tmp_path / "not_finite_0000000.json").read_text())
        assert content["not_finite"] == "gradient" and len(content["processes"]) == 1

    def test_skipped(self, caplog):
        trainer = _trained_roots([0.0, 1.0], on_not_finite="skip")
        assert trainer.model.weight.item() == 0.75  # a step of gradient 0.5
        assert trainer.counts.not_finite == 1 and "Step 1: the gradient is not finite. Skipped" in caplog.text


class Told(HookBase):
    """Keeps what is true of each step: whether it was taken, the scale, and the average of the weights."""

    def __init__(self, average):
        self.average = average
        self.steps = []

    def after_step(self):
        with self.average.applied():
            weight = self.trainer.model.weight.item()
        self.steps.append((self.trainer.step_taken, self.trainer.grad_scaler.get_scale(), weight))


class TestScaler:
    """Float16's scaler begins at 2**16 and halves its scale at a gradient that is not finite."""

    def test_a_step_that_it_leaves_out_is_not_taken(self, caplog):
        caplog.set_level(logging.INFO, "sam_d2")
        model = Root()
        model.weights_record = WeightsRecord(draw_boxes=False)
        model.weights_record.multimask_reached = True  # as a step says that it trains these outputs
        trainer = Trainer(model, [[{"value": value}] for value in (0.0, 1.0)],
                          torch.optim.SGD(model.parameters(), lr=0.5), amp_dtype=torch.float16)  # fmt: skip
        average = WeightAverage(model, decay=0.0)  # the average is the weights of the last step that was taken
        average.before_train()
        average.before_train = lambda: model.weight.data.fill_(4.0)  # of which it would learn at once
        told = Told(average)
        trainer.register_hooks([average, told])
        trainer.train(0, 1)
        assert told.steps == [(False, 2.0**15, 1.0)] and model.weight.item() == 4.0
        assert not model.weights_record.multimask_trained and not model.weights_record.multimask_reached
        assert "Step 1: left out, its gradient is not finite in float16; the gradients are now scaled by 32768" in (
            caplog.text
        )
        trainer.train(1, 2)
        # the root of 4 has the slope 1/4, times a rate of 0.5
        assert told.steps[1] == (True, 2.0**15, 3.875) and trainer.step_taken
        assert vars(trainer.counts) == {"bad_images": 0, "not_finite": 0, "in_a_row": 0, "left_out": 1}
        assert "1 step was left out by the gradient scaler of float16" in caplog.text

    def test_a_gradient_that_is_never_finite_ends_the_run(self, tmp_path):
        """2**16 is 1 after 16 steps; the 17th has a gradient that is infinite at this scale too."""
        model = Root()
        with pytest.raises(
            UserError, match=r"gradient of step 17 is not finite \(its losses are\).*dtype=bfloat16"
        ) as e:
            _trained_roots([0.0] * 300, model, tmp_path, amp_dtype=torch.float16)
        assert "\n" not in str(e.value) and model.weight.item() == 1.0
        content = json.loads((tmp_path / "not_finite_0000016.json").read_text())
        assert content["not_finite"] == "gradient" and content["iteration"] == 16

    def test_skipped_from_a_scale_of_1_on_and_ten_times_in_a_row_at_most(self):
        trainer = _trained_roots([0.0] * 26 + [1.0], amp_dtype=torch.float16, on_not_finite="skip")
        assert vars(trainer.counts) == {"bad_images": 0, "not_finite": 10, "in_a_row": 0, "left_out": 16}
        assert trainer.model.weight.item() == 0.75 and trainer.grad_scaler.get_scale() == 1.0
        with pytest.raises(UserError, match=r"step 27 is not finite .* 10 steps before it were skipped: the weights"):
            _trained_roots([0.0] * 300, amp_dtype=torch.float16, on_not_finite="skip")

    def test_running_statistics_of_a_skipped_step_are_put_back(self):
        class Normed(Root):
            def __init__(self):
                super().__init__()
                self.norm = nn.BatchNorm1d(1)

            def forward(self, batch):
                self.norm(torch.ones(2, 1))
                return super().forward(batch)

        model = Normed()
        _trained_roots([0.0] * 20, model, amp_dtype=torch.float16, on_not_finite="skip")
        assert model.norm.num_batches_tracked == 16  # as without this setting where the scaler leaves a step out

    @pytest.mark.parametrize("cut", [1, 17, 19])
    def test_a_resume_is_exact(self, cut):
        values = [0.0] * 18 + [1.0, 1.0]
        options = {"amp_dtype": torch.float16, "on_not_finite": "skip"}
        whole = _trained_roots(values, **options)
        first = _trained_roots(values[:cut], **options)
        state = copy.deepcopy(first.state_dict())
        model = copy.deepcopy(first.model)
        rest = Trainer(model, [[{"value": value}] for value in values[cut:]],
                       torch.optim.SGD(model.parameters(), lr=0.5), **options)  # fmt: skip
        rest.load_state_dict(state)
        rest.train(cut, len(values))
        assert rest.model.weight.item() == whole.model.weight.item() < 1
        assert rest.state_dict()["counts"] == whole.state_dict()["counts"]
        assert rest.state_dict()["grad_scaler"] == whole.state_dict()["grad_scaler"]
        assert whole.counts.left_out == 16 and whole.counts.not_finite == 2

    def test_a_file_of_before(self):
        """It has no such count, and its scale may have fallen to 0, where no step can be taken."""
        state = _trained_roots([1.0], amp_dtype=torch.float16).state_dict()
        del state["counts"]["left_out"]
        state["grad_scaler"]["scale"] = 0.0
        model = Root()
        trainer = Trainer(model, [[{"value": 1.0}]], torch.optim.SGD(model.parameters(), lr=0.5),
                          amp_dtype=torch.float16)  # fmt: skip
        trainer.load_state_dict(state)
        trainer.train(1, 2)
        assert trainer.step_taken and trainer.counts.left_out == 0 and model.weight.item() == 0.75

    @pytest.mark.parametrize("scale", [math.inf, math.nan, -1.0])
    def test_a_scale_that_is_none(self, scale):
        trainer = _trained_roots([1.0], amp_dtype=torch.float16)
        state = trainer.state_dict()
        state["grad_scaler"]["scale"] = scale
        with pytest.raises(ValueError, match="the scale of its gradients is no finite number"):
            trainer.load_state_dict(state)


def _roots_in_two(how):
    model = distribute(Root(), broadcast_buffers=False)
    values = [1.0, float(comm.get_rank())]  # the other process's gradient is finite before they exchange
    options = {"amp_dtype": torch.float16} if how == "float16" else {}
    trainer = _trained_roots(values, model, oom_retry=how == "oom", on_not_finite="skip", **options)
    return model.module.weight.item(), trainer.counts.not_finite, trainer.counts.left_out


@pytest.mark.parametrize("how", ["ddp", "oom", "float16"])
def test_the_gradient_of_one_of_two_processes(in_two_processes, how):
    expected = (0.75, 0, 1) if how == "float16" else (0.75, 1, 0)
    assert in_two_processes(_roots_in_two, how) == [expected, expected]


def _trained_in_two(values):
    """Each process has a batch of its own; returns weight, count, and the message of an error."""
    rank, (values, how) = comm.get_rank(), values
    model = Sum()
    model.norm = nn.Identity()
    model = distribute(model, broadcast_buffers=False)
    batches = [[{"value": value, "file_name": f"{value}.png"}] for value in values[rank]]
    trainer = Trainer(model, batches, torch.optim.SGD(model.parameters(), lr=0.5), oom_retry=how != "ddp",
                      on_not_finite="error" if how == "error" else "skip")  # fmt: skip
    try:
        trainer.train(0, 3)
    except UserError as error:
        return str(error)
    return model.module.weight.item(), trainer.counts.not_finite


@pytest.mark.parametrize("how", ["skip", "ddp", "error"])
def test_one_of_two_processes_meets_it(in_two_processes, how):
    answers = in_two_processes(_trained_in_two, (([1.0, 2.0, 3.0], [1.0, math.nan, 3.0]), how))
    if how == "error":  # the first process speaks
        assert answers[0] == answers[1] and answers[0].startswith("The loss of step 2 is not finite (on another proc")
    else:
        assert answers == [(-1.0, 1), (-1.0, 1)]


@pytest.mark.slow
def test_bad_images_are_counted_over_the_processes_and_at_the_end(in_two_processes, shapes_folder, train_net, tmp_path):
    """Two of six images cannot be used: whoever reads, the same positions have others, and a resume counts on."""
    broken = shutil.copytree(shapes_folder, tmp_path / "shapes")
    (broken / "train_2.png").write_bytes(b"nothing")
    Image.new("RGB", (10, 10)).save(broken / "train_4.png")
    options = ["--dataset", str(broken), "train.max_iter=6", "train.eval_period=0", "train.eval_base=false"]
    options += ["dataloader.train.on_bad_image=skip", "train.checkpointer.period=3", "train.log_period=1"]
    stream = itertools.islice(PositionSampler(6, seed=0), 24)
    expected = sum(index in (2, 4) for _, index in stream)
    one = train_net(tmp_path / "one", *options)
    in_two_processes(train_net, tmp_path / "two", *options)
    parts = tmp_path / "parts"
    parts.mkdir()
    shutil.copy(one / "model_0000002.pth", parts)
    (parts / "last_checkpoint").write_text("model_0000002.pth")
    train_net(parts, *options, "--resume")
    for folder in (one, tmp_path / "two", parts):
        saved = torch.load(folder / "model_0000005.pth", weights_only=True)["trainer"]["counts"]
        assert saved["bad_images"] == expected > 6
        log = (folder / "log.txt").read_text()
        assert f"*** In the place of {expected} images that could not be read another was taken" in log
        assert "train_2.png: not a readable image" in log and "Another image is in its place." in log
    weights = [torch.load(folder / "model_final.pth", weights_only=True)["model"] for folder in (one, parts)]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
