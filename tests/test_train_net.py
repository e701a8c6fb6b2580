"""experiments/train_net.py from end to end: what a run leaves behind, and how it is scored, resumed and refused."""

import json
import math
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image

from sam_d2.config import load_config
from sam_d2.engine.export import checkpoint_of
from sam_d2.engine.trainer import Trainer
from sam_d2.errors import UserError
from sam_d2.evaluation import read_report
from sam_d2.evaluation.report_data import read_curves

METHODS = {"model", "base", "box_as_mask", "ellipse"}


def rows_of(folder):
    """The rows of a run's report by method, of which each has one."""
    rows = [row for row in read_report(folder / "report.json") if row.ranks]
    assert len({row.method for row in rows}) == len(rows)
    return {row.method: row for row in rows}


def weights(folder, name="model_final"):
    return torch.load(folder / f"{name}.pth", weights_only=True)["model"]


def assert_equal_weights(first, second):
    assert first.keys() == second.keys()
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


@pytest.fixture
def copied_run(finished_run, tmp_path):
    """A finished run that the test may change."""
    return shutil.copytree(finished_run, tmp_path / "copied")


class TestFinishedRun:
    def test_files(self, finished_run):
        names = {re.sub(r"^events\.out\.tfevents\..*", "events", file.name) for file in finished_run.iterdir()}
        # of the periodic ones after steps 2, 4 and 6 the last two are kept
        checkpoints = {"model_0000003.pth", "model_0000005.pth", "model_final.pth", "model_best.pth", "last_checkpoint"}
        assert {name for name in names if name.startswith(("model", "last", "."))} == checkpoints
        assert names >= {"report.json", "gallery.png", "metrics.json", "events", "config.yaml", "log.txt"}
        assert (finished_run / "last_checkpoint").read_text() == "model_0000005.pth"
        with Image.open(finished_run / "gallery.png") as gallery:
            gallery.load()
            assert min(gallery.size) > 100

    def test_metrics(self, finished_run, shapes_folder):
        rows = metrics(finished_run)
        assert [row["iteration"] for row in rows if "lr" in row] == [1, 3, 5]
        for row in rows:
            if "total_loss" in row:
                parts = row["loss_focal"] + row["loss_dice"] + row["loss_iou"]
                assert row["total_loss"] == pytest.approx(parts, rel=0.2)  # each is a median
        assert sum("segm/AP" in row for row in rows) == 2

    def test_tensorboard(self, finished_run):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(finished_run))
        events.Reload()
        assert {"total_loss", "loss_dice", "lr", "segm/AP", "prompt/mIoU"} <= set(events.Tags()["scalars"])
        assert [point.step for point in events.Scalars("lr")] == [1, 3, 5]

    def test_report(self, finished_run, shapes_folder):
        rows = rows_of(finished_run)
        assert rows.keys() == METHODS
        # with prompts from the ground truth there is no bbox AP
        kinds = {(row.prompt, row.prompt_source, row.task, row.split) for row in rows.values()}
        assert kinds == {("box", "ground_truth", "segm", f"{shapes_folder.name}_test")}
        assert [rows[method].score for method in ("model", "base")] == ["predicted_iou"] * 2
        assert {"AP", "AP50", "AR", "mIoU"} <= rows["model"].metrics.keys()
        iou = {method: row.metric("mIoU") for method, row in rows.items()}
        assert 0 < iou["model"] < 1 and iou["model"] != iou["base"]
        assert iou["box_as_mask"] > iou["ellipse"] > iou["model"]

    def test_the_log_says_oracle_and_which_detectron2(self, finished_run):
        log = (finished_run / "log.txt").read_text()
        assert "oracle: ground-truth prompts" in log
        assert "detectron2 0.6" in log
        assert "WORSE than" in log and "the box as mask (AP " in log
        assert re.search(r"step 6/6  eta 0:00:00  total_loss .* images/s  memory \d+ MiB", log)

    def test_the_saved_config_is_the_one_that_ran(self, finished_run, shapes_folder):
        cfg = load_config(finished_run / "config.yaml")
        assert cfg.train.max_iter == 6 and cfg.model.image_encoder.depth == 1
        assert cfg.train.output_dir == str(finished_run)
        assert cfg.dataloader.train.dataset.names == f"{shapes_folder.name}_train"

    def test_training_changes_every_part_of_the_model(self, finished_run, copied_run, train_net):
        train_net(copied_run.parent / "unchanged", "train.max_iter=1", "optimizer.lr=0", "train.eval_base=false")
        before, after = weights(copied_run.parent / "unchanged"), weights(finished_run)
        for part in ("image_encoder", "prompt_encoder", "mask_decoder"):
            assert any(not torch.equal(before[key], after[key]) for key in after if key.startswith(part)), part


class TestEvalOnly:
    def test_it_repeats_every_figure_to_the_last_digit(self, finished_run, copied_run, train_net):
        (copied_run / "report.json").unlink()
        (copied_run / "coco_instances_results.json").unlink()
        train_net(copied_run, "--eval-only")
        model, trained = (rows_of(folder)["model"] for folder in (copied_run, finished_run))
        assert trained.metric("mIoU") > 0
        assert model.metrics.keys() == trained.metrics.keys()
        assert all(model.metric(name) == value or value != value for name, value in trained.metrics.items())
        # not the figures alone: the same masks with the same scores
        detections = [(folder / "coco_instances_results.json").read_text() for folder in (copied_run, finished_run)]
        assert len(json.loads(detections[0])) > 0 and detections[0] == detections[1]

    def test_it_changes_nothing_of_the_training(self, finished_run, copied_run, train_net):
        train_net(copied_run, "--eval-only")
        for name in ("config.yaml", "metrics.json", "model_final.pth", "model_best.pth", "last_checkpoint"):
            assert (copied_run / name).read_bytes() == (finished_run / name).read_bytes(), name
        assert rows_of(copied_run).keys() == METHODS  # the base's row is kept

    def test_a_named_checkpoint_is_the_one_that_is_scored(self, finished_run, tmp_path, train_net, capsys):
        train_net(tmp_path / "other", "--eval-only", f"train.init_checkpoint={finished_run / 'model_0000003.pth'}")
        assert "model_0000003.pth (named on the command line)" in capsys.readouterr().out
        assert rows_of(tmp_path / "other")["model"].metric("mIoU") != rows_of(finished_run)["model"].metric("mIoU")

    def test_more_images_at_once_and_workers_change_nothing(self, finished_run, copied_run, train_net):
        (copied_run / "report.json").unlink()
        train_net(copied_run, "--eval-only", "dataloader.test.batch_size=3", "dataloader.test.num_workers=1")
        several, single = (rows_of(folder)["model"] for folder in (copied_run, finished_run))
        assert several.metric("mIoU") == pytest.approx(single.metric("mIoU"), abs=1e-3)


class Stop:
    """Ends the training like Ctrl-C before a step."""

    def __init__(self, monkeypatch, iteration):
        run_step = Trainer.run_step

        def stopping(trainer):
            if trainer.iter == iteration:
                raise KeyboardInterrupt
            run_step(trainer)

        monkeypatch.setattr(Trainer, "run_step", stopping)


class TestResume:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_an_interrupted_run_ends_with_the_same_weights_bit_for_bit(
        self, finished_run, tmp_path, train_net, monkeypatch, workers, tiny_overrides
    ):
        # a checkpoint after step 3, interrupted before step 5: step 4 is done twice
        arguments = ["train.max_iter=6", "train.checkpointer.period=3", "train.eval_period=3", "train.log_period=1"]
        overrides = [*tiny_overrides, f"dataloader.train.num_workers={workers}"]
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            Stop(patch, 4)
            train_net(tmp_path / "run", *arguments, overrides=overrides)
        assert not (tmp_path / "run" / "model_final.pth").exists()
        train_net(tmp_path / "run", *arguments, "--resume", overrides=overrides)
        iterations = [row["iteration"] for row in metrics(tmp_path / "run") if "data_time" in row]
        assert iterations == [0, 1, 2, 3, 3, 4, 5]
        assert_equal_weights(weights(tmp_path / "run"), weights(finished_run))
        resumed, whole = rows_of(tmp_path / "run"), rows_of(finished_run)
        assert resumed.keys() == METHODS
        for method in ("model", "base"):  # the base's row is of the first part
            assert resumed[method].metrics["mIoU"] == whole[method].metrics["mIoU"]

    @pytest.mark.slow
    def test_a_run_with_dropout_too(self, tmp_path, train_net, root, monkeypatch):
        pytest.importorskip("peft")
        arguments = ["--config-file", str(root / "configs" / "sam_tiny_lora.py"), "model.image_encoder.dropout=0.5"]
        arguments += ["train.max_iter=4", "train.checkpointer.period=2", "train.eval_period=0", "train.eval_base=false"]
        train_net(tmp_path / "whole", *arguments)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            Stop(patch, 3)
            train_net(tmp_path / "run", *arguments)
        train_net(tmp_path / "run", *arguments, "--resume")
        assert_equal_weights(weights(tmp_path / "run"), weights(tmp_path / "whole"))

    def test_a_finished_run_is_scored_again_and_not_trained(self, finished_run, copied_run, train_net):
        (copied_run / "log.txt").unlink()
        train_net(copied_run, "--resume", "train.max_iter=6", "train.eval_period=3")
        for name in ("model_final.pth", "model_best.pth", "model_0000005.pth"):
            assert (copied_run / name).read_bytes() == (finished_run / name).read_bytes(), name
        assert rows_of(copied_run).keys() == METHODS
        assert rows_of(copied_run)["model"].metrics["mIoU"] == rows_of(finished_run)["model"].metrics["mIoU"]
        # the same points in the curves: evaluated after steps 3 and 6
        first, again = (read_curves(folder / "metrics.json") for folder in (finished_run, copied_run))
        assert again == first and [step for step, _ in again["segm/AP"]] == [2, 6]
        # the base, which the first process had scored, is in the table of this one too
        table = (copied_run / "log.txt").read_text().rpartition("results\n")[2]
        assert re.search(r"^ +base +\d", table, re.MULTILINE)
        assert "model_final.pth, step 6<" in (copied_run / "report.html").read_text()

    def test_another_training_is_refused_before_anything_is_written(self, finished_run, copied_run, train_net):
        changed = ["--prompt", "point", "train.max_iter=9", "dataloader.train.num_workers=1", "train.seed=4"]
        with pytest.raises(UserError, match=r"model\.prompt box -> point; train\.seed 0 -> 4\. Repeat"):
            train_net(copied_run, "--resume", *changed)
        before, after = ({f.name: f.read_bytes() for f in folder.iterdir()} for folder in (finished_run, copied_run))
        assert before == after

    def test_more_steps_and_another_rate_are_allowed_and_said(self, copied_run, train_net):
        train_net(copied_run, "--resume", "train.max_iter=8", "optimizer.lr=0.5", "train.log_period=1")
        log = (copied_run / "log.txt").read_text()
        assert "train.max_iter 6 -> 8: from here on" in log and "optimizer.lr 0.002 -> 0.5: from here on" in log
        # cosine from 1 to 0.01, after 6 of 8 steps, already at the first one
        rate = 0.5 * (0.01 + 0.99 * (1 + math.cos(math.pi * 6 / 8)) / 2)
        rates = {row["iteration"]: row["lr"] for row in metrics(copied_run) if "lr" in row}
        assert rates[6] == pytest.approx(rate)
        assert torch.load(copied_run / "model_final.pth", weights_only=True)["iteration"] == 7

    def test_it_begins_where_there_is_nothing_to_go_on_from(self, tmp_path, train_net):
        train_net(tmp_path / "new", "--resume", "train.max_iter=1", "train.eval_base=false")
        assert (tmp_path / "new" / "model_final.pth").is_file()


class TestConfigYaml:
    def test_it_can_be_the_config_file(self, finished_run, tmp_path, train_net):
        again = train_net(tmp_path / "again", "--config-file", str(finished_run / "config.yaml"), overrides=[])
        assert_equal_weights(weights(again), weights(finished_run))

    def test_it_names_its_dataset_which_another_one_replaces(self, finished_run, shapes_folder, tmp_path, train_net):
        def build(*arguments):
            line = ["--config-file", str(finished_run / "config.yaml"), *arguments]
            return train_net.module.build_cfg(train_net.module.parse_args(line))

        names = [f"{shapes_folder.name}_train", f"{shapes_folder.name}_test"]
        assert dataset_names(build()) == names
        other = shutil.copytree(shapes_folder, tmp_path / "other_shapes")
        others = ["other_shapes_train", "other_shapes_test"]
        assert dataset_names(build("--dataset", str(other))) == others
        assert dataset_names(build(f"train.dataset={other}")) == others
        mixed = build("--dataset", str(other), "dataloader.test.dataset.names=mine")
        assert dataset_names(mixed) == ["other_shapes_train", "mine"]


def dataset_names(cfg):
    return [cfg.dataloader.train.dataset.names, cfg.dataloader.test.dataset.names]


def test_point_prompts(tmp_path, train_net):
    folder = train_net(tmp_path / "point", "--prompt", "point", "train.max_iter=1", "train.eval_base=false")
    assert {(row.prompt, row.prompt_source) for row in rows_of(folder).values()} == {("point", "ground_truth")}
    assert "prompt point | oracle: ground-truth prompts |" in (folder / "log.txt").read_text()


def test_mixed_precision_and_clipping(tmp_path, train_net):
    options = ["train.amp.enabled=true", "train.clip_gradient_norm=0.1", "train.eval_base=false"]
    folder = train_net(tmp_path / "amp", "train.max_iter=2", "train.log_period=1", *options)
    assert {tensor.dtype for tensor in weights(folder).values()} == {torch.float32}
    assert all(row["total_loss"] > 0 for row in metrics(folder) if "total_loss" in row)


class TestRefusals:
    """Each with a message that names the fix, before anything is written."""

    def expect(self, train_net, folder, *arguments, match, **options):
        with pytest.raises(UserError, match=match) as caught:
            train_net(folder, *arguments, **options)
        assert not folder.exists()
        return str(caught.value)

    def test_unknown_dataset(self, train_net, tmp_path):
        self.expect(train_net, tmp_path / "run", "--dataset", "quickstrat", match="Did you mean 'quickstart'")
        self.expect(train_net, tmp_path / "run", "--dataset", "no/where", match="no/where: no such folder or file")

    def test_unknown_prompt(self, train_net, tmp_path):
        self.expect(train_net, tmp_path / "run", "--prompt", "bx", match="--prompt bx: .*Did you mean 'box'")
        self.expect(train_net, tmp_path / "run", "--prompt", "clicks_1", match="for a test only")

    def test_numbers_out_of_range(self, train_net, tmp_path):
        self.expect(train_net, tmp_path / "run", "train.max_iter=0", match="max_iter=0: expected a whole number")

    def test_nothing_to_train(self, train_net, tmp_path):
        with pytest.raises(UserError, match=r"no parameter to train\. Take a part out of model\.freeze"):
            train_net(tmp_path / "run", "model.freeze=[image_encoder,prompt_encoder,mask_decoder]")

    def test_missing_checkpoint_with_its_address(self, train_net, tmp_path, monkeypatch, root):
        monkeypatch.setenv("SAM_D2_CHECKPOINTS", str(tmp_path))
        name = "sam_vit_b_01ec64.pth"
        if (root / "checkpoints" / name).exists():
            pytest.skip(f"checkpoints/{name} is there")
        monkeypatch.chdir(tmp_path)
        config = ["--config-file", str(root / "configs" / "sam.py")]
        message = self.expect(train_net, tmp_path / "run", *config, overrides=[], match=f"Checkpoint {name}")
        assert f"https://dl.fbaipublicfiles.com/segment_anything/{name}" in message

    def test_eval_only_without_a_checkpoint(self, train_net, tmp_path):
        message = self.expect(train_net, tmp_path / "run", "--eval-only", match=r"run/model_final\.pth does not exist")
        assert "Train first" in message

    def test_a_run_that_was_stopped_is_scored_by_the_checkpoint_that_is_named_or_ended(
        self, train_net, copied_run, finished_run
    ):
        """Fewer steps end it where it is, with the weights that it has."""
        newest = copied_run / (copied_run / "last_checkpoint").read_text()
        (copied_run / "model_final.pth").unlink()
        with pytest.raises(UserError, match=rf"the run has not ended\. Add train\.init_checkpoint={newest} to score"):
            train_net(copied_run, "--eval-only")
        with pytest.raises(UserError, match=rf"the run has not ended\. Name its newest checkpoint instead: {newest}"):
            checkpoint_of(str(copied_run))
        train_net(copied_run, "--resume", "train.max_iter=3")
        ended, whole = weights(copied_run), weights(finished_run)
        assert ended.keys() == whole.keys() and all(torch.equal(ended[name], whole[name]) for name in whole)
        log = (copied_run / "log.txt").read_text()
        assert "Already trained to step 6: only scored" in log and "from here on the run differs" not in log

    def test_a_second_run_in_the_same_folder(self, train_net, copied_run, finished_run):
        with pytest.raises(UserError, match=r"copied holds an earlier run\. Add --resume .* --output-dir"):
            train_net(copied_run)
        assert (copied_run / "log.txt").read_bytes() == (finished_run / "log.txt").read_bytes()

    def test_a_resume_that_trains_something_else_leaves_the_run_as_it_was(self, train_net, copied_run):
        checkpoint = copied_run / (copied_run / "last_checkpoint").read_text()
        saved = torch.load(checkpoint, weights_only=False)
        del saved["run"]  # as of an early sam_d2: only loading shows that it does not fit
        torch.save(saved, checkpoint)
        before = {file: file.read_bytes() for file in copied_run.glob("*.*") if file.name != "log.txt"}
        with pytest.raises(UserError, match=f"{checkpoint.name}: other parameters are trained .*config.yaml beside it"):
            train_net(copied_run, "--resume", "model.freeze=[image_encoder,prompt_encoder]", "train.max_iter=9")
        assert {file: file.read_bytes() for file in copied_run.glob("*.*") if file.name != "log.txt"} == before

    def test_prompt_of_a_model_without_prompts(self, train_net, finished_run, tmp_path):
        cfg = load_config(finished_run / "config.yaml")
        del cfg.model["prompts"]
        from sam_d2.config import save_config

        save_config(cfg, tmp_path / "mask_rcnn.yaml")
        arguments = ["--config-file", str(tmp_path / "mask_rcnn.yaml"), "--prompt", "box"]
        message = self.expect(train_net, tmp_path / "run", *arguments, overrides=[], match="--prompt box: the model")
        assert "mask_rcnn.yaml takes no prompts" in message

    def test_another_models_checkpoint(self, train_net, finished_run, tmp_path, tiny_overrides):
        arguments = ["--eval-only", f"train.init_checkpoint={finished_run / 'model_final.pth'}"]
        other = [*tiny_overrides, "model.image_encoder.depth=2", "model.image_encoder.mlp_ratio=2"]
        with pytest.raises(UserError, match=r"does not fit the model: .*missing from the file .*instead of"):
            train_net(tmp_path / "run", *arguments, overrides=other)


class TestCommandLine:
    """As a program: exit code 2, the message alone on stderr."""

    def run(self, root, *arguments):
        command = [sys.executable, "-W", "ignore", str(root / "experiments" / "train_net.py"), *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)

    def test_unknown_key(self, root, tmp_path):
        config = ["--config-file", str(root / "configs" / "sam_tiny.py"), "--output-dir", str(tmp_path / "run")]
        ended = self.run(root, *config, "--dataset", "quickstart", "train.max_itr=3")
        assert ended.returncode == 2 and ended.stdout == ""
        assert ended.stderr.startswith("error: override 'train.max_itr=3'")
        assert "Did you mean 'train.max_iter'" in ended.stderr and ended.stderr.count("\n") == 1
        assert not (tmp_path / "run").exists()

    def test_an_image_that_breaks_during_training(self, root, shapes_folder, tmp_path, tiny_overrides):
        data = shutil.copytree(shapes_folder, tmp_path / "data")
        for file in data.glob("train_*.png"):
            file.write_bytes(file.read_bytes()[:150])
        config = ["--config-file", str(root / "configs" / "sam_tiny.py"), "--output-dir", str(tmp_path / "run")]
        overrides = [*tiny_overrides, "dataloader.train.num_workers=1", "train.eval_base=false"]
        ended = self.run(root, *config, "--dataset", str(data), *overrides)
        assert ended.returncode == 2
        line = r"error: \S*/train_\d\.png: not a readable image \(.*\)\. Replace the file or leave it out\.\n"
        assert re.fullmatch(line, ended.stderr), ended.stderr
        assert "Traceback" not in ended.stdout + (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.slow
def test_it_learns(tmp_path, train_net):
    """Shapes like those it was trained on: nearly all of every mask, beyond what the box alone gives."""
    options = ["train.max_iter=400", "optimizer.lr=4e-3", "train.eval_period=0", "train.log_period=20"]
    folder = train_net(tmp_path / "run", *options, "dataloader.train.mapper.augmentations=[]")
    rows = rows_of(folder)
    assert rows["model"].metric("mIoU") > 0.9
    assert rows["model"].metric("AP") > 80 > rows["box_as_mask"].metric("AP")
    assert all(rows["model"].metric("mIoU") > rows[other].metric("mIoU") for other in METHODS - {"model"})
    losses = [row["total_loss"] for row in metrics(folder) if "total_loss" in row]
    assert losses[-1] < losses[0] / 3
    train_net(folder, "--eval-only")
    again = rows_of(folder)["model"]
    assert all(again.metric(name) == rows["model"].metric(name) for name in ("AP", "AR", "mIoU"))
    assert "WORSE" not in (folder / "log.txt").read_text().rpartition("results\n")[2]


def test_a_start_whose_weights_do_not_fit_leaves_nothing_in_the_way(train_net, tmp_path):
    torch.save({"model": {"other.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    options = ["train.max_iter=1", "train.eval_base=false"]
    with pytest.raises(UserError, match="does not fit the model"):
        train_net(tmp_path / "run", *options, f"train.init_checkpoint={tmp_path / 'other.pth'}")
    train_net(tmp_path / "run", *options)
    assert (tmp_path / "run" / "model_final.pth").is_file()
