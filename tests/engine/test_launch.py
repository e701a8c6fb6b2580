"""How the processes of a run are started, how they end, and what the user is told: once, whichever of them fails."""

import argparse
import json
import os
import signal
import socket
import sys
import time
from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.distributed as dist

from detectron2.utils import comm
from sam_d2.cli import default_dist_url, run_main
from sam_d2.engine import launch as launching
from sam_d2.engine.distributed import is_lost_connection
from sam_d2.engine.launch import launch_main
from sam_d2.errors import UserError
from sam_d2.interruption import stop_requests


def arguments(**options):
    single = {"num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": "auto"}
    return argparse.Namespace(**{**single, **options})


@pytest.fixture(autouse=True)
def outside_of_torchrun(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


class TestWhatIsAskedFor:
    @pytest.mark.parametrize(("gpus", "asked"), [(0, 0), (0, 1), (1, 1), (4, 1)])
    def test_one_process_is_this_one(self, monkeypatch, gpus, asked):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        args = arguments(num_gpus=asked)
        assert launch_main(lambda given: (given is args, os.getpid()), args) == (True, os.getpid())

    def test_more_gpus_than_there_are(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        with pytest.raises(UserError, match="--num-gpus 3: this machine has 2"):
            launch_main(print, arguments(num_gpus=3))

    @pytest.mark.parametrize(("gpus", "said"), [(2, ""), (0, "No GPU is found, so the CPU is used; processes")])
    def test_several_go_to_detectron2s_launcher(self, monkeypatch, capsys, free_port, gpus, said):
        calls = []
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(launching, "launch", lambda *given, **named: calls.append((given, named)))
        url = f"tcp://127.0.0.1:{free_port}"
        args = arguments(num_gpus=2, num_machines=3, machine_rank=1, dist_url=url)
        launch_main(print, args)
        named = {"num_machines": 3, "machine_rank": 1, "dist_url": url, "args": (print, args)}
        assert calls == [((launching._run_in_started_process, 2), named)]
        told = capsys.readouterr().err
        assert said in told and f"Machine 1 of 3, meeting at {url}" in told and ("GPU" in told) == (gpus == 0)

    @pytest.mark.parametrize("url", ["127.0.0.1:2000", "tcp://127.0.0.1", "tcp://:2000", "tcp://a:b", "udp://a:1"])
    def test_a_meeting_point_that_is_none(self, url):
        with pytest.raises(UserError, match=r"--dist-url .*: expected tcp://HOST:PORT, such as"):
            launch_main(print, arguments(num_gpus=0, num_machines=2, dist_url=url))

    def test_a_host_that_nobody_knows(self, monkeypatch):
        def unknown(host, port):
            raise socket.gaierror(-2, f"no {host} {port}")

        monkeypatch.setattr(socket, "getaddrinfo", unknown)
        with pytest.raises(UserError, match=r"--dist-url tcp://nod:29500: nod cannot be found \(no nod 29500\)\."):
            launch_main(print, arguments(num_gpus=0, num_machines=2, machine_rank=1, dist_url="tcp://nod:29500"))

    def test_processes_that_never_met(self):
        text = "Traceback:\n  a\ntorch.distributed.DistStoreError: Timed out after 1801 s, 1/2 clients joined.\n"
        error = torch.multiprocessing.ProcessRaisedException(text, 0, 1)
        assert launching._message_of(error, "tcp://a:1") == (
            "The processes could not meet at --dist-url tcp://a:1: Timed out after 1801 s, 1/2 clients joined."
        )

    @pytest.mark.parametrize("url", ["auto", default_dist_url()])
    def test_machines_do_not_meet_at_home(self, url):
        with pytest.raises(UserError, match=r"--num-machines 2: where do they meet\? .*--dist-url tcp://HOST:PORT"):
            launch_main(print, arguments(num_machines=2, machine_rank=1, dist_url=url))

    def test_another_runs_port(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        with socket.socket() as other:
            other.bind(("", 0))
            other.listen()
            url = f"tcp://127.0.0.1:{other.getsockname()[1]}"
            with pytest.raises(UserError, match=r"cannot meet there \(.*in use.*or --dist-url auto") as caught:
                launch_main(print, arguments(num_gpus=2, dist_url=url))
            assert url in str(caught.value)


def wait_in_vain():
    dist.all_reduce(torch.zeros(1))


def ends_alone(how, args):
    """The process of rank 1 ends, while the other waits for it."""
    if comm.get_rank() == 0:
        wait_in_vain()
    elif how == "signal":
        os.kill(os.getpid(), signal.SIGKILL)
    raise {"user": UserError("a.png: no image.\nTake another."), "exit": SystemExit(3), "fault": ValueError("ours")}[
        how
    ]


class TestEnds:
    """Started processes are forked here: spawned ones would first import torch, for seconds."""

    @pytest.fixture(autouse=True)
    def forked(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        monkeypatch.setattr(stop_requests, "several", False)  # set by what is run in this process
        fork = partial(torch.multiprocessing.start_processes, start_method="fork")
        monkeypatch.setattr(torch.multiprocessing, "start_processes", fork)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(self, main):
        return launch_main(main, arguments(num_gpus=2))

    def test_well(self, tmp_path):
        def main(args):
            ranks = comm.all_gather((comm.get_rank(), comm.get_local_size(), args.num_gpus, torch.get_num_threads()))
            (tmp_path / str(comm.get_rank())).write_text(json.dumps(ranks))

        assert self.run(main) is None
        for rank in (0, 1):
            assert json.loads((tmp_path / str(rank)).read_text()) == [[0, 2, 2, 1], [1, 2, 2, 1]]

    def test_processes_share_the_cpus_threads(self, monkeypatch):
        monkeypatch.delenv("OMP_NUM_THREADS")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(comm, "get_local_size", lambda: 3)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
        monkeypatch.setattr(torch, "set_num_threads", seen := [].append)
        launching._run_in_started_process(lambda args: None, arguments())
        assert seen.__self__ == [2]

    def test_by_a_mistake_of_the_users(self):
        with pytest.raises(UserError) as caught:
            self.run(partial(ends_alone, "user"))
        assert str(caught.value) == "a.png: no image.\nTake another."

    def test_by_a_fault_of_ours(self):
        with pytest.raises(torch.multiprocessing.ProcessRaisedException, match="ValueError: ours"):
            self.run(partial(ends_alone, "fault"))

    def test_by_an_exit(self):
        with pytest.raises(SystemExit) as caught:
            self.run(partial(ends_alone, "exit"))
        assert caught.value.code == 3

    def test_by_a_signal(self):
        with pytest.raises(
            UserError, match=r"Process 1 of the run was ended by SIGKILL: for want of memory, if nobody"
        ):
            self.run(partial(ends_alone, "signal"))

    def test_on_another_machine(self, monkeypatch):
        """No launcher ends the process that waits, so it says what it knows."""
        monkeypatch.setattr(launching, "SECONDS_FOR_THE_CULPRIT", 0.0)

        def main(args):
            if comm.get_rank() == 0:
                wait_in_vain()
            dist.destroy_process_group()
            time.sleep(60)

        with pytest.raises(UserError, match="The connection to another process of this run was lost"):
            self.run(main)

    def test_by_ctrl_c_that_they_do_not_see(self, monkeypatch, tmp_path):
        """As where a service ends the first process only. They get their own after a while, and are waited for."""
        monkeypatch.setattr(launching, "SECONDS_TO_END", 3.0)

        def main(args):
            # A shell that puts the tests in the background has them ignore Ctrl-C.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            (tmp_path / str(comm.get_rank())).touch()
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                (tmp_path / f"{comm.get_rank()} ended").touch()

        self.interrupt_when_both_are_there(monkeypatch, tmp_path)
        with pytest.raises(KeyboardInterrupt):
            self.run(main)
        assert len(list(tmp_path.glob("* ended"))) == 2

    @pytest.mark.parametrize("code", [2, 70, -signal.SIGKILL])
    def test_by_ctrl_c_after_which_one_fails_and_the_other_waits_for_it(self, monkeypatch, tmp_path, code):
        """As over NCCL, whose waits no signal ends."""
        monkeypatch.setattr(launching, "SECONDS_TO_END", 0.2)

        def fail(*_):
            os.kill(os.getpid(), -code) if code < 0 else os._exit(code)

        def main(args):
            signal.signal(signal.SIGINT, signal.SIG_IGN if comm.get_rank() == 0 else fail)
            (tmp_path / str(comm.get_rank())).write_text(str(os.getpid()))
            time.sleep(60)

        self.interrupt_when_both_are_there(monkeypatch, tmp_path)
        with pytest.raises(SystemExit if code > 0 else UserError) as end:
            self.run(main)
        if code > 0:
            assert end.value.code == code
        else:
            assert str(end.value).startswith("Process 1 of the run was ended by SIGKILL: for want of memory")
        for rank in (0, 1):
            with pytest.raises(ProcessLookupError):
                os.kill(int((tmp_path / str(rank)).read_text()), 0)

    def interrupt_when_both_are_there(self, monkeypatch, folder):
        fork = torch.multiprocessing.start_processes

        def start(*arguments, **options):
            fork(*arguments, **options, join=False)
            while len(list(folder.iterdir())) < 2:
                time.sleep(0.05)
            raise KeyboardInterrupt

        monkeypatch.setattr(torch.multiprocessing, "start_processes", start)


class TestUnderTorchrun:
    """Two processes with torchrun's environment, and its store in a third one, as torchrun's agent has it."""

    @pytest.fixture
    def run(self, monkeypatch, tmp_path, free_port):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        common |= {"MASTER_PORT": str(free_port), "TORCHELASTIC_USE_AGENT_STORE": "True"}

        def agent():
            store = dist.TCPStore("127.0.0.1", free_port, is_master=True, wait_for_workers=False)
            store.wait(["the end"], timedelta(minutes=2))

        def process(rank, main):
            own = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "TORCHELASTIC_ERROR_FILE": str(tmp_path / f"{rank}.json"),
            }
            os.environ.update(common | own)
            sys.stderr = (tmp_path / f"{rank}.err").open("w", buffering=1)
            run_main(lambda: launch_main(main, arguments(num_gpus=5)))

        def run(main):
            """Return exit code and stderr of each process, and what it has told torchrun."""
            context = torch.multiprocessing.get_context("fork")
            processes = [context.Process(target=process, args=(rank, main)) for rank in range(2)]
            keeper = context.Process(target=agent, daemon=True)
            for one in (keeper, *processes):
                one.start()
            ends = []
            for rank, one in enumerate(processes):
                one.join(60)
                file = tmp_path / f"{rank}.json"
                told = json.loads(file.read_text())["message"]["extraInfo"]["py_callstack"] if file.exists() else None
                ends.append((one.exitcode, (tmp_path / f"{rank}.err").read_text(), told))
            for one in (keeper, *processes):
                one.kill()
            return ends

        return run

    def test_well(self, run, tmp_path):
        def main(args):
            (tmp_path / str(comm.get_rank())).write_text(
                str([comm.get_local_rank(), *comm.all_gather(comm.get_rank())])
            )
            return 4 * comm.get_rank()

        assert run(main) == [(0, "", None), (4, "", None)]
        assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == ["[0, 0, 1]", "[1, 0, 1]"]

    def test_a_mistake_that_all_find_is_told_once(self, run):
        def main(args):
            raise UserError("no such dataset")

        ends = run(main)
        assert {code for code, *_ in ends} == {2}
        assert sorted(end[1:] for end in ends) == [("", None), ("error: no such dataset\n", "no such dataset")]

    def test_a_mistake_that_one_finds(self, run):
        main = partial(ends_alone, "user")
        message = "a.png: no image.\nTake another."
        assert run(main) == [(2, "", None), (2, f"error: {message}\n", message)]

    def test_a_fault_of_ours_has_one_traceback(self, run):
        first, second = run(partial(ends_alone, "fault"))
        assert first == (2, "", None)
        assert second[0] == 70 and second[1].count("Traceback") == 1 and "ValueError: ours" in second[1]

    def test_a_process_that_is_gone_without_a_word(self, run):
        first, second = run(partial(ends_alone, "signal"))
        assert second == (-signal.SIGKILL, "", None)
        assert first[0] == 2 and first[1].startswith("error: The connection to another process of this run was lost")

    def test_the_process_that_keeps_the_store_was_first(self):
        class Gone:
            def add(self, key, amount):
                raise dist.DistNetworkError("Broken pipe")

        assert not launching._is_first_to_fail(Gone())

    def test_ctrl_c_is_said_once(self, run):
        def main(args):
            raise KeyboardInterrupt

        assert run(main) == [(130, "interrupted\n", None), (130, "", None)]

    def test_more_processes_than_gpus(self, monkeypatch):
        for name, value in (("RANK", "0"), ("WORLD_SIZE", "3"), ("LOCAL_WORLD_SIZE", "3")):
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        with pytest.raises(UserError, match=r"torchrun --nproc-per-node 3: this machine has 2 GPU"):
            launch_main(print, arguments())

    def test_its_variables_without_torchrun(self, monkeypatch):
        for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("MASTER_ADDR", raising=False)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        with pytest.raises(UserError, match=r"RANK and WORLD_SIZE are set.*MASTER_ADDR expected.*unset the two"):
            launch_main(print, arguments())


def end_of_a_stopped_process(monkeypatch, capsys, error):
    """Exit code and stderr of one of several processes that ends with an error after it was asked to stop."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(stop_requests, "several", False)

    def stopped(args):
        with stop_requests.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            while stop_requests.received is None:
                time.sleep(0.01)
            raise error

    with pytest.raises(SystemExit) as end:
        launching._run_in_started_process(stopped, argparse.Namespace())
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("rank", "of_all", "said"), [(0, False, True), (0, True, True), (1, False, True), (1, True, False)]
)
def test_an_error_after_a_request_to_stop_is_told_by_the_process_itself(capsys, monkeypatch, rank, of_all, said):
    """The launcher has left its wait for messages by then: a full disk would look like a clean stop."""
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    error = UserError("model_0000003.pth: no space is left", of_all=of_all)
    assert end_of_a_stopped_process(monkeypatch, capsys, error) == (2, f"error: {error}\n" * said)


def test_a_fault_of_ours_after_a_request_to_stop_is_no_clean_stop(capsys, monkeypatch):
    code, error = end_of_a_stopped_process(monkeypatch, capsys, PermissionError("model_0000003.pth"))
    assert code == 70 and error.startswith("Traceback") and "PermissionError: model_0000003.pth" in error


def test_what_is_a_lost_connection():
    gloo = RuntimeError("[/a/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:1")
    assert is_lost_connection(gloo) and is_lost_connection(dist.DistNetworkError("x"))
    assert not is_lost_connection(RuntimeError("mat1 and mat2")) and not is_lost_connection(None)
    assert not is_lost_connection(UserError("gloo/"))
