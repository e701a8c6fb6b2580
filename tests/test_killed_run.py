"""A training that is killed without a chance to say goodbye, and resumed, ends with the same bits."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

STEPS = ["train.max_iter=12", "train.checkpointer.period=4", "train.eval_period=0", "train.eval_base=false"]
KILLED = """
import os, runpy, signal, sys
import sam_d2
from sam_d2.engine.trainer import Trainer

run_step = Trainer.run_step

def killed(trainer):
    if trainer.iter == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    run_step(trainer)

Trainer.run_step = killed
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs the program of the command line; killed from outside it would be elsewhere each time."""


@pytest.fixture(scope="module")
def program(root, shapes_folder, tiny_overrides):
    """``program(folder, workers, *arguments, before=...)``: train_net.py in a process of its own, and its exit code."""

    def run(folder, workers, *arguments, before=()):
        command = [sys.executable, "-W", "ignore", *before, str(root / "experiments" / "train_net.py")]
        command += ["--config-file", str(root / "configs" / "sam_tiny.py"), "--dataset", str(shapes_folder)]
        overrides = [*tiny_overrides, *STEPS, "train.log_period=1", f"dataloader.train.num_workers={workers}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        line = [*command, "--output-dir", str(folder), *arguments, *overrides]
        return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=600)

    return run


@pytest.fixture(scope="module")
def whole(program, tmp_path_factory):
    """Weights of the run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    done = program(folder, 0)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_same_weights_bit_for_bit(program, whole, tmp_path, workers):
    folder = tmp_path / "run"
    killed = program(folder, workers, before=("-c", KILLED))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (folder / "last_checkpoint").read_text() == "model_0000003.pth"
    assert not (folder / "model_final.pth").exists()
    resumed = program(folder, workers, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    iterations = [json.loads(line)["iteration"] for line in (folder / "metrics.json").read_text().splitlines()]
    # 7 steps were taken, the last 3 of them without a checkpoint; 12 is the evaluation after the training
    assert iterations == [*range(7), *range(4, 13)]
    weights = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    assert weights.keys() == whole.keys() and len(weights) > 50
    torch.testing.assert_close(weights, whole, rtol=0, atol=0)
