"""Checkpoints that hold what differs from a base file."""

import hashlib
import logging
import os
import shutil

import pytest
import torch
from torch import nn

from detectron2.engine import TrainerBase
from sam_d2.engine import base_weights
from sam_d2.engine.checkpoint import BEST, FINAL, Checkpointer, PeriodicCheckpoint, load_checkpoint_file
from sam_d2.engine.weights import FOLDER_VARIABLE, PUBLISHED, PublishedWeights
from sam_d2.errors import UserError

HEAD = {"head.weight", "head.bias"}
ENCODER = {"encoder.weight", "encoder.bias", "steps"}


class Model(nn.Module):
    """An encoder that is large beside its head, and a buffer."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(200, 200)
        self.head = nn.Linear(200, 2)
        self.register_buffer("steps", torch.zeros(()))
        self.encoder.requires_grad_(False)


def train_head(model):
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter += 1


def assert_same_model(first, second):
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working directory and a checkpoints folder of the test's own."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "checkpoints"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "run").mkdir()


@pytest.fixture
def base(tmp_path):
    torch.manual_seed(0)
    file = tmp_path / "checkpoints" / "base.pth"
    torch.save(Model().state_dict(), file)
    return file


@pytest.fixture
def begin(tmp_path):
    """``begin(file)``: a model with the file's weights, its checkpointer, and its optimizer as checkpointable."""

    def begin(file):
        model = Model()
        optimizer = torch.optim.AdamW(model.head.parameters(), lr=0.1)
        checkpointer = Checkpointer(model, str(tmp_path / "run"), save_to_disk=True, optimizer=optimizer)
        checkpointer.resume_or_load(str(file), resume=False)
        return model, checkpointer, optimizer

    return begin


def saved(tmp_path, name):
    return load_checkpoint_file(tmp_path / "run" / f"{name}.pth")


def loaded(tmp_path, name):
    Checkpointer(model := Model()).load(str(tmp_path / "run" / f"{name}.pth"))
    return model


class TestWhatIsSaved:
    @pytest.mark.parametrize("name", ["model_0000001", FINAL, BEST])
    def test_only_what_differs_from_the_base(self, tmp_path, base, begin, name):
        model, checkpointer, _ = begin(base)
        train_head(model)
        checkpointer.save(name)
        content = saved(tmp_path, name)
        assert content["model"].keys() == HEAD
        assert content["base"] == {
            "file": "base.pth",
            "sha256": hashlib.sha256(base.read_bytes()).hexdigest(),
            "size": base.stat().st_size,
            "weights": ["steps", "encoder.weight", "encoder.bias"],
        }
        # The encoder's 40,200 numbers would be 160,800 bytes; the head has 402.
        assert (tmp_path / "run" / f"{name}.pth").stat().st_size < 20_000
        assert_same_model(loaded(tmp_path, name), model)

    def test_a_buffer_that_changed_and_a_weight_that_was_frozen(self, tmp_path, base, begin):
        model, checkpointer, _ = begin(base)
        with torch.no_grad():
            model.steps += 5
            model.encoder.bias[7] = -model.encoder.bias[7]
        checkpointer.save(FINAL)
        assert saved(tmp_path, FINAL)["model"].keys() == {"steps", "encoder.bias"}
        assert_same_model(loaded(tmp_path, FINAL), model)

    def test_bits_are_compared_and_not_numbers(self, tmp_path, base, begin):
        state = load_checkpoint_file(base)
        state["encoder.bias"][:] = float("nan")
        state["head.bias"][:] = 0.0
        torch.save(state, base)
        model, checkpointer, _ = begin(base)
        with torch.no_grad():
            model.head.bias[0] = -0.0
        checkpointer.save(FINAL)
        assert saved(tmp_path, FINAL)["model"].keys() == {"head.bias"}  # the NaN is as it was, -0 is another zero
        assert torch.signbit(loaded(tmp_path, FINAL).head.bias).tolist() == [True, False]

    def test_nothing_trained(self, tmp_path, base, begin):
        model, checkpointer, _ = begin(base)
        checkpointer.save(FINAL)
        assert saved(tmp_path, FINAL)["model"] == {}
        assert_same_model(loaded(tmp_path, FINAL), model)

    def test_without_a_base_all_is_saved(self, tmp_path, base, begin):
        model, checkpointer, _ = begin("")
        checkpointer.save(FINAL)
        assert saved(tmp_path, FINAL).keys() == {"model"}
        assert saved(tmp_path, FINAL)["model"].keys() == HEAD | ENCODER
        base.unlink()
        assert_same_model(loaded(tmp_path, FINAL), model)

    @pytest.mark.parametrize("published_size", [True, False])
    def test_a_file_elsewhere_is_no_base(self, tmp_path, base, begin, monkeypatch, published_size):
        if published_size:  # by chance: the sha256 decides
            entry = PublishedWeights("small", "https://host/a.pth", "0" * 64, base.stat().st_size, "MIT")
            monkeypatch.setitem(PUBLISHED, "a.pth", entry)
        else:  # nothing to decide
            monkeypatch.setattr(base_weights, "sha256_of", None)
        shutil.move(base, tmp_path / "mine.pth")
        _, checkpointer, _ = begin(tmp_path / "mine.pth")
        checkpointer.save(FINAL)
        assert saved(tmp_path, FINAL).keys() == {"model"}

    def test_a_published_file_elsewhere_is_one(self, tmp_path, base, begin, monkeypatch):
        sha256, size = hashlib.sha256(base.read_bytes()).hexdigest(), base.stat().st_size
        monkeypatch.setitem(
            PUBLISHED, "base.pth", PublishedWeights("small", "https://host/base.pth", sha256, size, "MIT")
        )
        shutil.move(base, tmp_path / "mine.pth")
        _, checkpointer, _ = begin(tmp_path / "mine.pth")
        checkpointer.save(FINAL)
        assert saved(tmp_path, FINAL)["base"]["file"] == "mine.pth"
        with pytest.raises(UserError, match=r"download_checkpoint\.py small downloads it"):
            loaded(tmp_path, FINAL)
        shutil.copy(tmp_path / "mine.pth", base)  # as the tool names it
        loaded(tmp_path, FINAL)

    def test_other_processes_hash_nothing(self, tmp_path, base, monkeypatch):
        monkeypatch.setattr(base_weights, "sha256_of", None)  # a call of it would fail
        for checkpointer in (Checkpointer(Model(), str(tmp_path / "run"), save_to_disk=False), Checkpointer(Model())):
            checkpointer.load(str(base))
            assert checkpointer.base is None

    @pytest.mark.parametrize("how", ["overwritten", "replaced", "gone"])
    def test_a_base_that_changes_during_the_training(self, tmp_path, base, begin, caplog, how):
        model, checkpointer, _ = begin(base)
        if how == "gone":
            base.unlink()
        else:
            other = tmp_path / "other.pth"
            torch.save(Model().state_dict(), other)
            if how == "replaced":
                other.replace(base)
            else:
                os.utime(base, ns=(0, 0))
        caplog.set_level(logging.WARNING)
        checkpointer.save(FINAL)
        assert saved(tmp_path, FINAL).keys() == {"model"}
        assert "from now on checkpoints hold all weights" in caplog.text
        assert_same_model(loaded(tmp_path, FINAL), model)


class TestLoading:
    @pytest.fixture
    def small(self, tmp_path, base, begin):
        model, checkpointer, _ = begin(base)
        train_head(model)
        checkpointer.save(FINAL)
        return model

    def expect(self, tmp_path, *words):
        model = Model()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(UserError) as caught:
            Checkpointer(model).load(str(tmp_path / "run" / "model_final.pth"))
        message = str(caught.value)
        assert all(word in message for word in words), message
        assert "\n" not in message and "model_final.pth" in message
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)

    def test_base_missing(self, tmp_path, small, base):
        base.unlink()
        self.expect(
            tmp_path, "holds only what differs from base.pth (sha256 ", "not found", str(base.parent), "Copy it"
        )

    def test_base_of_another_content(self, tmp_path, small, base):
        sha256 = hashlib.sha256(base.read_bytes()).hexdigest()
        torch.save(Model().state_dict(), base)
        other = hashlib.sha256(base.read_bytes()).hexdigest()
        self.expect(tmp_path, sha256, f"{base} is another file (sha256 {other})")

    def test_base_renamed(self, tmp_path, small, base):
        (base.parent / "short.pth").write_bytes(b"of another size")
        (base.parent / "same_size.pth").write_bytes(bytes(base.stat().st_size))
        base.rename(base.with_name("renamed.pth"))
        assert_same_model(loaded(tmp_path, FINAL), small)

    def test_base_beside_the_checkpoint(self, tmp_path, small, base):
        base.rename(tmp_path / "run" / "base.pth")
        assert_same_model(loaded(tmp_path, FINAL), small)

    def test_a_good_base_behind_a_bad_one(self, tmp_path, small, base):
        (tmp_path / "run" / "base.pth").write_bytes(b"bad")
        assert_same_model(loaded(tmp_path, FINAL), small)

    def test_the_base_is_full_checkpoint_of_another_training(self, tmp_path, begin):
        file = tmp_path / "checkpoints" / "earlier.pth"
        torch.save({"model": Model().state_dict(), "optimizer": {}, "iteration": 3}, file)
        model, checkpointer, _ = begin(file)
        train_head(model)
        checkpointer.save(FINAL)
        assert saved(tmp_path, FINAL)["model"].keys() == HEAD
        assert_same_model(loaded(tmp_path, FINAL), model)

    def test_a_training_that_begins_with_a_small_checkpoint_has_its_base(self, tmp_path, small, base, begin):
        (tmp_path / "run" / "model_final.pth").rename(tmp_path / "checkpoints" / "tuned.pth")
        model, checkpointer, _ = begin(tmp_path / "checkpoints" / "tuned.pth")
        assert_same_model(model, small)
        train_head(model)
        checkpointer.save(FINAL)
        assert saved(tmp_path, FINAL)["base"]["file"] == "base.pth"
        (tmp_path / "checkpoints" / "tuned.pth").unlink()
        assert_same_model(loaded(tmp_path, FINAL), model)

    def test_it_stays_strict(self, tmp_path, small, base):
        for change, word in (
            (lambda data: data["model"].pop("head.bias"), "1 missing from the file (head.bias)"),
            (lambda data: data["model"].update(more=torch.zeros(1)), "1 in the file only (more)"),
            (lambda data: data["base"]["weights"].remove("steps"), "1 missing from the file (steps)"),
        ):
            data = saved(tmp_path, FINAL)
            change(data)
            torch.save(data, tmp_path / "run" / "changed.pth")
            with pytest.raises(UserError) as caught:
                loaded(tmp_path, "changed")
            assert word in str(caught.value)

    def test_a_base_that_lacks_a_weight(self, tmp_path, small):
        data = saved(tmp_path, FINAL)
        data["base"]["weights"].append("encoder.scale")
        torch.save(data, tmp_path / "run" / "model_final.pth")
        self.expect(tmp_path, "base.pth lacks 1 of the weights left to it (encoder.scale)")

    @pytest.mark.parametrize(
        "entry", [None, "base.pth", {}, {"file": 3, "sha256": "", "size": 1, "weights": []}, {"file": "base.pth"}]
    )
    def test_an_entry_that_is_none(self, tmp_path, small, entry):
        torch.save({**saved(tmp_path, FINAL), "base": entry}, tmp_path / "run" / "model_final.pth")
        self.expect(tmp_path, "does not name a file of weights")

    def test_a_name_does_not_lead_out_of_the_folders(self, tmp_path, small, base):
        data = saved(tmp_path, FINAL)
        base.rename(tmp_path / "outside.pth")
        data["base"]["file"] = "../outside.pth"
        torch.save(data, tmp_path / "run" / "model_final.pth")
        self.expect(tmp_path, "outside.pth (sha256", "not found")

    def test_a_damaged_base_is_named(self, tmp_path, small, base):
        base.write_bytes(base.read_bytes()[:500])
        data = saved(tmp_path, FINAL)
        data["base"]["sha256"] = hashlib.sha256(base.read_bytes()).hexdigest()
        torch.save(data, tmp_path / "run" / "model_final.pth")
        with pytest.raises(UserError, match=r"base\.pth: not a checkpoint that can be loaded safely"):
            loaded(tmp_path, FINAL)


class Training(TrainerBase):
    """Steps of AdamW on fixed numbers."""

    def __init__(self, model, optimizer):
        super().__init__()
        self.model, self.optimizer = model, optimizer

    def run_step(self):
        inputs = torch.linspace(-1, 1, 200) * (self.iter + 1)
        self.optimizer.zero_grad()
        self.model.head(self.model.encoder(inputs)).square().sum().backward()
        self.optimizer.step()

    def state_dict(self):
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])


class TestResume:
    def run(self, folder, base, last, *, resume=False, period=2):
        folder.mkdir(exist_ok=True)
        torch.manual_seed(1)
        model = Model()
        trainer = Training(model, torch.optim.AdamW(model.head.parameters(), lr=0.1))
        checkpointer = Checkpointer(model, str(folder), save_to_disk=True, trainer=trainer)
        trainer.register_hooks([PeriodicCheckpoint(checkpointer, period=period, max_to_keep=2)])
        checkpointer.resume_or_load(str(base), resume=resume)
        trainer.train(trainer.iter + 1 if resume else 0, last)
        return model

    @pytest.mark.parametrize("small", [True, False])
    def test_from_a_small_periodic_checkpoint_as_from_a_full_one(self, tmp_path, base, small):
        if not small:
            base = base.rename(tmp_path / "elsewhere.pth")
        whole = self.run(tmp_path / "whole", base, 7)
        self.run(tmp_path / "parts", base, 4)
        resumed = self.run(tmp_path / "parts", "", 7, resume=True)
        assert_same_model(resumed, whole)
        for folder in ("whole", "parts"):
            content = load_checkpoint_file(tmp_path / folder / "model_0000005.pth")
            assert content.keys() == {"model", "trainer", "iteration"} | ({"base"} if small else set())
            assert content["model"].keys() == (HEAD if small else HEAD | ENCODER)

    def test_the_last_step_can_be_gone_on_from(self, tmp_path, base):
        # Period 2 of 7 steps: steps 2, 4 and 6 are regular, 7 is the last; two are kept, and the final one beside them.
        self.run(tmp_path / "run", base, 7)
        assert sorted(file.name for file in (tmp_path / "run").glob("*.pth")) == [
            "model_0000003.pth",
            "model_0000005.pth",
            "model_0000006.pth",
            "model_final.pth",
        ]
        assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_0000006.pth"
        final = load_checkpoint_file(tmp_path / "run" / "model_final.pth")
        assert final.keys() == {"model", "base", "iteration"} and final["iteration"] == 6
        longer = self.run(tmp_path / "run", "", 9, resume=True)
        assert_same_model(longer, self.run(tmp_path / "whole", base, 9))

    def test_a_regular_last_step_is_saved_once(self, tmp_path, base, monkeypatch):
        iterations, save = [], torch.save
        monkeypatch.setattr(torch, "save", lambda data, file: (iterations.append(data["iteration"]), save(data, file)))
        self.run(tmp_path / "run", base, 6)
        assert iterations == [1, 3, 5, 5]  # the last is the final one
        names = sorted(file.name for file in (tmp_path / "run").glob("*.pth"))
        assert names == ["model_0000003.pth", "model_0000005.pth", "model_final.pth"]

    def test_weights_alone_are_nothing_to_go_on_from(self, tmp_path, base):
        self.run(tmp_path / "run", base, 2)
        (tmp_path / "run" / "last_checkpoint").write_text("model_final.pth")
        with pytest.raises(UserError, match=r"model_final\.pth holds weights, but no state of the trainer .* number"):
            self.run(tmp_path / "run", "", 4, resume=True)


class TestTrainNet:
    """The whole way: a base, a fine-tuning of the decoder, its evaluation."""

    def test_a_fine_tuning_is_scored_from_its_small_checkpoint(self, finished_run, tmp_path, train_net):
        base = shutil.copy(finished_run / "model_final.pth", tmp_path / "checkpoints" / "base.pth")
        arguments = ["train.max_iter=2", "train.eval_base=false", "model.freeze=[image_encoder,prompt_encoder]"]
        run = train_net(tmp_path / "tuned", "train.init_checkpoint=base.pth", *arguments)
        files = {file.name: load_checkpoint_file(file) for file in run.glob("*.pth")}
        assert files.keys() == {"model_0000001.pth", "model_final.pth", "model_best.pth"}
        for content in files.values():
            assert content["base"]["file"] == "base.pth"
            assert content["model"] and all(name.startswith("mask_decoder.") for name in content["model"])
        trained = (run / "coco_instances_results.json").read_text()
        (run / "coco_instances_results.json").unlink()
        train_net(run, "train.init_checkpoint=base.pth", *arguments, "--eval-only", "train.init_checkpoint=")
        assert (run / "coco_instances_results.json").read_text() == trained
        base.unlink()
        with pytest.raises(UserError, match=r"model_final\.pth holds only what differs from base\.pth"):
            train_net(run, *arguments, "--eval-only")
