"""The readers of foreign files, fed with mutated ones: a result or an error of ours, and nothing else.

`make fuzz` feeds many more; these take seconds. hypothesis draws what the mutations decide, so that it can shorten what
it finds.
"""

import json
import os
import re
import subprocess
import sys
import time
import zlib
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from fuzzing import FINDINGS, Target  # noqa: E402
from fuzzing.guided import BytesRandom, import_atheris  # noqa: E402
from fuzzing.harness import TARGETS, Harness  # noqa: E402

from sam_d2.errors import UserError  # noqa: E402

EXAMPLES = {
    "dataset": 70,
    "mend": 20,
    "results": 50,
    "checkpoint": 50,
    "resume": 8,
    "embedding": 60,
    "overrides": 15,
    "manifest": 15,
    "yaml": 15,
    "report": 8,
}


@pytest.fixture(scope="module")
def harness(request, tmp_path_factory):
    """One of a target."""
    return Harness(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("harness", list(TARGETS), indirect=True)
def test_mutated_inputs(harness):
    @settings(
        max_examples=EXAMPLES[harness.target.name],
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def inputs(random):
        content = harness.target.make(random)
        outcome, text = harness.run(content)
        assert outcome not in FINDINGS, f"{content[:500]!r}: {text}"

    inputs()


def test_the_shares_are_percent():
    assert sum(target.share for target in TARGETS.values()) == 100


@pytest.mark.parametrize("harness", ["dataset", "results", "manifest"], indirect=True)
def test_the_seeds_are_sound(harness):
    """Or most mutations would be refused for another reason than theirs."""
    sound = [harness.run(json.dumps(seed).encode()) for seed in harness.target.seeds]
    alone = [text for outcome, text in sound if outcome != "accepted"]
    assert all("boxes alone" in text for text in alone) and len(alone) == (harness.target.name == "dataset")


class Faulty(Target):
    """A reader with every fault that a harness must see."""

    name, share = "faulty", 1

    def prepare(self, folder):
        self.folder = folder
        self.not_to_open = frozenset([folder / "secret"])

    def make(self, random):
        return random.choice([b"good", b"bad"])

    def parses(self, content):
        return content != b"garbage"

    def read(self, content):
        if content == b"traceback":
            raise KeyError("x")
        if content == b"hang":
            time.sleep(5)
        if content == b"write":
            (Path(__file__).parent / "written").open("w").close()
        if content == b"read":
            (self.folder / "secret").open().close()
        if content == b"run":
            subprocess.run(["true"], check=True)
        if content == b"memory":
            bytearray(os.urandom(1)) * (600 << 20)
        if content in (b"refused", b"garbage"):
            raise UserError("no")


def most_since():
    """Bytes at the peak since it was last reset."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10


@pytest.mark.parametrize(
    ("content", "outcome"),
    [
        ("good", "accepted"),
        ("refused", "refused"),
        ("garbage", "not parsed"),
        ("traceback", "traceback"),
        ("hang", "timeout"),
        ("write", "escaped"),
        ("read", "escaped"),
        ("run", "escaped"),
        ("memory", "memory"),
    ],
)
def test_the_harness_sees(content, outcome, tmp_path, monkeypatch):
    monkeypatch.setitem(TARGETS, "faulty", Faulty)
    if outcome == "timeout":
        monkeypatch.setattr("fuzzing.harness.SECONDS", 0.2)
    if outcome == "memory":  # other tests of this process may have taken more: their peak is not to count
        Path("/proc/self/clear_refs").write_text("5")
        monkeypatch.setattr("fuzzing.harness._most_resident", most_since)
    (tmp_path / "secret").touch()
    runner = Harness("faulty", tmp_path)
    try:
        assert runner.run(content.encode())[0] == outcome
    finally:
        (Path(__file__).parent / "written").unlink(missing_ok=True)


def test_the_same_seed_gives_the_same_inputs(tmp_path):
    runner = Harness("embedding", tmp_path)
    assert [runner.make(1, n) for n in range(5)] == [runner.make(1, n) for n in range(5)]
    assert len({runner.make(seed, n) for seed in range(3) for n in range(5)}) == 15


def fuzz(*words):
    command = [sys.executable, str(ROOT / "tools" / "fuzz.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_tool(tmp_path):
    words = ["--target", "embedding", "--inputs", 30, "--seed", 3, "--findings", tmp_path / "findings"]
    done = fuzz(*words)
    assert done.returncode == 0, done.stderr + done.stdout
    assert re.fullmatch(r"embedding: 30 inputs: [1-9]\d* accepted, .*; \d+ s since the start\n", done.stderr)
    assert "30 inputs in" in done.stdout and not (tmp_path / "findings").exists()


@pytest.mark.slow
def test_a_kept_input_is_run_again(tmp_path):
    file = tmp_path / "manifest-traceback-0000001.bin"
    file.write_bytes(b"[")
    done = fuzz("--repeat", file)
    assert done.returncode == 0 and f"{file}: not parsed" in done.stdout and "Manifest" in done.stdout
    file.write_bytes(b'{"version": 1}')
    assert fuzz("--repeat", file).stdout.endswith(": accepted\n")


def test_a_kept_input_that_is_not_there(tmp_path):
    wrong = fuzz("--repeat", tmp_path / "x.bin")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: --repeat ")


class TestGuided:
    def test_bytes_decide_and_go_on_as_a_seed(self):
        random = BytesRandom(b"\x05\x01\x00\x80\xff")
        assert [random.getrandbits(3), random.getrandbits(9), random.random()] == [5, 1, 0xFF80 / 65536]
        rest = [random.random() for _ in range(3)]
        assert rest == [Random(zlib.crc32(b"\x05\x01\x00\x80\xff")).getrandbits(16) / 65536, *rest[1:]]
        assert len(set(rest)) == 3

    def test_another_byte_is_another_choice_at_one_place(self):
        words = "abcdefgh"
        one, other = BytesRandom(bytes(range(8))), BytesRandom(bytes([0, 1, 2, 7, 4, 5, 6, 7]))
        assert "".join(one.choice(words) for _ in range(8)) == "abcdefgh"  # 4 bits each, below 8
        assert "".join(other.choice(words) for _ in range(8)) == "abchefgh"

    def test_without_atheris(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "atheris", None)
        with pytest.raises(UserError, match=r"--guided needs atheris .*pip install -e '\.\[fuzz\]'"):
            import_atheris()

    @pytest.mark.slow
    def test_the_tool(self, tmp_path):
        pytest.importorskip("atheris", reason="atheris has no wheel for every system")
        done = fuzz("--guided", "--target", "manifest", "--inputs", 60, "--findings", tmp_path / "findings")
        assert done.returncode == 0 and "60 inputs in" in done.stdout, done.stderr + done.stdout
        assert "Instrumenting" not in done.stderr and not (tmp_path / "findings").exists()
