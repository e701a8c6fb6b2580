"""Checkpoints: whole or not at all, loaded strictly, and never run."""

import logging
import math
import os
import pickle
import random
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from detectron2.engine import HookBase, TrainerBase
from detectron2.utils.events import get_event_storage
from sam_d2.engine.best import BestCheckpoint
from sam_d2.engine.checkpoint import BEST, Checkpointer, PeriodicCheckpoint, load_checkpoint_file
from sam_d2.errors import UserError


class Model(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.layer = nn.Linear(2, width)
        self.register_buffer("pixel_mean", torch.zeros(3), persistent=False)


@pytest.fixture
def checkpointer(tmp_path):
    return Checkpointer(Model(), str(tmp_path), save_to_disk=True)


class Idle(TrainerBase):
    """A trainer whose step does nothing."""

    def run_step(self):
        pass


class TestSaving:
    def test_what_is_saved_is_loaded(self, tmp_path, checkpointer):
        optimizer = torch.optim.SGD(checkpointer.model.parameters(), lr=0.5)
        checkpointer.add_checkpointable("optimizer", optimizer)
        checkpointer.save("model_0000001", iteration=1)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["last_checkpoint", "model_0000001.pth"]
        other = torch.optim.SGD((model := Model()).parameters(), lr=0.1)
        extra = Checkpointer(model, optimizer=other).load(str(tmp_path / "model_0000001.pth"))
        assert extra == {"iteration": 1}
        assert other.param_groups[0]["lr"] == 0.5
        torch.testing.assert_close(model.state_dict(), checkpointer.model.state_dict(), rtol=0, atol=0)

    @pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt])
    def test_a_failing_save_leaves_the_old_file_and_nothing_else(self, tmp_path, checkpointer, monkeypatch, error):
        checkpointer.save("model_final")
        before = (tmp_path / "model_final.pth").read_bytes()

        def half_a_save(data, file):
            file.write(b"half")
            raise error("disk full")

        monkeypatch.setattr(torch, "save", half_a_save)
        with torch.no_grad():
            checkpointer.model.layer.weight.zero_()
        with pytest.raises(error):
            checkpointer.save("model_final")
        with pytest.raises(error):
            checkpointer.save("model_0000007")
        assert (tmp_path / "model_final.pth").read_bytes() == before
        assert sorted(file.name for file in tmp_path.iterdir()) == ["last_checkpoint", "model_final.pth"]
        assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_final.pth")

    def test_the_file_is_complete_before_it_has_its_name(self, tmp_path, checkpointer, monkeypatch):
        seen = []
        monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append(sorted(f.name for f in tmp_path.iterdir())))
        checkpointer.save("model_final")
        assert seen == [[".model_final.pth.partial"], [".last_checkpoint.partial", "model_final.pth"]]

    def test_other_processes_do_not_write(self, tmp_path):
        Checkpointer(Model(), str(tmp_path), save_to_disk=False).save("model_final")
        assert list(tmp_path.iterdir()) == []

    def test_the_best_is_not_the_last(self, tmp_path, checkpointer):
        checkpointer.save("model_0000001")
        checkpointer.save(BEST)
        assert (tmp_path / f"{BEST}.pth").is_file()
        assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000001.pth")

    def test_no_more_files_than_asked_for(self, tmp_path, checkpointer):
        def train(start, end, total):
            trainer = Idle()
            stop = HookBase()
            stop.after_step = lambda: exit_at(trainer, end)
            trainer.register_hooks([PeriodicCheckpoint(checkpointer, period=1, max_to_keep=2), stop])
            with pytest.raises(KeyboardInterrupt) if end < total else nullcontext():
                trainer.train(start, total)
            return sorted(file.name for file in tmp_path.glob("*.pth"))

        def exit_at(trainer, end):
            if trainer.iter + 1 == end < trainer.max_iter:
                raise KeyboardInterrupt

        assert train(0, 3, 9) == ["model_0000001.pth", "model_0000002.pth"]
        assert train(3, 4, 9) == ["model_0000002.pth", "model_0000003.pth"]
        # gone back to 2: 3 is written again and counts once
        assert train(3, 5, 9) == ["model_0000003.pth", "model_0000004.pth"]
        assert train(5, 6, 6) == ["model_0000004.pth", "model_0000005.pth", "model_final.pth"]

    def test_a_copy_that_a_user_keeps_is_not_counted(self, tmp_path, checkpointer):
        for name in ("model_0000001.pth", "model_0000001_copy.pth"):
            (tmp_path / name).touch()
        trainer = Idle()
        trainer.register_hooks([PeriodicCheckpoint(checkpointer, period=1, max_to_keep=1)])
        trainer.train(2, 4)
        left = sorted(file.name for file in tmp_path.glob("*.pth"))
        assert left == ["model_0000001_copy.pth", "model_0000003.pth", "model_final.pth"]

    def test_a_last_checkpoint_that_is_gone(self, tmp_path, checkpointer):
        checkpointer.save("model_0000001")
        (tmp_path / "model_0000001.pth").unlink()
        assert checkpointer.has_checkpoint()
        with pytest.raises(
            UserError, match=r"model_0000001\.pth does not exist.*last_checkpoint.*another run with --output-dir"
        ):
            checkpointer.resume_or_load("", resume=True)


class TestStrictLoading:
    def save(self, path, change):
        state = Model().state_dict()
        change(state)
        torch.save({"model": state}, path)
        return str(path)

    def expect(self, path, *words):
        model = Model()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(UserError) as caught:
            Checkpointer(model).load(path)
        message = str(caught.value)
        assert all(word in message for word in words), message
        assert "\n" not in message
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)

    def test_missing_key(self, tmp_path):
        path = self.save(tmp_path / "a.pth", lambda state: state.pop("layer.bias"))
        self.expect(path, "1 missing from the file (layer.bias)", "config.yaml")

    def test_unknown_keys(self, tmp_path):
        def add(state):
            state.update({f"extra.{number}": torch.zeros(1) for number in range(5)})

        path = self.save(tmp_path / "a.pth", add)
        self.expect(path, "5 in the file only (extra.0, extra.1, extra.2, ...)")

    def test_other_shape(self, tmp_path):
        path = self.save(tmp_path / "a.pth", lambda state: state.update({"layer.weight": torch.zeros(4, 2)}))
        self.expect(path, "layer.weight (4, 2) instead of (3, 2)")

    def test_bare_weights_as_published_files_have_them(self, tmp_path):
        source = Model()
        torch.save(source.state_dict(), tmp_path / "a.pth")
        Checkpointer(target := Model()).load(str(tmp_path / "a.pth"))
        torch.testing.assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)

    @pytest.mark.parametrize("key", ["", "model", "state_dict", "model_state_dict"])
    @pytest.mark.parametrize("prefix", ["", "module."])
    def test_weights_as_other_programs_save_them(self, tmp_path, key, prefix):
        source = Model()
        state = {f"{prefix}{name}": value for name, value in source.state_dict().items()}
        torch.save({key: state, "epoch": 3} if key else state, tmp_path / "a.pth")
        Checkpointer(target := Model()).load(str(tmp_path / "a.pth"))
        torch.testing.assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)

    def test_a_prefix_that_not_all_names_have_is_a_part_of_them(self, tmp_path):
        path = self.save(tmp_path / "a.pth", lambda state: state.update({"module.x": state.pop("layer.weight")}))
        self.expect(path, "layer.weight", "module.x")

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            ({"model": {"layer.weight": 3}}, "its 'model' is not a dict of tensors"),
            ({"model": [1]}, "its 'model' is not a dict of tensors"),
            ({"state_dict": [1]}, "its 'state_dict' is not a dict of tensors"),
            (
                {"net": {}, "epoch\x1b": 5},
                "(it has net, epoch\u241b). Take another file, or save the weights in it alone",
            ),
        ],
    )
    def test_a_dict_without_weights(self, tmp_path, content, reason):
        torch.save(content, tmp_path / "a.pth")
        self.expect(str(tmp_path / "a.pth"), "a.pth", reason)


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


class TestSafeReading:
    @pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
    def test_code_in_a_file_is_not_run(self, tmp_path, form):
        marker, file = tmp_path / "ran", tmp_path / "hostile.pth"
        content = {"model": {"weight": torch.zeros(1)}, "extra": Hostile(marker)}
        if form == "pickle":
            file.write_bytes(pickle.dumps({"extra": Hostile(marker)}))
        else:
            torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
        with pytest.raises(UserError, match=r"hostile\.pth: not a checkpoint that can be loaded safely") as caught:
            load_checkpoint_file(file)
        assert "\n" not in str(caught.value)
        assert not marker.exists()

    @pytest.mark.parametrize("legacy", [False, True])
    def test_a_damaged_file_is_named(self, tmp_path, legacy):
        file = tmp_path / "cut.pth"
        torch.save({"model": Model().state_dict()}, file, _use_new_zipfile_serialization=not legacy)
        whole = file.read_bytes()
        for length in [0, 1, 2, 10, 100, *range(150, len(whole) - 1, 97)]:
            file.write_bytes(whole[:length])
            with pytest.raises(UserError, match=r"cut\.pth"):
                load_checkpoint_file(file)

    def test_noise_is_refused(self, tmp_path):
        generator = random.Random(0)
        file = tmp_path / "noise.pth"
        for _ in range(300):
            file.write_bytes(generator.randbytes(generator.randrange(1, 200)))
            with pytest.raises(UserError, match=r"noise\.pth"):
                load_checkpoint_file(file)

    def test_a_tensor_alone_is_no_checkpoint(self, tmp_path):
        torch.save(torch.zeros(3), tmp_path / "a.pth")
        with pytest.raises(UserError, match=r"a\.pth: expected a dict of weights, found Tensor"):
            load_checkpoint_file(tmp_path / "a.pth")

    def test_a_folder(self, tmp_path):
        with pytest.raises(UserError, match=str(tmp_path)):
            load_checkpoint_file(tmp_path)


class Scores(HookBase):
    """Stands in for the evaluation: stores the next AP every second step."""

    def __init__(self, values):
        self.values = iter(values)

    def after_step(self):
        if (self.trainer.iter + 1) % 2 == 0 and self.trainer.iter + 1 < self.trainer.max_iter:
            get_event_storage().put_scalar("segm/AP", next(self.values))

    def after_train(self):
        get_event_storage().put_scalar("segm/AP", next(self.values))


class TestBest:
    def run(self, folder, values, steps):
        trainer = Idle()
        checkpointer = Checkpointer(Model(), str(folder), save_to_disk=True)
        saved = []
        save = checkpointer.save
        checkpointer.save = lambda name, **extra: (saved.append(extra), save(name, **extra))
        trainer.register_hooks([Scores(values), BestCheckpoint(2, checkpointer, "segm/AP")])
        trainer.train(*steps)
        return [(entry["best"]["segm/AP"], entry["iteration"]) for entry in saved]

    def test_only_a_higher_value_replaces_it(self, tmp_path):
        # evaluated after steps 2, 4, 6, 8 and after training
        saved = self.run(tmp_path, [5.0, 3.0, 7.0, 7.0, math.nan], (0, 10))
        assert saved == [(5.0, 1), (7.0, 5)]

    def test_a_resumed_run_remembers_its_best(self, tmp_path):
        assert self.run(tmp_path, [5.0, 8.0], (0, 4)) == [(5.0, 1), (8.0, 3)]
        assert self.run(tmp_path, [6.0, 7.5, 7.9], (4, 10)) == []
        assert load_checkpoint_file(tmp_path / f"{BEST}.pth")["best"] == {"segm/AP": 8.0}
        finished_again = self.run(tmp_path, [8.5], (10, 10))
        assert [value for value, _ in finished_again] == [8.5]

    def test_a_damaged_file_does_not_stop_a_resume(self, tmp_path, caplog):
        file = tmp_path / f"{BEST}.pth"
        self.run(tmp_path, [5.0, 8.0], (0, 4))
        file.write_bytes(file.read_bytes()[:100])
        assert self.run(tmp_path, [6.0, 4.0], (4, 8)) == [(6.0, 5)]
        assert f"{file}: not a checkpoint" in caplog.text and "Of the scores before it nothing is known" in caplog.text
        assert load_checkpoint_file(file)["best"] == {"segm/AP": 6.0}

    @pytest.mark.parametrize("best", [5, [8.0], {"segm/AP": "8"}, {"segm/AP": torch.ones(2)}], ids=str)
    def test_a_file_that_says_no_number_counts_as_none(self, best, tmp_path):
        torch.save({"model": {}, "best": best}, tmp_path / f"{BEST}.pth")
        assert self.run(tmp_path, [6.0, 4.0], (4, 8)) == [(6.0, 5)]

    def test_no_value_no_file(self, tmp_path):
        assert self.run(tmp_path, [math.nan] * 3, (0, 6)) == []
        trainer = Idle()
        trainer.register_hooks([BestCheckpoint(2, SimpleNamespace(save_dir=str(tmp_path)), "segm/AP")])
        trainer.train(0, 4)
        assert list(tmp_path.iterdir()) == []


def test_random_weights_are_said(caplog):
    with caplog.at_level(logging.INFO, logger="fvcore"):
        Checkpointer(nn.Linear(2, 2)).load("")
    assert "begins with random weights" in caplog.text


@pytest.mark.parametrize(("norm", "warned"), [("FrozenBatchNorm2d", True), ("BatchNorm2d", False)])
def test_frozen_norms_of_random_weights_are_warned_of(norm, warned, tmp_path, caplog):
    ours = {"FrozenBatchNorm2d": FrozenBatchNorm2d, "BatchNorm2d": torch.nn.BatchNorm2d}
    Checkpointer(torch.nn.Sequential(ours[norm](3)), str(tmp_path)).load("")
    assert ("model.norm=BN" in caplog.text) == warned
