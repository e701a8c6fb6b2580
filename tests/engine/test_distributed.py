"""Devices, and the models of a training in several processes."""

import copy
import errno
import logging
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from detectron2.utils import comm
from sam_d2.engine.distributed import (
    choose_amp_dtype,
    choose_device,
    distribute,
    in_main_process,
    share_buffers,
)
from sam_d2.errors import UserError
from sam_d2.processes import first_process_first

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")


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

    def test_one_device_for_several_processes(self, monkeypatch):
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        monkeypatch.setattr(comm, "get_local_rank", lambda: 1)
        with pytest.raises(UserError, match=r"train\.device=cuda:0: each of several processes"):
            choose_device("cuda:0")

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
def test_amp_dtype(monkeypatch, caplog, enabled, name, device, supported, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: supported)
    monkeypatch.setattr(logging.getLogger("sam_d2"), "propagate", True)
    assert choose_amp_dtype(enabled, name, device) is expected
    slow = expected is torch.float16 and device is CPU
    assert [record.levelname for record in caplog.records] == ["WARNING"] * slow


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_auto_is_what_the_gpu_computes_in(monkeypatch, capability, expected):
    """torch also counts bfloat16 as supported where it is emulated, as on Turing."""
    major, minor = capability
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major, minor=minor, name="a GPU")
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True, raising=False)
    assert torch.cuda.is_bf16_supported()
    assert choose_amp_dtype(True, "auto", GPU) is expected


def test_amp_dtype_that_does_not_exist():
    with pytest.raises(UserError, match=r"train\.amp\.dtype='half': expected auto, bfloat16 or float16"):
        choose_amp_dtype(True, "half", CPU)


def test_one_process_needs_no_wrapper():
    model = nn.Linear(2, 2)
    assert distribute(model, find_unused_parameters=False) is model


class Model(nn.Module):
    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        torch.manual_seed(comm.get_rank())
        self.norm = norm(2)
        self.register_buffer("encoding", torch.randn(3))

    def forward(self, images):
        return self.norm(images)


def states():
    """Of parameters and buffers: at the beginning, after a forward pass in training, and as shared then."""
    model = Model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrapped = distribute(model, broadcast_buffers=False, find_unused_parameters=False)
    copies = [copy.deepcopy(model.state_dict())]
    wrapped(torch.full((1, 2, 2, 2), float(comm.get_rank())))
    copies.append(copy.deepcopy(model.state_dict()))
    share_buffers(model)
    return [*copies, model.state_dict()]


def test_every_process_begins_with_the_same_parameters_and_buffers_and_shares_them(in_two_processes):
    first, second = in_two_processes(states)
    assert first[0].keys() >= {"norm.weight", "norm.running_mean", "encoding"}
    assert_equal(first[0], second[0])
    # a tenth of the way to the mean, 0 and 1
    assert (first[1]["norm.running_mean"] == 0).all() and second[1]["norm.running_mean"].allclose(torch.tensor(0.1))
    assert_equal(first[1], first[2])
    assert_equal(first[1], second[2])


def assert_equal(one, other):
    assert all(torch.equal(value, other[name]) for name, value in one.items())


class TestRefusals:
    @pytest.fixture(autouse=True)
    def two(self, monkeypatch):
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        monkeypatch.setattr(torch.distributed, "get_backend", lambda: self.backend)

    def test_batch_norm_that_only_gpus_synchronise(self):
        self.backend = "gloo"
        with pytest.raises(UserError, match=r"norm=SyncBN \(norm and 0 more\).*naiveSyncBN, GN or FrozenBN"):
            distribute(Model(nn.SyncBatchNorm))

    def test_the_cpu_of_a_machine_with_gpus(self):
        self.backend = "nccl"
        with pytest.raises(UserError, match=r"train\.device=cpu: .*begin the command with CUDA_VISIBLE_DEVICES="):
            distribute(Model())


def ends_of_work(folder):
    """What each process gets of work that succeeds, finds a mistake, and finds no room on the disk."""
    seen = []

    def work(error):
        seen.append(comm.get_rank())
        if error is not None:
            raise error
        return {"rank": comm.get_rank()}

    ends = [in_main_process(lambda: work(None))]
    for error in (UserError("a.json: no image"), OSError(errno.ENOSPC, "No space left on device")):
        with pytest.raises(UserError) as caught:
            in_main_process(lambda error=error: work(error), folder)
        ends += [str(caught.value).split(" (")[0], caught.value.of_all]
    return ends, seen


def test_what_the_main_process_does_for_all_ends_alike_in_all(in_two_processes, tmp_path):
    ends = [{"rank": 0}, "a.json: no image", True, f"{tmp_path}: no room to write", True]
    assert in_two_processes(ends_of_work, tmp_path) == [(ends, [0, 0, 0]), (ends, [])]


def visits(folder):
    with first_process_first():
        found = (folder / "made").exists()
        (folder / "made").touch()
    return found


def test_what_the_first_process_has_made_the_others_find(in_two_processes, tmp_path):
    assert in_two_processes(visits, tmp_path) == [False, True]


def failing_visit():
    try:
        with first_process_first():
            raise UserError("no such dataset")
    except UserError as error:
        return str(error)


def test_where_it_fails_all_fail(in_two_processes):
    assert in_two_processes(failing_visit) == ["no such dataset"] * 2
