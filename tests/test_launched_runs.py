"""experiments/train_net.py as users start it in two processes, on the CPU: --num-gpus, --num-machines, torchrun."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch

from sam_d2.evaluation import read_report

pytestmark = pytest.mark.slow
STARTS = ["--num-gpus", "--num-machines", "torchrun"]
OVERRIDES = [
    "train.max_iter=2",
    "train.eval_base=false",
    "dataloader.train.total_batch_size=6",
    # Adam divides by the size of the gradient, which for vanishing ones is that of their rounding
    "optimizer.eps=1e-3",
    "optimizer.lr=0.01",
]
SCORES = ["predicted_iou", "class_score", "stability", "mean_probability"]
ROWS = [*(("model", score) for score in SCORES), ("box_as_mask", "constant"), ("ellipse", "constant")]


@pytest.fixture
def start(root, shapes_folder, tiny_overrides):
    """``start(how, *arguments)``: exit code, stdout and stderr of each program that the user starts."""

    def run(how, *arguments):
        with socket.socket() as probe:
            probe.bind(("", 0))
            url = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        script = str(root / "experiments" / "train_net.py")
        machine = [sys.executable, script, "--num-machines", "2", "--dist-url", url, "--machine-rank"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
        programs = {
            "--num-gpus": [[sys.executable, script, "--num-gpus", "2", "--dist-url", url]],
            "--num-machines": [[*machine, "0"], [*machine, "1"]],
            "torchrun": [torchrun],
        }[how]
        line = ["--config-file", str(root / "configs" / "sam_tiny.py"), "--dataset", str(shapes_folder)]
        line += [*arguments, *tiny_overrides, *OVERRIDES]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        options = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started = [subprocess.Popen([*program, *line], **options) for program in programs]
        ends = [program.communicate(timeout=600) for program in started]
        return [(program.returncode, *end) for program, end in zip(started, ends, strict=True)]

    return run


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


@pytest.mark.parametrize("how", STARTS)
def test_two_processes_train_as_one(start, train_net, tmp_path, tiny_overrides, how):
    """Two steps of 6 images, 3 in each process: an empty image and several numbers of instances among them."""
    one, two = tmp_path / "one", tmp_path / "two"
    train_net(one, overrides=[*tiny_overrides, *OVERRIDES, "train.device=cpu"])
    ends = start(how, "--output-dir", str(two))
    assert [code for code, *_ in ends] == [0] * len(ends), ends
    weights = [torch.load(folder / "model_final.pth", weights_only=True)["model"] for folder in (one, two)]
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-5)
    assert [[row["images"] for row in metrics(folder) if "images" in row] for folder in (one, two)] == [[6], [6]]
    # all test images were predicted, each once
    reports = [read_report(folder / "report.json") for folder in (one, two)]
    assert [[(row.method, row.score) for row in rows] for rows in reports] == [ROWS, ROWS]
    one_iou, two_iou = ([row.metric("mIoU") for row in rows if row.method == "model"] for rows in reports)
    assert one_iou == pytest.approx(two_iou, abs=1e-3) and min(one_iou) > 0
    told = "".join(out for _, out, _ in ends)
    assert told.count("Starting training from iteration 0") == 1 and "no GPU, 1 CPU threads, 2 processes" in told
    assert "Warning" not in "".join(err for *_, err in ends)
    assert "Starting training" in (two / "log.txt.rank1").read_text()

    row = next(row for row in reports[1] if row.method == "model")
    ends = start(how, "--output-dir", str(two), "--eval-only")
    assert [code for code, *_ in ends] == [0] * len(ends), ends
    again = next(row for row in read_report(two / "report.json") if row.method == "model")
    assert again.metrics == pytest.approx(row.metrics, nan_ok=True, abs=1e-9)


@pytest.mark.parametrize("how", STARTS)
def test_an_image_that_one_process_cannot_read(start, shapes_folder, tmp_path, how):
    broken = shutil.copytree(shapes_folder, tmp_path / "shapes")
    (broken / "train_2.png").write_bytes(b"nothing")
    ends = start(how, "--dataset", str(broken), "--output-dir", str(tmp_path / "run"))
    assert [code for code, *_ in ends] == ([1] if how == "torchrun" else [2] * len(ends))
    told = [line for _, out, err in ends for line in (out + err).splitlines()]
    errors = [line for line in told if line.startswith("error: ")]
    assert sum("train_2.png: not a readable image" in line for line in errors) == 1
    if how == "--num-machines":  # the other says that it has lost this one, as no launcher of both could
        assert len(errors) == 2 and any("another process of this run was lost" in line for line in errors)
    else:
        assert len(errors) == 1
    if how == "torchrun":
        assert any("traceback : " in line and "train_2.png" in line for line in told), "in its own report too"
    else:
        assert not any("Traceback" in line for line in told)
