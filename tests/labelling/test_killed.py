"""A labelling that is killed without a chance to say goodbye, or divided among processes, gives the same bytes."""

import os
import signal
import sqlite3
import subprocess
import sys

import pytest

KILLED = """
import os, runpy, signal, sys
import sam_d2
from sam_d2.labelling.labeller import BoxLabeller

label, left = BoxLabeller.__call__, [int(sys.argv[1])]

def killed(labeller, image):
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return label(labeller, image)

BoxLabeller.__call__ = killed
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs the program of the command line until so many images are done; killed from outside it would be elsewhere."""


@pytest.fixture(scope="module")
def program(root, tiny_sam):
    """``program(dataset, output, *words, before=...)``: the tool in a process of its own."""

    def run(dataset, output, *words, before=(), launcher=()):
        start = [sys.executable, "-W", "ignore", *before, *launcher]
        tool = str(root / "tools" / "masks_from_boxes.py")
        line = [*start, tool, "--dataset", dataset, "--config-file", tiny_sam, "--output", output, "--device", "cpu"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [*map(str, line), "--batch-size", "1", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    return run


def finished(output):
    files = sorted(output.with_name(f"{output.name}.journal").glob("finished-*.sqlite"))
    return [sqlite3.connect(file).execute("SELECT row FROM images ORDER BY row").fetchall() for file in files]


@pytest.mark.slow
def test_killed_and_begun_again(program, boxes, tmp_path):
    whole, output = tmp_path / "whole.json", tmp_path / "masks.json"
    assert program(boxes, whole).returncode == 0
    killed = program(boxes, output, before=("-c", KILLED, "2"))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not output.exists() and finished(output) == [[(0,), (1,)]]
    again = program(boxes, output)
    assert again.returncode == 0, again.stderr
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_two_processes_killed_and_gone_on_from_by_one(program, boxes, tmp_path):
    whole, output = tmp_path / "whole.json", tmp_path / "masks.json"
    assert program(boxes, whole).returncode == 0
    two = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = program(boxes, output, launcher=two)
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == whole.read_bytes()
    output.unlink()
    # (0, 4) are the first process's images, (1, 3) the second's. Killed at its second, it takes the other along.
    wrapped = tmp_path / "killed.py"
    wrapped.write_text(
        KILLED.replace("[int(sys.argv[1])]", "[{'0': 9, '1': 1}[os.environ['RANK']]]").replace("[2:]", "[1:]")
    )
    killed = program(boxes, output, launcher=(*two, wrapped))
    assert killed.returncode != 0 and not output.exists()
    assert finished(output)[1] == [(1,)]
    again = program(boxes, output)
    assert again.returncode == 0, again.stderr
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_wrong_input_of_two_processes_ends_both(program, boxes, tmp_path):
    boxes.write_text(boxes.read_text().replace("[4.0, 5, 20, 30]", "[4.0, 5, 20]"))
    two = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    ended = program(boxes, tmp_path / "masks.json", launcher=two)
    assert ended.returncode != 0
    assert ended.stderr.count("error: ") == 1 and "annotation 9, bbox" in ended.stderr
