"""tools/benchmark.py: what it says of figures and answers, and that peaks do not mix."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from sam_d2.errors import UserError

TOOLS = Path(__file__).resolve().parents[1] / "tools"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    spec = importlib.util.spec_from_file_location("benchmark_tool", TOOLS / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]


@pytest.fixture
def toy(tool):
    from benchmarks import Benchmark, Ratio

    return Benchmark(
        cases={"ours": lambda: None, "peer": lambda: None},
        ratios=(Ratio("seconds", "ours", "peer", limit=0.5), Ratio("peak_mib", "ours", "peer")),
        same_answers=(("ours", "peer"),),
        tolerance=0.01,
    )


def runs(figures: list[tuple[float, float]], answers: list[list[float]]):
    from benchmarks import Measured

    return [Measured({"seconds": s, "peak_mib": p}, a) for (s, p), a in zip(figures, answers, strict=True)]


def test_median_range_and_ratio(tool, toy):
    ours = runs([(1, 10), (9, 10), (2, 40)], [[1.0]] * 3)
    peer = runs([(4, 20), (5, 20), (4, 20)], [[1.0]] * 3)
    result = tool.summarise(toy, {"ours": ours, "peer": peer})
    assert result["cases"]["ours"]["seconds"] == {"median": 2, "min": 1, "max": 9}
    assert [ratio["value"] for ratio in result["ratios"]] == [0.5, 0.5]  # 2 / 4, 10 / 20
    assert result["failures"] == []


def test_a_ratio_over_its_limit_is_a_failure(tool, toy):
    result = tool.summarise(toy, {"ours": runs([(3, 90)], [[1.0]]), "peer": runs([(5, 1)], [[1.0]])})
    assert result["failures"] == ["seconds of ours over peer is 0.600, limit 0.5"]


@pytest.mark.parametrize(
    ("peer", "message"),
    [([100.0, 2.0], None), ([101.1, 2.0], "by 0.011"), ([100.0, 2.03], "by 0.015"), ([100.0], "has 1 numbers"),
     ([float("nan"), 2.0], "differs")],
)  # fmt: skip
def test_answers_are_compared(tool, toy, peer, message):
    result = tool.summarise(toy, {"ours": runs([(1, 1)], [[100.0, 2.0]]), "peer": runs([(4, 1)], [peer])})
    if message is None:
        assert not result["failures"]
    else:
        assert len(result["failures"]) == 1 and message in result["failures"][0]


def test_every_benchmark_is_described_and_consistent(tool):
    names = tool.benchmark_names()
    assert "memory-instances" in names
    for name in names:
        benchmark, description = tool.load_benchmark(name)
        assert description.endswith(".") and len(description) <= 100
        mentioned = {case for ratio in benchmark.ratios for case in (ratio.case, ratio.base)}
        assert mentioned.union(*benchmark.same_answers) <= set(benchmark.cases)


def test_an_unknown_name_is_refused(tool):
    with pytest.raises(UserError, match=r"no benchmark 'speed'\. There are: .*memory-instances"):
        tool.load_benchmark("speed")


PEAKS = """
import json
from benchmarks import measure

def take(mebibytes):
    return len(bytearray(b"x") * (mebibytes * 2**20))

measure(lambda: take(300))
print(json.dumps(measure(lambda: take(40))))
"""


def test_a_peak_is_that_of_its_own_call():
    # In a process of its own, as the tool measures: one that ran other tests may have 40 MiB to spare.
    done = subprocess.run([sys.executable, "-c", PEAKS], cwd=TOOLS, capture_output=True, text=True, check=True)
    size, small = json.loads(done.stdout.splitlines()[-1])
    assert size == 40 * 2**20 and small["seconds"] > 0
    if Path("/proc/self/clear_refs").exists():
        assert 35 < small["step_mib"] < 100, "the peak of 300 before it does not count"


def test_runs_each_case_in_its_own_process_and_keeps_the_figures(tool, tmp_path, monkeypatch):
    folder = tmp_path / "tools"
    (folder / "benchmarks").mkdir(parents=True)
    (folder / "benchmark.py").write_text((TOOLS / "benchmark.py").read_text())
    (folder / "benchmarks" / "__init__.py").write_text((TOOLS / "benchmarks" / "__init__.py").read_text())
    (folder / "benchmarks" / "toy_sum.py").write_text(
        '"""Two ways to add."""\n'
        "import os\n"
        "from benchmarks import Benchmark, Measured, Ratio\n"
        "def add():\n"
        "    return Measured({'process': os.getpid(), 'seconds': 1.0}, [3.0])\n"
        "BENCHMARK = Benchmark({'a': add, 'b': add}, (Ratio('seconds', 'a', 'b', 1.1),), (('a', 'b'),))\n"
    )
    command = [str(folder / "benchmark.py"), "toy-sum", "--repeats", "2", "--output-dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.syspath_prepend(str(folder))
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]
    spec = importlib.util.spec_from_file_location("toy_tool", folder / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main() == 0
    result = json.loads((tmp_path / "out" / "toy-sum.json").read_text())
    processes = result["cases"]["a"]["process"], result["cases"]["b"]["process"]
    assert len({value for found in processes for value in (found["min"], found["max"])}) == 4
    assert result["ratios"][0]["value"] == 1.0 and result["repeats"] == 2
    assert {"date", "commit", "hardware", "torch", "threads"} <= set(result)
