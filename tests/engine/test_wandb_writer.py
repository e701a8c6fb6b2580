"""The writer of W&B, with a stand-in for the package: what it is given, and what happens without it."""

import contextlib
import io
import sys
from types import SimpleNamespace

import pytest

import sam_d2  # noqa: F401
from detectron2.utils.events import EventStorage
from sam_d2.engine.trainer import _StopTraining
from sam_d2.engine.wandb_writer import WandbWriter
from sam_d2.errors import UserError


class StandIn:
    """Notes what ``wandb.init`` and the run are called with."""

    class Error(Exception):
        pass

    def __init__(self, fails=""):
        self.started, self.logged, self.exit_codes, self.fails = [], [], [], fails

    def init(self, **options):
        assert sys.stdin.read() == "", "there is no terminal to ask for a key in"
        if self.fails:
            raise self.Error(self.fails)
        self.started.append(options)
        return SimpleNamespace(log=lambda values, step: self.logged.append((step, values)), finish=self._finish)

    def _finish(self, exit_code):
        self.exit_codes.append(exit_code)


@pytest.fixture
def wandb(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    for name in ("WANDB_RUN_ID", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return stand_in


def test_scalars_go_to_the_step_that_they_are_of(wandb, tmp_path):
    writer = WandbWriter(tmp_path / "run", mode="offline", config={"train": {"seed": 1}})
    with EventStorage(0) as storage:
        for value in (3.0, 5.0, 4.0):
            storage.put_scalar("total_loss", value)
            storage.step()
        writer.write()
        writer.write()  # nothing new
        storage.put_scalar("lr", 0.1, smoothing_hint=False)
        writer.write()
    writer.close()
    # the median of 3, 5 and 4
    assert wandb.logged == [(2, {"total_loss": 4.0}), (3, {"lr": 0.1})]
    assert wandb.exit_codes == [0]
    options = wandb.started[0]
    assert (options["project"], options["name"], options["mode"]) == ("sam_d2", "run", "offline")
    assert options["config"] == {"train": {"seed": 1}} and options["dir"] == str(tmp_path / "run")


@pytest.mark.parametrize(("error", "code"), [(ValueError, 1), (KeyboardInterrupt, 1), (_StopTraining, 0)])
def test_a_training_that_breaks_off_is_a_failed_run(wandb, tmp_path, error, code):
    """``Trainer`` closes its writers while the error passes; an early stop passes as one too, and is none."""
    writer = WandbWriter(tmp_path)
    with contextlib.suppress(error):
        try:
            raise error
        finally:
            writer.close()
    assert wandb.exit_codes == [code]


def test_steps_never_fall(wandb, tmp_path):
    writer = WandbWriter(tmp_path)
    with EventStorage(0) as storage:
        storage.put_scalar("late", 1.0, cur_iter=7)
        storage.put_scalar("early", 2.0, cur_iter=3)
        writer.write()
    assert [step for step, _ in wandb.logged] == [3, 7]


def test_a_resume_goes_on_with_the_same_run(wandb, tmp_path):
    for folder in ("one", "one", "other"):
        WandbWriter(tmp_path / folder)
    first, again, other = (options["id"] for options in wandb.started)
    assert first == again != other
    assert all(options["resume"] == "allow" for options in wandb.started)


def test_a_sweeps_agent_names_the_run(wandb, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "of-the-agent")
    monkeypatch.setenv("WANDB_PROJECT", "boxes")
    WandbWriter(tmp_path)
    assert (wandb.started[0]["id"], wandb.started[0]["project"]) == ("of-the-agent", "boxes")
    assert not list(tmp_path.iterdir())


def test_without_wandb_the_message_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import of it fails
    with pytest.raises(UserError, match=r"pip install 'sam_d2\[wandb\]'"):
        WandbWriter(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_wandb_refuses_is_a_message(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", StandIn(fails="api_key not configured"))
    monkeypatch.setattr(sys, "stdin", before := io.StringIO("1"))
    with pytest.raises(UserError, match=r"api_key not configured.*train.wandb.mode=offline"):
        WandbWriter(tmp_path)
    assert sys.stdin is before and not list(tmp_path.iterdir()), "the next attempt may use the folder"


def test_another_mode_is_refused(wandb, tmp_path):
    with pytest.raises(UserError, match="expected online, offline"):
        WandbWriter(tmp_path, mode="of")
