"""Programs as a terminal starts them, to be interrupted, and what is asked of their end."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


class Program:
    """A program in a process group of its own; its output is kept in files.

    Args:
        words: of its command line, behind ``python``.
        environment: variables that it gets beside those of this process.
    """

    def __init__(self, words, environment):
        self.files = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115, closed by the fixture
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-W", "ignore", *map(str, words)]
        out, err = self.files
        self.process = subprocess.Popen(
            command, stdout=out, stderr=err, env=variables, cwd=ROOT, start_new_session=True
        )
        self.pid = self.process.pid

    def wait_for(self, condition):
        """Wait until something is so; False where the program has ended before."""
        end = time.monotonic() + 120
        while self.process.poll() is None and time.monotonic() < end:
            if condition():
                return True
            time.sleep(0.005)
        return False

    def handles_signals(self):
        """Whether ``run_main`` has begun: Python by itself takes no SIGTERM."""
        caught = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{self.pid}/status").read_text(), re.M)
        return bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)

    def seconds_of_cpu(self):
        """What it and the processes that it has started have used so far: on a busy machine time says little."""
        ticks = 0
        for pid in (self.pid, *self.children()):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def work(self, seconds):
        """Let it use so many seconds of CPU, or wait four times as long; False where it has ended before."""
        latest, enough = time.monotonic() + 4 * seconds, self.seconds_of_cpu() + seconds
        return self.wait_for(lambda: self.seconds_of_cpu() >= enough or time.monotonic() > latest)

    def children(self):
        return [int(child) for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def press_ctrl_c(self):
        """Send SIGINT to the whole group, as a terminal does."""
        os.killpg(self.pid, signal.SIGINT)

    def end(self):
        """Wait for it; returns its exit code and the lines of its stdout and stderr."""
        code = self.process.wait(120)
        texts = []
        for file in self.files:
            file.seek(0)
            texts.append(file.read().splitlines())
        return code, *texts

    def require_done(self):
        code, out, err = self.end()
        assert code == 0, (out[-5:], err)

    def require_stopped(self, code, line):
        """One line, the last of stderr, says what has come, and there is no traceback."""
        found, out, err = self.end()
        assert (found, err[-1:]) == (code, [line]), (out[-5:], err)
        assert not any("Traceback" in text for text in out + err), (out[-5:], err)

    def require_error(self, pattern):
        """One line, the last of stderr, says what is wrong, and there is no traceback."""
        code, out, err = self.end()
        assert code == 2 and re.match(f"error: {pattern}", err[-1]), (out[-5:], err)
        assert len([text for text in err if text.startswith("error: ")]) == 1, err
        assert not any("Traceback" in text for text in out + err), (out[-5:], err)

    def kill(self):
        """End it, and what it has started, without a chance to say goodbye."""
        if self.process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def start():
    """``start(*words, **variables)``: a :class:`Program`, which the end of the test kills."""
    # A shell that puts the tests in the background has them, and what they start, ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    programs = []

    def begin(*words, **variables):
        programs.append(Program(words, variables))
        return programs[-1]

    yield begin
    for program in programs:
        program.kill()
        for file in program.files:
            file.close()
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def require_whole():
    """``require_whole(folder)``: no file in it is half written, and none is left over.

    But for that of a download, which goes on from it.
    """

    def check(folder):
        for file in folder.rglob("*"):
            assert not re.fullmatch(r"\..*\.(partial|tmp)|\.lock", file.name), file
            if file.suffix == ".pth":
                torch.load(file, weights_only=True)
            elif file.suffix == ".json" and file.name != "metrics.json":
                json.loads(file.read_text())
            elif file.suffix in (".png", ".jpg"):
                Image.open(file).load()
            elif file.suffix == ".html":
                assert file.read_text().rstrip().endswith("</html>"), file

    return check
