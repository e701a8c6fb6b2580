"""What happens around a training: the run folder, the checkpoint that is meant."""

import argparse
import logging

import pytest
import torch
from omegaconf import OmegaConf

from detectron2.utils import comm
from sam_d2.engine.run import LOCK, begin_run, checkpoint_to_evaluate, initial_weights
from sam_d2.engine.weights import FOLDER_VARIABLE
from sam_d2.errors import UserError


@pytest.fixture(autouse=True)
def quiet(restore_loggers, monkeypatch, tmp_path):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)


def arguments(**options):
    return argparse.Namespace(**{"resume": False, "eval_only": False, "opts": [], **options})


@pytest.fixture
def cfg(tmp_path):
    groups = {name: {} for name in ("model", "dataloader", "optimizer", "lr_multiplier")}
    train = {"output_dir": str(tmp_path / "run"), "seed": 3, "init_checkpoint": ""}
    return OmegaConf.create({**groups, "train": train})


class TestBeginRun:
    def test_a_new_folder_holds_a_log(self, cfg, tmp_path):
        begin_run(cfg, arguments()).close()
        folder = tmp_path / "run"
        assert [file.name for file in folder.iterdir()] == ["log.txt"]
        log = (folder / "log.txt").read_text()
        assert "detectron2 " in log and f"torch {torch.__version__}" in log

    @pytest.mark.parametrize("left", ["", "wandb", "log.txt.rank1", "config.yaml"])
    def test_an_empty_folder_and_one_of_a_start_that_failed_are_new_ones(self, cfg, tmp_path, left):
        (tmp_path / "run").mkdir()
        if left:
            (tmp_path / "run" / left).touch()
        begin_run(cfg, arguments())
        assert (tmp_path / "run" / "log.txt").is_file()

    def test_it_counts_the_processes(self, cfg, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(comm, "get_world_size", lambda: 3)
        monkeypatch.setattr(comm, "all_gather", lambda value: [value] * 3)
        monkeypatch.setattr(comm, "synchronize", lambda: None)
        begin_run(cfg, arguments())
        assert "CPU threads, 3 processes" in (tmp_path / "run" / "log.txt").read_text()

    def test_machines_that_do_not_share_the_folder(self, cfg, tmp_path, monkeypatch):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "model_0000003.pth").touch()
        monkeypatch.setattr(comm, "all_gather", lambda value: [value, False])
        with pytest.raises(UserError, match=r"--resume: .*run is not the same folder for all processes\. .*share"):
            begin_run(cfg, arguments(resume=True))

    @pytest.mark.parametrize("inside", ["", "deeper/run"])
    def test_a_file_where_the_folder_is_to_be(self, cfg, tmp_path, inside):
        (tmp_path / "run").write_text("mine")
        cfg.train.output_dir = str(tmp_path / "run" / inside)
        with pytest.raises(UserError, match=r"^train\.output_dir .*run is a file, not a folder\."):
            begin_run(cfg, arguments())
        assert (tmp_path / "run").read_text() == "mine"

    def test_a_folder_with_a_run_is_left_alone_and_both_ways_out_are_named(self, cfg, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "model_final.pth").touch()
        with pytest.raises(UserError, match=r"run holds an earlier run\. Add --resume .* or --output-dir DIR"):
            begin_run(cfg, arguments())
        assert [file.name for file in (tmp_path / "run").iterdir()] == ["model_final.pth"]

    @pytest.mark.parametrize("option", ["resume", "eval_only"])
    def test_resume_and_eval_only_enter_it(self, cfg, tmp_path, option):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "model_final.pth").touch()
        begin_run(cfg, arguments(**{option: True})).close()
        assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["log.txt", "model_final.pth"]

    @pytest.mark.parametrize("tag", [None, "", "model_0000003.pth"])
    def test_resume_begins_at_step_0_only_where_there_is_nothing_to_go_on_from(self, cfg, tmp_path, monkeypatch, tag):
        monkeypatch.setattr("sam_d2.engine.run.check_resume", lambda cfg: ["it goes on"])
        (tmp_path / "run").mkdir()
        log = tmp_path / "run" / "log.txt"
        if tag is not None:
            (tmp_path / "run" / "last_checkpoint").write_text(tag)
        begin_run(cfg, arguments(resume=True)).close()
        assert ("holds no checkpoint, so the run begins at step 0" in log.read_text()) == (not tag)
        log.write_text("")
        (tmp_path / "run" / "model_0000003.pth").touch()
        begin_run(cfg, arguments(resume=True))
        assert "it goes on" in log.read_text() and "holds no checkpoint" not in log.read_text()

    def test_the_seed_decides_the_random_numbers(self, cfg, tmp_path):
        draws = []
        for number in range(3):
            cfg.train.output_dir = str(tmp_path / f"run{number}")
            cfg.train.seed = number // 2
            begin_run(cfg, arguments())
            draws.append(torch.rand(1).item())
        assert draws[0] == draws[1] != draws[2]

    def test_a_second_run_of_a_process_has_a_log_of_its_own(self, cfg, tmp_path, capsys, monkeypatch):
        logger = logging.getLogger("sam_d2")
        monkeypatch.setattr(logger, "propagate", True)
        mine = logging.NullHandler()
        for number in range(2):
            cfg.train.output_dir = str(tmp_path / f"run{number}")
            with begin_run(cfg, arguments()):
                logger.addHandler(mine)
                logger.info("within run %d", number)
        assert logger.propagate and logger.handlers[-1] is mine
        with begin_run(cfg, arguments(resume=True)):  # in the folder of the second
            logger.info("once more")
        logger.info("afterwards")
        logs = [(tmp_path / f"run{number}" / "log.txt").read_text() for number in range(2)]
        assert logs[0].count("within run 0") == logs[1].count("within run 1") == logs[1].count("once more") == 1
        assert "run 1" not in logs[0] and "afterwards" not in logs[1]
        shown = capsys.readouterr().out
        assert shown.count("within run 1") == shown.count("once more") == 1 and "afterwards" not in shown
        assert not any((tmp_path / f"run{number}" / LOCK).exists() for number in range(2))

    @pytest.mark.parametrize("asked", [True, False])
    def test_cudnn_may_choose_its_kernels_again_afterwards(self, cfg, monkeypatch, asked):
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", asked)
        with begin_run(cfg, arguments()):
            assert not torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.benchmark is asked

    @pytest.mark.parametrize("option", [{}, {"eval_only": True}, {"resume": True}])
    def test_what_cannot_begin_leaves_no_folder(self, cfg, tmp_path, option):
        cfg.train.init_checkpoint = "nothing.pth"
        with pytest.raises(UserError, match=r"nothing\.pth is not found"):
            begin_run(cfg, arguments(**option))
        assert not (tmp_path / "run").exists()


class TestInitialWeights:
    def test_the_file_that_the_config_names(self, cfg, tmp_path):
        assert initial_weights(cfg, arguments()) is None
        (tmp_path / "base.pth").touch()
        cfg.train.init_checkpoint = str(tmp_path / "base.pth")
        assert initial_weights(cfg, arguments()) == tmp_path / "base.pth"

    def test_a_run_that_goes_on_needs_none(self, cfg, tmp_path):
        cfg.train.init_checkpoint = "gone.pth"
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "last_checkpoint").write_text("model_0000001.pth")
        assert initial_weights(cfg, arguments(resume=True)) is None
        with pytest.raises(UserError, match=r"gone\.pth"):
            initial_weights(cfg, arguments())


class TestCheckpointToEvaluate:
    """The command line's, else the run's final one, else what the config begins with."""

    @pytest.fixture
    def files(self, tmp_path):
        files = {name: tmp_path / name for name in ("named.pth", "base.pth")}
        files["final"] = tmp_path / "run" / "model_final.pth"
        files["final"].parent.mkdir()
        for file in files.values():
            file.touch()
        return files

    @pytest.fixture(autouse=True)
    def log(self, caplog):
        caplog.set_level(logging.INFO, "sam_d2")
        return caplog

    def test_the_command_line_wins(self, cfg, files, log):
        cfg.train.init_checkpoint = str(files["named.pth"])
        for option in (f"train.init_checkpoint={files['named.pth']}", f"+train.init_checkpoint={files['named.pth']}"):
            assert checkpoint_to_evaluate(cfg, arguments(opts=["train.seed=1", option])) == files["named.pth"]
        assert f"Evaluating {files['named.pth']} (named on the command line)" in log.text

    def test_then_the_runs_own(self, cfg, files, log):
        cfg.train.init_checkpoint = str(files["base.pth"])
        assert checkpoint_to_evaluate(cfg, arguments(opts=["train.seed=1"])) == files["final"]
        assert "the run's final checkpoint" in log.text

    def test_an_empty_name_is_no_name(self, cfg, files):
        assert checkpoint_to_evaluate(cfg, arguments(opts=["train.init_checkpoint="])) == files["final"]

    def test_then_what_the_config_begins_with(self, cfg, files, log):
        files["final"].unlink()
        cfg.train.init_checkpoint = str(files["base.pth"])
        assert checkpoint_to_evaluate(cfg, arguments()) == files["base.pth"]
        assert "model_final.pth does not exist" in log.text

    def test_none_at_all(self, cfg, tmp_path):
        with pytest.raises(UserError, match=r"model_final\.pth does not exist\. Train first, or name a checkpoint"):
            checkpoint_to_evaluate(cfg, arguments())

    def test_a_named_one_that_is_missing_is_not_replaced_by_another(self, cfg, files):
        cfg.train.init_checkpoint = "typo.pth"
        with pytest.raises(UserError, match=r"typo\.pth is not found"):
            checkpoint_to_evaluate(cfg, arguments(opts=["train.init_checkpoint=typo.pth"]))
