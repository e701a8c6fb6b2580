"""What a run was started with: kept, compared, refused; the optimizer's settings after a resume."""

import copy
import re
from pathlib import Path

import pytest
import torch
from fvcore.common.param_scheduler import LinearParamScheduler
from omegaconf import OmegaConf
from torch import nn

from detectron2.solver import LRMultiplier
from sam_d2.engine.checkpoint import RECORD, Checkpointer, load_checkpoint_file
from sam_d2.engine.resume import apply_options, check_resume, optimizer_options, run_record, weights_text
from sam_d2.errors import UserError

CONFIG = {
    "model": {"prompt": "box", "score": "predicted_iou", "encoder": {"depth": 2}, "instances_per_chunk": 32},
    "dataloader": {
        "train": {
            "dataset": {"names": "shapes_train"},  # an image for each key
            "total_batch_size": 4,
            "num_workers": 0,
            "seed": "${train.seed}",
        },
        "test": {"num_workers": 0},
    },
    "optimizer": {"lr": 0.1, "params": {"lr": "${..lr}"}},
    "lr_multiplier": {"warmup_length": 0.05},
    "train": {
        "output_dir": "",
        "seed": 0,
        "accumulate": 1,
        "max_iter": 6,
        "ema": {"decay": None},
        "log_period": 5,
        "device": "cpu",
    },
}
IMAGES = [{"file_name": f"{name}.png", "annotations": [{"bbox": [0, 0, 5, 5]}]} for name in "ab"]


@pytest.fixture(autouse=True)
def dataset(monkeypatch):
    """The training dataset that is found at a resume; tests may change it."""
    images = copy.deepcopy(IMAGES)
    monkeypatch.setattr("sam_d2.engine.resume.instantiate", lambda node: images[: len(node)])
    return images


@pytest.fixture
def cfg(tmp_path):
    """Of a run with a checkpoint in its folder."""
    cfg = OmegaConf.create(copy.deepcopy(CONFIG))
    cfg.train.output_dir = str(tmp_path / "run")
    write_checkpoint(tmp_path / "run", run_record(cfg, IMAGES[:1]))
    return cfg


def write_checkpoint(folder, record):
    folder.mkdir(exist_ok=True)
    checkpointer = Checkpointer(nn.Linear(1, 1), str(folder))
    checkpointer.record = record
    checkpointer.save("model_0000003", iteration=3)


def test_the_record_is_in_every_file_as_plain_values(cfg, tmp_path):
    checkpointer = Checkpointer(nn.Linear(1, 1), str(tmp_path / "run"), state=nn.Linear(1, 1))
    checkpointer.record = load_checkpoint_file(tmp_path / "run" / "model_0000003.pth")[RECORD]
    checkpointer.save("model_best", iteration=3)
    assert load_checkpoint_file(tmp_path / "run" / "model_best.pth").keys() == {"model", "iteration", RECORD}
    record = load_checkpoint_file(tmp_path / "run" / "model_best.pth")[RECORD]
    assert record["world size"] == 1 and record["training images"] == 1
    assert record["device"] == "cpu" and type(record["torch"]) is str
    assert OmegaConf.create(record["config"]) == cfg


def test_the_same_settings_go_on(cfg):
    assert check_resume(cfg) == []


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("train.seed", 7, "train.seed 0 -> 7."),  # and not the loader's too, which is taken from it
        ("train.accumulate", 2, "train.accumulate 1 -> 2."),
        ("train.ema.decay", 0.9, "train.ema.decay None -> 0.9."),
        ("model.prompt", "point", "model.prompt box -> point."),
        ("model.prompts.box.train.jitter", 0.2, "model.prompts.box.train.jitter absent -> 0.2."),
        ("model.encoder.depth", 3, "model.encoder.depth 2 -> 3."),
        ("model.encoder.width", 8, "model.encoder.width absent -> 8."),
        ("dataloader.train.total_batch_size", 2, "dataloader.train.total_batch_size 4 -> 2."),
        ("dataloader.train.dataset.names", "x" * 99, f"dataset.names shapes_train -> {'x' * 60}...."),
        ("dataloader.train.dataset", {"names": "shapes_train", "more": 1}, "training images 1 -> 2; sha256 of"),
        ("optimizer.params.lr_factors", {"encoder": 0.1}, "optimizer.params.lr_factors.encoder absent -> 0.1."),
    ],
)
def test_what_would_make_it_another_training_is_refused(cfg, tmp_path, key, value, shown):
    OmegaConf.update(cfg, key, value, merge=False)
    with pytest.raises(UserError) as caught:
        check_resume(cfg)
    message = str(caught.value)
    # another dataset: the number of images, their digest, and the config's key
    assert shown in message and message.count(" -> ") == (3 if key == "dataloader.train.dataset" else 1)
    assert message.startswith(f"--resume: {tmp_path / 'run'} cannot go on")
    assert f"--config-file {tmp_path / 'run' / 'config.yaml'}" in message and "--output-dir DIR" in message
    assert str(tmp_path / "run" / "model_0000003.pth") in message and "\n" not in message
    assert "edited" not in message  # no setting edits a file


def test_nothing_is_said_of_settings_where_nothing_is_left_to_train(cfg):
    cfg.train.max_iter = 4  # as many as were trained
    cfg.optimizer.lr = 0.2
    assert check_resume(cfg) == []


def test_edited_annotations_are_refused(cfg, dataset):
    dataset[0]["annotations"][0]["bbox"][2] = 6
    with pytest.raises(UserError, match=r"sha256 of the training annotations (\w{16}) -> (?!\1)\w{16}\. .*edited; put"):
        check_resume(cfg)
    dataset[0]["annotations"][0]["bbox"][2] = 5
    dataset[0]["file_name"] = "/moved/a.png"
    assert check_resume(cfg) == []


@pytest.mark.parametrize(("name", "value"), [("device", "cuda"), ("torch", "2.6.0")])
def test_another_device_or_torch_is_said(cfg, tmp_path, name, value):
    record = {**run_record(cfg, IMAGES[:1]), name: value}
    write_checkpoint(tmp_path / "run", record)
    (warning,) = check_resume(cfg)
    assert warning.startswith(f"--resume: {name} {value} -> {run_record(cfg, IMAGES[:1])[name]}: from here on")


def test_a_record_of_an_earlier_version_is_compared_as_far_as_it_goes(cfg, tmp_path):
    record = run_record(cfg, IMAGES[:1])
    write_checkpoint(tmp_path / "run", {name: record[name] for name in ("world size", "training images", "config")})
    assert check_resume(cfg) == []
    cfg.train.seed = 7
    with pytest.raises(UserError, match=r"settings: train\.seed 0 -> 7\. Repeat"):
        check_resume(cfg)


def test_all_changes_are_named(cfg):
    cfg.train.seed, cfg.model.prompt = 1, "point"
    with pytest.raises(UserError, match=r"model\.prompt box -> point; train\.seed 0 -> 1\. Repeat"):
        check_resume(cfg)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("optimizer.lr", 0.2, "optimizer.lr 0.1 -> 0.2: from here on the run differs"),
        ("lr_multiplier.warmup_length", 0.1, "lr_multiplier.warmup_length 0.05 -> 0.1"),
        ("train.max_iter", 9, "train.max_iter 6 -> 9: .* learning rate follows its schedule over the new number"),
        ("train.max_iter", 5, "train.max_iter 6 -> 5"),
        ("train.clip_gradient_norm", 1.0, "train.clip_gradient_norm absent -> 1.0"),
        ("model.instances_per_chunk", 8, "model.instances_per_chunk 32 -> 8"),
    ],
)
def test_what_may_be_changed_on_the_way_is_said(cfg, key, value, words):
    OmegaConf.update(cfg, key, value)
    (warning,) = check_resume(cfg)
    assert re.search(words, warning)
    assert ("schedule over the new number" in warning) == (key == "train.max_iter")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dataloader.train.num_workers", 2),
        ("dataloader.test.num_workers", 2),
        ("dataloader.train.seed", 0),  # written out, the same
        ("model.score", "stability"),
        ("model.prompts.detector.score", "class_score"),  # of a recipe that trains nothing here
        ("model.prompts.box.prompt_source", "ground_truth"),  # the recipe's test
        ("train.log_period", 1),
    ],
)
def test_what_decides_no_weight_is_free(cfg, key, value):
    OmegaConf.update(cfg, key, value)
    assert check_resume(cfg) == []


def test_a_checkpoint_from_before_the_record_is_taken_with_a_warning(cfg, tmp_path):
    write_checkpoint(tmp_path / "run", None)
    (warning,) = check_resume(cfg)
    assert "model_0000003.pth does not say what the run was started with" in warning


def test_a_checkpoint_that_is_gone_or_damaged(cfg, tmp_path):
    file = tmp_path / "run" / "model_0000003.pth"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"model_0000003\.pth: not a checkpoint"):
        check_resume(cfg)
    file.unlink()
    with pytest.raises(UserError, match=r"model_0000003\.pth does not exist, but .*last_checkpoint names it"):
        check_resume(cfg)


def _check_in_a_process(rank: int, folder: Path, cfg: dict) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        check_resume(OmegaConf.create(cfg))
    except UserError as error:
        (folder / f"{rank}.txt").write_text(str(error))
    torch.distributed.destroy_process_group()


def test_every_process_ends_with_the_same_message(cfg, tmp_path):
    # forked, because a spawned process would look for this module, and Detectron2's checkout has a package `tests` too
    torch.multiprocessing.start_processes(
        _check_in_a_process, args=(tmp_path, OmegaConf.to_container(cfg)), nprocs=2, start_method="fork"
    )
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in range(2))
    assert first == second and "settings: world size 1 -> 2. Repeat" in first


class TestOptions:
    def optimizer(self, rate, **options):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate, **options)
        # 1 at the beginning, 0 after ten steps
        return optimizer, LRMultiplier(optimizer, LinearParamScheduler(1.0, 0.0), 10)

    def resumed(self, rate, **options):
        """After 4 steps of another optimizer of rate 0.5, momentum 0.9."""
        before, schedule = self.optimizer(0.5, momentum=0.9)
        for _ in range(4):
            before.param_groups[0]["params"][0].grad = torch.ones(1)
            before.step()
            schedule.step()
        after, own = self.optimizer(rate, **options)
        given = optimizer_options(after)
        after.load_state_dict(before.state_dict())
        own.load_state_dict(schedule.state_dict())
        apply_options(after, own, given)
        return before, after, own

    def test_those_of_the_config_hold(self):
        _, after, schedule = self.resumed(0.1, momentum=0.5)
        group = after.param_groups[0]
        # 0.1 (1 - 4/10) = 0.06, then 0.1 (1 - 5/10) = 0.05
        assert group["lr"] == pytest.approx(0.06) and group["momentum"] == 0.5 and group["initial_lr"] == 0.1
        after.step()
        schedule.step()
        assert group["lr"] == pytest.approx(0.05)
        # the momentum gathered so far stays: 1 + 0.9 + 0.81 + 0.729
        (state,) = after.state.values()
        assert state["momentum_buffer"].item() == pytest.approx(3.439)

    def test_without_a_change_no_bit_changes(self):
        before, after, _ = self.resumed(0.5, momentum=0.9)
        assert optimizer_options(after) == optimizer_options(before)


class TestWeightsText:
    def text(self, file="run/model_final.pth", iteration=5, decay=None):
        cfg = OmegaConf.merge(CONFIG, {"train": {"ema": {"decay": decay}}})
        return weights_text(file, {"iteration": iteration, RECORD: run_record(cfg, IMAGES[:1])})

    def test_the_steps_that_were_taken(self):
        assert self.text() == "run/model_final.pth, step 6"
        assert self.text(iteration=3) == "run/model_final.pth, step 4 of 6 (stopped early)"
        assert self.text("model_0000003.pth", iteration=3) == "model_0000003.pth, step 4 of 6"

    def test_an_average(self):
        assert self.text(decay=0.9) == "run/model_final.pth, step 6, average of the weights (EMA)"

    def test_files_without_a_record(self):
        assert weights_text(Path("sam_vit_b.pth"), {}) == "sam_vit_b.pth"
        assert weights_text("model_final.pth", {"iteration": 5}) == "model_final.pth, step 6"
