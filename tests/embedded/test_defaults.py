"""The set-up that training scripts share."""

import argparse
import json
import logging
import random

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import sam_d2  # noqa: F401
from detectron2.config import LazyConfig
from detectron2.engine import (
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
    defaults,
)
from detectron2.utils.events import CommonMetricPrinter, EventStorage, JSONWriter, TensorboardXWriter

LOGGERS = ("detectron2", "fvcore")


@pytest.fixture(autouse=True)
def as_before():
    """Undo what a set-up does to the whole process: loggers, random numbers, cuDNN."""
    loggers = {name: logging.getLogger(name) for name in LOGGERS}
    kept = {name: (log.handlers[:], log.propagate, log.level) for name, log in loggers.items()}
    benchmark, generator = torch.backends.cudnn.benchmark, torch.get_rng_state()
    yield
    for name, log in loggers.items():
        for handler in set(log.handlers) - set(kept[name][0]):
            handler.close()
        log.handlers, log.propagate = kept[name][0], kept[name][1]
        log.setLevel(kept[name][2])
    torch.backends.cudnn.benchmark = benchmark
    torch.set_rng_state(generator)


def arguments(*line):
    return default_argument_parser().parse_args(list(line))


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


class TestArgumentParser:
    def test_defaults(self):
        args = vars(arguments())
        url = args.pop("dist_url")
        assert args == {
            "config_file": "",
            "resume": False,
            "eval_only": False,
            "num_gpus": 1,
            "num_machines": 1,
            "machine_rank": 0,
            "opts": [],
        }
        host, port = url.rsplit(":", 1)
        assert host == "tcp://127.0.0.1"
        assert 2**15 + 2**14 <= int(port) < 2**16
        assert arguments().dist_url == url  # the same each time

    def test_values(self):
        args = arguments(
            "--config-file", "c.py", "--num-gpus", "2", "--num-machines", "3", "--machine-rank", "1",
            "--dist-url", "auto", "--resume", "--eval-only", "train.max_iter=5", "model.x=1",
        )  # fmt: skip
        assert (args.config_file, args.num_gpus, args.num_machines, args.machine_rank) == ("c.py", 2, 3, 1)
        assert (args.dist_url, args.resume, args.eval_only) == ("auto", True, True)
        assert args.opts == ["train.max_iter=5", "model.x=1"]

    def test_epilog(self):
        assert default_argument_parser(epilog="call it so").epilog == "call it so"
        assert "--num-gpus 8" in default_argument_parser().format_help()


class TestSetup:
    def config(self, folder, **train):
        return OmegaConf.create({"train": {"output_dir": str(folder), "seed": 7, **train}, "model": {"depth": 2}})

    def test_output_folder(self, tmp_path):
        out = tmp_path / "new" / "run"
        cfg = self.config(out)
        default_setup(cfg, arguments())
        assert LazyConfig.load(str(out / "config.yaml")) == cfg
        log = (out / "log.txt").read_text()
        assert "Rank of current process: 0. World size: 1" in log
        assert "Environment info" in log

    def test_config_file_is_logged(self, tmp_path):
        config_file = tmp_path / "c.py"
        config_file.write_text("depth = 2\n")
        default_setup(self.config(tmp_path / "run"), arguments("--config-file", str(config_file)))
        assert str(config_file) in (tmp_path / "run" / "log.txt").read_text()

    def test_seed(self, tmp_path):
        drawn = []
        for run, seed in (("a", 7), ("b", 7), ("c", 8)):
            default_setup(self.config(tmp_path / run, seed=seed), arguments())
            assert torch.initial_seed() == seed  # rank 0
            drawn.append(draw())
        assert drawn[0] == drawn[1]
        assert all(one != other for one, other in zip(drawn[0], drawn[2], strict=True))

    def test_without_a_seed_numbers_differ(self, tmp_path):
        drawn = []
        for run in "ab":
            default_setup(self.config(tmp_path / run, seed=-1), arguments())
            drawn.append(draw())
        assert drawn[0] != drawn[1]

    @pytest.mark.parametrize(("options", "expected"), [([], True), (["--eval-only"], False)])
    def test_cudnn_benchmark(self, tmp_path, options, expected):
        torch.backends.cudnn.benchmark = False
        default_setup(self.config(tmp_path, cudnn_benchmark=True), arguments(*options))
        assert torch.backends.cudnn.benchmark is expected

    def test_without_an_output_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        default_setup(OmegaConf.create({"train": {"seed": 1}}), argparse.Namespace())
        assert list(tmp_path.iterdir()) == []


def test_writers(tmp_path):
    out = tmp_path / "new"
    writers = default_writers(str(out), 10)
    assert [type(writer) for writer in writers] == [CommonMetricPrinter, JSONWriter, TensorboardXWriter]
    with EventStorage(3) as storage:
        storage.put_scalar("total_loss", 2.5)
        for writer in writers:
            writer.write()
            writer.close()
    assert json.loads((out / "metrics.json").read_text())["total_loss"] == 2.5
    assert list(out.glob("events.out.tfevents.*"))


def test_a_single_process_needs_no_ddp():
    model = nn.Linear(1, 1)
    assert create_ddp_model(model, fp16_compression=True, find_unused_parameters=True) is model


def test_public_names():
    for name in ("create_ddp_model", "default_argument_parser", "default_setup", "default_writers"):
        assert hasattr(defaults, name)
