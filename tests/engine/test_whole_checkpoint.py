"""The checkpoint to go on from: the last, or the one before it where the last is damaged."""

import re
import shutil

import pytest
import torch

from sam_d2.engine.whole_checkpoint import whole_checkpoint
from sam_d2.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for step in (1, 3, 5, 7):
        torch.save({"model": {"w": torch.full((1000,), float(step))}}, tmp_path / f"model_{step:07d}.pth")
    torch.save({"model": {}}, tmp_path / "model_final.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000005.pth")  # a user has gone back to it
    return tmp_path


def found(folder):
    file, problems = whole_checkpoint(folder)
    return file and file.name, problems


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    place = content.index(torch.full((8,), float(int(file.stem[6:]))).numpy().tobytes())
    content[place + 5] ^= 1
    file.write_bytes(content)


def test_the_named_one(folder):
    assert found(folder) == ("model_0000005.pth", [])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncate, "model_0000005.pth: not a checkpoint that can be loaded safely"),
        (flip_a_bit, "model_0000005.pth: damaged \\(.*/data/0 has another checksum"),
        (lambda file: file.write_bytes(b""), "model_0000005.pth: not a checkpoint"),
        (lambda file: file.unlink(), "model_0000005.pth does not exist, but"),
    ],
)
def test_a_damaged_one_is_named_and_the_one_before_it_is_taken(folder, damage, said):
    damage(folder / "model_0000005.pth")
    name, problems = found(folder)
    assert name == "model_0000003.pth" and len(problems) == 1
    assert re.search(said, problems[0]) and problems[0].endswith(
        "Going on from the one before it, model_0000003.pth ***"
    )
    truncate(folder / "model_0000003.pth")
    assert found(folder)[0] == "model_0000001.pth" and len(found(folder)[1]) == 2
    truncate(folder / "model_0000001.pth")
    with pytest.raises(UserError, match=r"model_0000005.*model_0000003.*model_0000001"):
        whole_checkpoint(folder)


def test_an_empty_tag_as_a_power_failure_leaves_it(folder):
    (folder / "last_checkpoint").write_bytes(b"\0" * 8)
    assert found(folder) == ("model_0000007.pth", [])


def test_a_file_of_torch_before_1_6(folder):
    torch.save({"model": {}}, folder / "model_0000005.pth", _use_new_zipfile_serialization=False)
    assert found(folder)[0] == "model_0000005.pth"


def test_a_folder_without_any(tmp_path):
    assert found(tmp_path) == (None, [])


def test_a_resume_from_the_one_before_ends_with_the_same_weights(train_net, finished_run, tmp_path):
    folder = shutil.copytree(finished_run, tmp_path / "run")
    (folder / "model_final.pth").unlink()
    truncate(folder / "model_0000005.pth")
    options = ["train.max_iter=6", "train.checkpointer.period=2", "train.eval_period=3", "train.log_period=2"]
    train_net(folder, *options, "--resume")
    log = (folder / "log.txt").read_text()
    assert "*** " in log and "Going on from the one before it, model_0000003.pth ***" in log
    weights = [torch.load(one / "model_final.pth", weights_only=True)["model"] for one in (folder, finished_run)]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
