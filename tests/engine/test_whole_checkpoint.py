"""The checkpoint to go on from: the last, or the one before it where the last is damaged."""

import re
import shutil
import zipfile

import pytest
import torch
from torch import nn

from sam_d2.engine.checkpoint import FINAL, Checkpointer
from sam_d2.engine.checkpoint_file import load_checkpoint_file
from sam_d2.engine.graceful_stop import how_to_go_on, save_step
from sam_d2.engine.not_finite import not_finite_text
from sam_d2.engine.whole_checkpoint import has_checkpoint, last_checkpoint, whole_checkpoint
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
    name, (problem,) = found(folder)
    assert name == "model_0000007.pth"
    assert problem.endswith(
        "last_checkpoint is damaged (empty). Going on from the newest checkpoint, model_0000007.pth ***"
    )


class TestWithoutATag:
    """A kill between the first checkpoint and its naming, or a copy that lost the small file."""

    @pytest.fixture(autouse=True)
    def untagged(self, folder):
        (folder / "last_checkpoint").unlink()

    def test_the_newest_whole_one_is_taken_and_the_missing_tag_named(self, folder):
        assert has_checkpoint(folder) and last_checkpoint(folder).name == "model_0000007.pth"
        tag = folder / "last_checkpoint"
        missing = f"*** {tag} is missing. Going on from the newest checkpoint, {{}} ***"
        assert found(folder) == ("model_0000007.pth", [missing.format("model_0000007.pth")])
        truncate(folder / "model_0000007.pth")
        name, problems = found(folder)
        assert name == "model_0000005.pth" and len(problems) == 2
        assert "model_0000007.pth: not a checkpoint" in problems[0]
        assert problems[1] == missing.format("model_0000005.pth")

    def test_it_is_named_from_then_on(self, folder):
        reader = Checkpointer(nn.ParameterDict({"w": torch.zeros(1000)}), str(folder))
        assert reader.has_checkpoint() and reader.get_checkpoint_file().endswith("model_0000007.pth")
        reader.resume_or_load("")
        assert reader.model["w"][0] == 7 and (folder / "last_checkpoint").read_text() == "model_0000007.pth"

    def test_none_is_whole(self, folder):
        for file in folder.glob("model_0*.pth"):
            truncate(file)
        with pytest.raises(UserError, match=r"model_0000007.*model_0000005.*model_0000003.*model_0000001"):
            whole_checkpoint(folder)

    def test_what_has_no_number_is_nothing_to_go_on_from(self, folder):
        for file in folder.glob("model_0*.pth"):
            file.unlink()
        (folder / "model_0000003_copy.pth").touch()
        (folder / "model_0000004.pth").mkdir()
        assert not has_checkpoint(folder) and last_checkpoint(folder) is None and found(folder) == (None, [])
        reader = Checkpointer(nn.ParameterDict({"w": torch.zeros(1000)}), str(folder))
        assert not reader.has_checkpoint() and reader.resume_or_load("") == {}

    def test_no_folder_is_none(self, folder, monkeypatch):
        monkeypatch.chdir(folder)
        assert not Checkpointer(nn.ParameterDict({"w": torch.zeros(1000)})).has_checkpoint()


def test_a_tag_of_nothing_alone_is_no_checkpoint(tmp_path):
    (tmp_path / "last_checkpoint").touch()
    assert not has_checkpoint(tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")  # said to be gone, not begun over
    assert has_checkpoint(tmp_path)


IMPOSSIBLE = [b"\xff\xfe\x80noise", b"x" * 300, b"", b"\0" * 8, b"model\x00.pth", b"model_0000009.pth", b"."]


@pytest.mark.parametrize("tag", IMPOSSIBLE)
def test_a_tag_that_names_no_file_counts_as_gone(folder, tag):
    (folder / "last_checkpoint").write_bytes(tag)
    assert found(folder)[0] == "model_0000007.pth"
    assert last_checkpoint(folder).name == "model_0000007.pth"
    assert "model_0000007.pth is its last checkpoint" in how_to_go_on(folder)


@pytest.mark.parametrize("absolute", [False, True])
def test_a_tag_that_leads_out_of_the_folder(folder, absolute):
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(folder / "model_0000007.pth", elsewhere / "model_0000009.pth")
    other = elsewhere / "model_0000009.pth" if absolute else "elsewhere/model_0000009.pth"
    (folder / "last_checkpoint").write_text(str(other))
    name, problems = found(folder)
    assert name == "model_0000007.pth" and len(problems) == 1
    assert f"{elsewhere / 'model_0000009.pth'} is not in the folder of the run, but" in problems[0]
    assert last_checkpoint(folder).name == "model_0000007.pth"


def test_a_tag_may_spell_the_folder_out(folder):
    (folder / "last_checkpoint").write_text(str(folder / "model_0000005.pth"))
    assert found(folder) == ("model_0000005.pth", [])


class Training:
    """What a training holds of a run folder."""

    def __init__(self, folder):
        self.weights = nn.Linear(2, 1)
        self.optimizer = torch.optim.SGD(self.weights.parameters(), 0.1)
        self.checkpointer = Checkpointer(self.weights, str(folder), optimizer=self.optimizer)

    def not_finite_text(self):
        return not_finite_text(6, {}, self.optimizer, None, [self], None)


@pytest.fixture
def resumed(request, tmp_path):
    """A training that went on from step 3, because the file of step 5 was damaged as the parameter does it."""
    before = Training(tmp_path).checkpointer
    for step in (3, 5):
        save_step(before, step)
    request.param(tmp_path / "model_0000005.pth")
    training = Training(tmp_path)
    assert training.checkpointer.resume_or_load("")["iteration"] == 3
    return training


@pytest.mark.parametrize("resumed", [truncate, lambda file: file.unlink()], indirect=True)
class TestAfterAResumeFromTheOneBefore:
    def test_it_is_the_last_one(self, resumed, tmp_path):
        assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
        assert "model_0000003.pth is its last checkpoint" in how_to_go_on(tmp_path)
        assert re.search(r"goes on from .*model_0000003\.pth", resumed.not_finite_text())

    @pytest.mark.parametrize("final", [False, True])
    def test_the_step_of_the_damaged_one_is_written(self, resumed, tmp_path, final):
        if final:
            resumed.checkpointer.save(FINAL, iteration=5)
        else:
            save_step(resumed.checkpointer, 5)
        assert found(tmp_path) == ("model_0000005.pth", [])
        assert load_checkpoint_file(tmp_path / "model_0000005.pth")["iteration"] == 5


@pytest.mark.parametrize("tag", IMPOSSIBLE)
def test_a_step_is_written_though_the_tag_is_spoilt_meanwhile(tmp_path, tag):
    checkpointer = Training(tmp_path).checkpointer
    for step, save in ((1, save_step), (3, lambda checkpointer, step: checkpointer.save(FINAL, iteration=step))):
        (tmp_path / "last_checkpoint").write_bytes(tag)
        save(checkpointer, step)
        assert (tmp_path / "last_checkpoint").read_text() == f"model_{step:07d}.pth"


def test_a_process_that_does_not_write_leaves_the_tag(folder):
    truncate(folder / "model_0000005.pth")
    reader = Checkpointer(nn.ParameterDict({"w": torch.zeros(1000)}), str(folder), save_to_disk=False)
    reader.resume_or_load("")
    assert reader.model["w"][0] == 3 and (folder / "last_checkpoint").read_text() == "model_0000005.pth"


def test_a_bit_of_the_table_of_contents(tmp_path):
    file = tmp_path / "whole.pth"
    torch.save({"model": {"w": torch.ones(3)}}, file)
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        start = archive.start_dir
    said, loaded = [], 0
    for bit in range(8 * start, 8 * len(whole), 3):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        file = tmp_path / f"{bit}.pth"  # a path is looked at once
        file.write_bytes(content)
        (tmp_path / "last_checkpoint").write_text(file.name)
        try:
            assert found(tmp_path) == (file.name, [])
        except UserError as error:
            said.append(str(error))
        else:
            assert load_checkpoint_file(file)["model"]["w"].tolist() == [1, 1, 1]
            loaded += 1
        file.unlink()
    assert loaded and said
    assert all(re.search(r"/\d+\.pth: (damaged|not a checkpoint|it would unpack)", text) for text in said)


def test_an_archive_that_unpacks_to_more_is_not_unpacked(folder, monkeypatch):
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda archive: pytest.fail("unpacked"))
    with zipfile.ZipFile(folder / "model_0000005.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))
    monkeypatch.setattr("sam_d2.engine.whole_checkpoint._candidates", lambda folder: [folder / "model_0000005.pth"])
    with pytest.raises(UserError, match=r"model_0000005\.pth: it would unpack to 1048576 bytes"):
        whole_checkpoint(folder)


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
