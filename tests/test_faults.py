"""Faults of the machine: what the user is told, and that what was written before is whole."""

import errno
import os
import re
import resource
import runpy
import signal
import sys

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from sam_d2.cli import run_main
from sam_d2.engine.checkpoint_file import load_checkpoint_file, save_checkpoint_file
from sam_d2.errors import UserError
from sam_d2.faults import explained, told


@pytest.fixture
def small_files():
    """No file may grow beyond 100,000 bytes, as on a disk that is full then."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_checkpoint_that_finds_no_room(tmp_path, small_files):
    path = tmp_path / "model.pth"
    save_checkpoint_file({"w": torch.ones(10)}, path)
    with pytest.raises(UserError, match=r"model\.pth: no room to write \(File too large, \d+ MiB free\)\. Files that"):
        save_checkpoint_file({"w": torch.zeros(100_000)}, path)
    torch.testing.assert_close(load_checkpoint_file(path)["w"], torch.ones(10))
    assert [file.name for file in tmp_path.iterdir()] == ["model.pth"]


def test_a_training_that_finds_no_room_goes_on_later(train_net, finished_run, tmp_path, small_files):
    folder = tmp_path / "run"
    options = ["train.max_iter=6", "train.checkpointer.period=2", "train.eval_period=3", "train.log_period=2"]
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    sizes = [(finished_run / name).stat().st_size for name in ("model_0000005.pth", "model_final.pth")]
    resource.setrlimit(resource.RLIMIT_FSIZE, (sum(sizes) // 2, limit[1]))  # the weights alone would fit
    with pytest.raises(UserError, match=r"model_0000001\.pth: no room to write"):
        train_net(folder, *options)
    assert not list(folder.glob("*.pth")) and not list(folder.glob(".*"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit[1], limit[1]))
    train_net(folder, *options, "--resume")
    weights = [torch.load(one / "model_final.pth", weights_only=True)["model"] for one in (folder, finished_run)]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_by_any_way(number, tmp_path, capsys):
    error = OSError(number, os.strerror(number), str(tmp_path / "metrics.json"))
    assert f"{tmp_path / 'metrics.json'}: no room to write ({os.strerror(number)}, " in explained(error)
    try:
        raise RuntimeError("PytorchStreamWriter failed writing file") from error
    except RuntimeError as wrapped:
        assert explained(wrapped) == explained(error)
    with pytest.raises(UserError, match="/run: no room to write"), told(tmp_path / "run"):
        raise OSError(number, os.strerror(number))

    def fail():
        raise error

    with pytest.raises(SystemExit) as end:
        run_main(fail)
    told_text = capsys.readouterr().err
    assert end.value.code == 2 and told_text.startswith("error: ") and len(told_text.splitlines()) == 1


def test_other_errors_are_ours():
    assert explained(OSError(errno.EACCES, "Permission denied")) is None
    assert explained(RuntimeError("mat1 and mat2")) is None
    with pytest.raises(KeyError), told():
        raise KeyError("x")


class Dying(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_a_worker_that_the_system_has_ended(tmp_path):
    """In a process of its own: torch raises the error again and again, in whatever the process does."""
    if (pid := os.fork()) == 0:
        sys.stderr = (tmp_path / "stderr").open("w", buffering=1)
        try:
            run_main(lambda: sum(DataLoader(Dying(), num_workers=1)))
        except SystemExit as end:
            os._exit(end.code)
        os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
    text = (tmp_path / "stderr").read_text()
    assert re.fullmatch(
        r"error: A process that reads images( \(pid \d+\))? died: .* for want of memory .*num_workers.*\n", text
    )


def test_what_ended_a_worker():
    text = "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that shared memory is insufficient"
    assert "shared memory is used up" in explained(RuntimeError(text))
    assert "by the signal Terminated" in explained(
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated.")
    )
    assert "for want of memory" in explained(RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"))


def test_a_connection_that_a_worker_has_dropped(tmp_path):
    """It died while it handed a sample over."""
    script = tmp_path / "torch" / "utils" / "data" / "dataloader.py"
    script.parent.mkdir(parents=True)
    script.write_text("def read():\n    raise ConnectionResetError(104, 'Connection reset by peer')\n")
    with pytest.raises(UserError, match=r"^A process that reads images died: nearly always"), told():
        runpy.run_path(str(script))["read"]()
    assert explained(ConnectionResetError(104, "Connection reset by peer")) is None  # somebody else's
