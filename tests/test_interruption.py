"""Ctrl-C and SIGTERM: what a signal does in each state of a program, and that a training loses nothing by it."""

import errno
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from detectron2.engine import hooks
from sam_d2 import interruption
from sam_d2.cli import run_main
from sam_d2.engine.graceful_stop import EVALUATION_DUE, GracefulStop
from sam_d2.engine.step_news import News
from sam_d2.engine.trainer import Trainer
from sam_d2.errors import UserError
from sam_d2.evaluation.run import PromptedEvaluation
from sam_d2.interruption import Interrupted, StopRequests, stop_requests


def send(signum):
    os.kill(os.getpid(), signum)


@pytest.fixture(autouse=True)
def as_in_the_foreground():
    """A shell that puts the tests in the background has them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert stop_requests.received is None
    signal.signal(signal.SIGINT, before)


class TestStates:
    @pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_at_once(self, signum, code):
        with pytest.raises(KeyboardInterrupt) as caught, StopRequests().handled():
            send(signum)
        assert isinstance(caught.value, Interrupted) and caught.value.exit_code == code
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # as before

    def test_deferred_the_first_is_noted_and_the_second_raises(self, capfd):
        requests = StopRequests()
        with requests.handled(), requests.deferred("soon"):
            send(signal.SIGTERM)
            assert requests.received == signal.SIGTERM and capfd.readouterr().err == "\nsoon\n"
            with pytest.raises(Interrupted):
                send(signal.SIGINT)
            assert requests.received == signal.SIGTERM

    def test_at_once_within_deferred(self):
        requests = StopRequests()
        with requests.handled(), requests.deferred():
            with pytest.raises(Interrupted), requests.at_once():
                send(signal.SIGINT)
            with pytest.raises(Interrupted) as caught, requests.at_once():
                pytest.fail("a request had come before")
            assert caught.value.signum == signal.SIGINT

    def test_of_several_processes_further_signals_are_the_same_request(self, monkeypatch):
        requests = StopRequests()
        requests.several = True
        with requests.handled(), requests.deferred():
            for _ in range(3):  # of the terminal, of the launcher
                send(signal.SIGINT)
            monkeypatch.setattr(interruption, "SECONDS_OF_ONE_REQUEST", 0.0)
            with pytest.raises(Interrupted):
                send(signal.SIGINT)

    def test_while_the_checkpoint_is_written_only_ctrl_c_counts(self):
        requests = StopRequests()
        with requests.handled(), requests.finishing():
            send(signal.SIGTERM)
            with pytest.raises(Interrupted):
                send(signal.SIGINT)

    def test_a_signal_that_came_before(self):
        """Of the program that has started this one, which holds them back until they are handled."""
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # another thread would not hold it back
        with pytest.raises(Interrupted), StopRequests().handled():
            pytest.fail("it has come")

    def test_an_ignored_signal_stays_ignored(self):
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        requests = StopRequests()
        with requests.handled():
            send(signal.SIGINT)
        signal.signal(signal.SIGINT, before)
        assert requests.received is None

    @pytest.mark.parametrize(
        ("signum", "code", "line"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
    )
    def test_while_a_module_is_loaded_the_process_ends(self, tmp_path, signum, code, line):
        """A module in C would make another error of the exception, or crash."""
        kill = f"os.kill(os.getpid(), {int(signum)})"
        swallowed = f"import os\ntry:\n    {kill}\nexcept KeyboardInterrupt:\n    raise ImportError\n"
        (tmp_path / "swallowing.py").write_text(swallowed)
        program = "from sam_d2.cli import run_main; run_main(lambda: __import__('swallowing') and None)"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
        assert (done.returncode, done.stderr) == (code, f"{line}\n")

    def test_while_a_training_loads_a_module_its_weights_are_saved(self, tmp_path, monkeypatch):
        (tmp_path / "interrupted_module.py").write_text(f"import os\nos.kill(os.getpid(), {int(signal.SIGTERM)})\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        requests = StopRequests()
        with requests.handled(), requests.deferred(), pytest.raises(Interrupted), requests.at_once():
            importlib.import_module("interrupted_module")

    def test_a_program_that_is_terminated(self, capsys):
        with pytest.raises(SystemExit) as end:
            run_main(lambda: send(signal.SIGTERM))
        assert end.value.code == 143 and capsys.readouterr().err == "terminated\n"


def test_the_signal_to_end_with():
    assert News(0, 0, 3, 1).stop is None
    assert News(2, 0, 0, 0).stop == signal.SIGINT and News(1, 1, 0, 0).stop == signal.SIGTERM


OPTIONS = [
    "train.max_iter=6",
    "train.checkpointer.period=4",
    "train.eval_period=3",
    "train.eval_base=false",
    "train.early_stop.patience=9",
]


@pytest.fixture(scope="module")
def whole(train_net, tmp_path_factory):
    return train_net(tmp_path_factory.mktemp("whole") / "run", *OPTIONS)


def scores(folder):
    """Of each evaluation by iteration; of one that was done again the later one."""
    records = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return {record["iteration"]: record["segm/AP"] for record in records if "segm/AP" in record}


def require_same(folder, whole):
    final = [torch.load(one / "model_final.pth", weights_only=True)["model"] for one in (folder, whole)]
    torch.testing.assert_close(*final, rtol=0, atol=0)
    assert scores(folder) == scores(whole) and scores(whole).keys() == {2, 6}
    states = [torch.load(one / "model_0000005.pth", weights_only=True)["trainer"]["hooks"] for one in (folder, whole)]
    assert states[0]["EarlyStop"] == states[1]["EarlyStop"]


def at_step(monkeypatch, step):
    """Let SIGTERM come in the middle of a step, counted from 0."""
    run_step = Trainer.run_step

    def interrupted(trainer):
        if trainer.iter == step and not (interrupted.done):
            interrupted.done = True
            send(signal.SIGTERM)
        run_step(trainer)

    interrupted.done = False
    monkeypatch.setattr(Trainer, "run_step", interrupted)


@pytest.mark.parametrize(("step", "due"), [(0, False), pytest.param(2, True, marks=pytest.mark.slow)])
def test_a_training_finishes_its_step_and_goes_on_as_if_nothing_had_been(
    train_net, whole, tmp_path, monkeypatch, step, due
):
    """After step 3, the third, comes an evaluation: it is left to the resume."""
    at_step(monkeypatch, step)
    folder = tmp_path / "run"
    with pytest.raises(Interrupted) as caught, stop_requests.handled():
        train_net(folder, *OPTIONS)
    assert caught.value.exit_code == 143
    saved = torch.load(folder / f"model_{step:07d}.pth", weights_only=True)
    assert saved["iteration"] == step and bool(saved.get(EVALUATION_DUE)) == due
    assert not (folder / ".lock").exists() and not (folder / "report.json").exists()
    log = (folder / "log.txt").read_text()
    assert f"model_{step:07d}.pth is its last checkpoint. To go on: python " in log and log.endswith("--resume\n")
    train_net(folder, *OPTIONS, "--resume")
    require_same(folder, whole)


@pytest.mark.parametrize("how", [lambda: send(signal.SIGINT), lambda: [].pop()], ids=["Ctrl-C", "an error"])
def test_an_evaluation_that_is_interrupted_costs_no_step(train_net, whole, tmp_path, monkeypatch, how):
    call = PromptedEvaluation.__call__

    def interrupted(self, model, method="model"):
        if not list(tmp_path.glob("run/model_0000002.pth")):
            how()
        return call(self, model, method)

    monkeypatch.setattr(PromptedEvaluation, "__call__", interrupted)
    folder = tmp_path / "run"
    with pytest.raises((Interrupted, IndexError)), stop_requests.handled():
        train_net(folder, *OPTIONS)
    assert (folder / "last_checkpoint").read_text() == "model_0000002.pth"
    train_net(folder, *OPTIONS, "--resume")
    require_same(folder, whole)


def test_the_last_evaluation_ends_at_once_and_is_made_up_for(train_net, whole, tmp_path, monkeypatch):
    after_train = hooks.EvalHook.after_train

    def interrupted(hook):
        if hook.trainer.iter == 6:
            send(signal.SIGTERM)
        after_train(hook)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(hooks.EvalHook, "after_train", interrupted)
        with pytest.raises(Interrupted), stop_requests.handled():
            train_net(folder, *OPTIONS)
    assert (folder / "model_final.pth").exists() and (folder / "last_checkpoint").read_text() == "model_0000005.pth"
    train_net(folder, *OPTIONS, "--resume")
    require_same(folder, whole)


def test_a_second_signal_ends_it_at_once(train_net, tmp_path, monkeypatch):
    def twice(trainer):
        send(signal.SIGINT)
        while not stop_requests.received:  # a signal that still waits for its handler swallows the next of its kind
            time.sleep(0.01)
        send(signal.SIGINT)
        time.sleep(10)
        pytest.fail("the second one has ended it")

    monkeypatch.setattr(Trainer, "run_step", twice)
    with pytest.raises(Interrupted), stop_requests.handled():
        train_net(tmp_path / "run", *OPTIONS)
    assert not list((tmp_path / "run").glob("*.pth"))


def test_all_processes_stop_after_the_same_step(in_two_processes, train_net, tmp_path, monkeypatch):
    """One of them gets the signal, in the middle of its second step."""
    run_step = Trainer.run_step

    def interrupted(trainer):
        if trainer.iter == 1 and torch.distributed.get_rank() == 1:
            send(signal.SIGTERM)
            time.sleep(0.2)
        run_step(trainer)

    def train(folder):
        with stop_requests.handled():
            try:
                train_net(folder, *OPTIONS)
            except Interrupted as request:
                return request.exit_code, stop_requests.received  # within handled()

    monkeypatch.setattr(Trainer, "run_step", interrupted)
    folder = tmp_path / "run"
    assert in_two_processes(train, folder) == [(143, None), (143, signal.SIGTERM)]
    assert sorted(file.name for file in folder.glob("*.pth")) == ["model_0000001.pth"]
    assert torch.load(folder / "model_0000001.pth", weights_only=True)["iteration"] == 1


def test_where_the_checkpoint_finds_no_room_all_processes_end_with_the_same_message(in_two_processes, tmp_path):
    class Full:
        save_dir = str(tmp_path)

        def save(self, name, iteration):
            assert torch.distributed.get_rank() == 0
            raise OSError(errno.ENOSPC, "No space left on device", f"{name}.pth")

    def stop():
        hook = GracefulStop(Full())
        hook.trainer = SimpleNamespace(news=News(0, 1, 0, 0), iter=3, max_iter=9)
        with pytest.raises(UserError) as caught:
            hook.after_step()
        return str(caught.value).split(" (")[0]

    assert in_two_processes(stop) == ["model_0000003.pth: no room to write"] * 2
