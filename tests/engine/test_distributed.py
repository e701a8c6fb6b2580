"""Devices, and a training in two processes that equals one in a single process."""

import argparse
import importlib
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from detectron2.utils import comm
from sam_d2.engine import distributed
from sam_d2.engine.distributed import choose_amp_dtype, choose_device, distribute, launch_main
from sam_d2.errors import UserError
from sam_d2.evaluation import read_report

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")


def arguments(**options):
    single = {"num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": "auto"}
    return argparse.Namespace(**{**single, **options})


class TestLaunch:
    @pytest.fixture(autouse=True)
    def outside_of_torchrun(self, monkeypatch):
        monkeypatch.delenv("RANK", raising=False)

    @pytest.mark.parametrize(("gpus", "asked"), [(0, 0), (0, 1), (1, 1), (4, 1)])
    def test_one_process_is_this_one(self, monkeypatch, gpus, asked):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        args = arguments(num_gpus=asked)
        assert launch_main(lambda given: (given is args, os.getpid()), args) == (True, os.getpid())

    def test_several_without_a_gpu(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        with pytest.raises(UserError, match=r"no GPU is found.*torchrun --nproc-per-node 3"):
            launch_main(print, arguments(num_gpus=3))

    def test_more_gpus_than_there_are(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        with pytest.raises(UserError, match="--num-gpus 3: this machine has 2"):
            launch_main(print, arguments(num_gpus=3))

    def test_several_gpus_go_to_detectron2s_launcher(self, monkeypatch):
        calls = []
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(distributed, "launch", lambda *given, **named: calls.append((given, named)))
        args = arguments(num_gpus=2, num_machines=3, machine_rank=1, dist_url="tcp://a:1")
        launch_main(print, args)
        named = {"num_machines": 3, "machine_rank": 1, "dist_url": "tcp://a:1", "args": (args,)}
        assert calls == [((print, 2), named)]


class TestDevice:
    @pytest.mark.parametrize(("name", "gpu", "expected"), [("auto", False, "cpu"), ("cpu", False, "cpu")])
    def test_without_a_gpu(self, monkeypatch, name, gpu, expected):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        assert choose_device(name) == torch.device(expected)

    def test_auto_is_the_gpu_of_this_process(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(comm, "get_local_rank", lambda: 1)
        monkeypatch.setattr(torch, "zeros", lambda size, device: None)
        assert choose_device("auto") == torch.device("cuda", 1)

    @pytest.mark.parametrize("name", ["gpu", "cuda:97", "tpu"])
    def test_what_is_not_there(self, name):
        with pytest.raises(UserError, match=rf"train\.device='{name}' cannot be used .*'auto' or 'cpu'") as caught:
            choose_device(name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("enabled", "name", "device", "supported", "expected"),
    [
        (False, "auto", CPU, True, None),
        (False, "nonsense", GPU, True, None),
        (True, "auto", CPU, False, torch.bfloat16),
        (True, "auto", GPU, True, torch.bfloat16),
        (True, "auto", GPU, False, torch.float16),
        (True, "bfloat16", GPU, False, torch.bfloat16),
        (True, "float16", CPU, True, torch.float16),
    ],
)
def test_amp_dtype(monkeypatch, enabled, name, device, supported, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    assert choose_amp_dtype(enabled, name, device) is expected


def test_amp_dtype_that_does_not_exist():
    with pytest.raises(UserError, match=r"train\.amp\.dtype='half': expected auto, bfloat16 or float16"):
        choose_amp_dtype(True, "half", CPU)


def test_one_process_needs_no_wrapper():
    model = nn.Linear(2, 2)
    assert distribute(model, find_unused_parameters=False) is model


# The processes import it by name, and "tests" is a package of Detectron2 where that lies on the path.
DISTRIBUTE = """
import torch
from torch import nn

from sam_d2.engine.distributed import distribute


def run(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(rank)
    model = nn.Module()
    model.linear = nn.Linear(2, 2)
    model.register_buffer("encoding", torch.randn(3))
    distribute(model, broadcast_buffers=False)
    torch.save(model.state_dict(), folder / f"{rank}.pth")
    torch.distributed.destroy_process_group()
"""


def test_every_process_begins_with_the_same_parameters_and_buffers(tmp_path, monkeypatch):
    (tmp_path / "distribute_in_a_process.py").write_text(DISTRIBUTE)
    monkeypatch.syspath_prepend(tmp_path)
    worker = importlib.import_module("distribute_in_a_process")
    torch.multiprocessing.spawn(worker.run, args=(tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2))
    assert first.keys() == {"linear.weight", "linear.bias", "encoding"}
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.slow
def test_two_processes_train_as_one(train_net, shapes_folder, tmp_path, root, tiny_overrides):
    """Two steps of 6 images, 3 in each process: an empty image and several numbers of instances among them."""
    overrides = [
        *tiny_overrides,
        "train.max_iter=2",
        "train.eval_base=false",
        "dataloader.train.total_batch_size=6",
        # Adam divides by the size of the gradient, which for vanishing ones is that of their rounding
        "optimizer.eps=1e-3",
        "optimizer.lr=0.01",
        "train.device=cpu",
    ]
    one = train_net(tmp_path / "one", overrides=overrides)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(root / "experiments" / "train_net.py"), "--config-file", str(root / "configs" / "sam_tiny.py")]
    command += ["--dataset", str(shapes_folder), "--output-dir", str(tmp_path / "two"), *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    weights = [torch.load(f / "model_final.pth", weights_only=True)["model"] for f in (one, tmp_path / "two")]
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-5)
    images = [[row["images"] for row in metrics(folder) if "images" in row] for folder in (one, tmp_path / "two")]
    assert images == [[6], [6]]
    # all test images were predicted, each once
    assert [len(read_report(folder / "report.json")) for folder in (one, tmp_path / "two")] == [3, 3]
    ious = [
        row.metric("mIoU")
        for folder in (one, tmp_path / "two")
        for row in read_report(folder / "report.json")
        if row.method == "model"
    ]
    assert ious[0] == pytest.approx(ious[1], abs=1e-3) and ious[0] > 0


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
