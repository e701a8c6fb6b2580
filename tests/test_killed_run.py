"""A training that is killed without a chance to say goodbye, and resumed, ends with the same bits."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from detectron2.utils import comm

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


@pytest.mark.slow  # the short run has forked processes alone: these import for longer than they train
@pytest.mark.parametrize("workers", [0, 2])
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


CACHED = ["model.freeze=[image_encoder,prompt_encoder]", "train.cache_embeddings=true"]
KINDS = {"one process": (1, []), "workers": (1, ["dataloader.train.num_workers=2"]), "cache": (1, CACHED),
         "two ranks": (2, CACHED)}  # fmt: skip
OFTEN = ["train.max_iter=8", "train.checkpointer.period=1", "train.eval_period=4", "train.eval_base=false"]
"""Steps with a checkpoint after each, and an evaluation in the middle and at the end."""


def slow_save(save):
    """Write as torch does, but with a pause in the middle: half of a run's time is then within a checkpoint."""

    def halves(data, file):
        save(data, buffer := io.BytesIO())
        content = buffer.getvalue()
        file.write(content[: len(content) // 2])
        file.flush()
        time.sleep(0.04)
        file.write(content[len(content) // 2 :])

    return halves


@pytest.fixture(scope="module")
def forked_run(train_net, tiny_overrides, tmp_path_factory, finished_run):
    """``forked_run(kind, folder, *arguments)``: a training in processes of its own; returns their ids.

    They are forked, because imports take longer than the training: the finished run has done them.
    """

    def process(kind, rank, folder, meeting, arguments):
        os.setsid()
        torch.set_num_threads(1)
        torch.save = slow_save(torch.save)
        processes, options = KINDS[kind]
        if processes > 1:
            url = f"file://{meeting}"
            torch.distributed.init_process_group("gloo", init_method=url, rank=rank, world_size=processes)
            comm.create_local_process_group(processes)
        sys.stdout = sys.stderr = (folder.parent / f"{folder.name}.{rank}.txt").open("a")
        try:
            train_net(folder, *arguments, overrides=[*tiny_overrides, *OFTEN, *options])
            os._exit(0)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)

    def start(kind, folder, *arguments):
        meeting, ids = tmp_path_factory.mktemp("meeting") / "point", []
        for rank in range(KINDS[kind][0]):
            if (pid := os.fork()) == 0:
                process(kind, rank, folder, meeting, arguments)
            ids.append(pid)
        return ids

    return start


def ends(ids):
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ids]


def final_weights(folder):
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def kill(ids, after):
    """Kill processes together after so many seconds; False where one had ended by then."""
    time.sleep(after)
    running = all(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None for pid in ids)
    for pid in ids:
        os.killpg(pid, signal.SIGKILL)
    ends(ids)
    return running


@pytest.fixture(scope="module")
def uninterrupted(forked_run, tmp_path_factory):
    """``uninterrupted(kind)``: weights and seconds of the run that nobody kills."""
    known = {}

    def run(kind):
        if kind not in known:
            folder, begun = tmp_path_factory.mktemp("apart") / "whole", time.perf_counter()
            assert set(ends(forked_run(kind, folder))) == {0}, folder.with_name("whole.0.txt").read_text()
            known[kind] = final_weights(folder), time.perf_counter() - begun
        return known[kind]

    return run


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_killed_at_any_moment(forked_run, uninterrupted, tmp_path, kind, seed):
    if seed == 0 and kind == "workers":
        pytest.skip("the short run has three kills, the long one 20")
    whole, seconds = uninterrupted(kind)
    folder = tmp_path / "run"
    # a run that is quicker this time ends by itself: no kill
    for share in (random.Random(f"{kind} {seed}").uniform(0.05, 0.9), 0.4, 0.2, 0.1):
        if kill(forked_run(kind, folder, "--resume"), share * seconds):
            break
    else:
        pytest.fail("every run has ended before it was killed")
    files = sorted(file.name for file in folder.iterdir()) if folder.exists() else []
    within = any(name.endswith(".partial") for name in files)
    print(f"killed after {share:.2f} of the run, within a write: {within}; {files}")
    assert set(ends(forked_run(kind, folder, "--resume"))) == {0}, (tmp_path / "run.0.txt").read_text()
    assert not list(folder.glob(".*"))
    resumed = final_weights(folder)
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
