"""tools/benchmark.py: what it says of figures and answers, and that peaks do not mix."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest

from sam_d2.errors import UserError

TOOLS = Path(__file__).resolve().parents[1] / "tools"


@pytest.fixture
def load(monkeypatch):
    """``load(folder)``: the tool of a folder as a module, with the benchmarks beside it."""

    def forget():
        for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
            del sys.modules[name]

    def make(folder):
        forget()
        monkeypatch.syspath_prepend(str(folder))
        spec = importlib.util.spec_from_file_location("benchmark_tool", folder / "benchmark.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield make
    forget()


@pytest.fixture
def tool(load):
    return load(TOOLS)


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
    seconds = result["cases"]["ours"]["seconds"]
    assert seconds == {"median": 2, "min": 1, "max": 9, "quartile_1": 1.5, "quartile_3": 5.5}
    assert [ratio["median"] for ratio in result["ratios"]] == [0.5, 0.5]  # of 1/4, 9/5, 2/4 and of 10/20, 10/20, 40/20
    first = result["ratios"][0]
    assert (first["min"], first["max"], first["of_minima"]) == (0.25, 1.8, 0.25)  # the last is 1 / 4
    assert first["quartile_1"] == 0.375 and first["quartile_3"] == pytest.approx(1.15)  # halfway to 0.25 and to 1.8
    assert result["failures"] == []


def test_a_ratio_is_of_what_was_measured_at_the_same_time(tool, toy):
    """The machine gets slower and slower: each turn takes twice as long as the one before, on both sides."""
    ours = runs([(2**turn, 1) for turn in range(6)], [[1.0]] * 6)
    peer = runs([(4 * 2**turn, 1) for turn in range(6)], [[1.0]] * 6)
    ratio = tool.summarise(toy, {"ours": ours, "peer": peer})["ratios"][0]
    assert ratio["min"] == ratio["median"] == ratio["max"] == 0.25


def test_a_ratio_over_its_limit_is_a_failure(tool, toy):
    result = tool.summarise(toy, {"ours": runs([(3, 90)], [[1.0]]), "peer": runs([(5, 1)], [[1.0]])})
    assert result["failures"] == ["seconds of ours / peer is 0.600, at most 0.5 is asked for"]


@pytest.mark.parametrize(("seconds", "held"), [(2.0, True), (2.5, True), (2.6, False), (float("nan"), False)])
def test_a_ratio_of_at_least_is_the_peers_over_ours(tool, seconds, held):
    from benchmarks import Benchmark, Ratio

    both = Benchmark(
        cases={"ours": lambda: None, "peer": lambda: None}, ratios=(Ratio("seconds", "ours", "peer", at_least=2.0),)
    )
    result = tool.summarise(both, {"ours": runs([(seconds, 1)], [[]]), "peer": runs([(5, 1)], [[]])})
    (ratio,) = result["ratios"]
    assert ratio["name"] == "peer / ours"
    if held:
        assert ratio["median"] == ratio["of_minima"] == 5 / seconds and not result["failures"]
    else:
        assert len(result["failures"]) == 1
        assert (
            result["failures"][0].startswith("seconds of peer / ours is ") and "at least 2.0" in result["failures"][0]
        )


def test_the_plot_says_which_way_is_better(tool, toy, tmp_path):
    from benchmarks import Ratio

    toy = dataclasses.replace(toy, ratios=(*toy.ratios, Ratio("peak_mib", "ours", "peer", at_least=3.0)))
    result = tool.summarise(toy, {"ours": runs([(2, 10)], [[1.0]]), "peer": runs([(5, 40)], [[1.0]])})
    surroundings = {"hardware": "2 CPU cores", "date": "2026-11-21", "repeats": 1, "turns": 1}
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text as text
        for name in ("one.svg", "two.svg"):
            tool.plot("toy", {**result, **surroundings}, tmp_path / name)
    drawn = (tmp_path / "one.svg").read_text()
    assert "peer / ours" in drawn and drawn.count("higher is better") == 1 and drawn.count("lower is better") == 2
    assert " 4.00" in drawn and " 0.40" in drawn and " 0.25" in drawn  # 40 / 10, 2 / 5 and 10 / 40
    assert drawn == (tmp_path / "two.svg").read_text()
    tool.plot("toy", {**result, **surroundings, "ratios": []}, tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()


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
        groups = [case for group in benchmark.groups() for case in group]
        assert sorted(groups) == sorted(benchmark.cases), "each case is run once"


def test_what_runs_on_no_gpu_is_refused_there_by_name(tool, monkeypatch):
    monkeypatch.setenv("SAM_D2_BENCHMARK_DEVICE", "cuda")
    with pytest.raises(UserError, match=r"coco-evaluation: nothing in it runs on a GPU\. Leave out --device cuda\."):
        tool.load_benchmark("coco-evaluation")
    benchmark, _ = tool.load_benchmark("mask-decoder")
    assert "sam_d2, bfloat16 and torch.compile" in benchmark.cases
    assert tool.kept(Path("out"), "mask-decoder") == Path("out/mask-decoder-cuda.json")


class FakeGpu:
    """Stands in for ``torch.cuda``: a clock of 1.5 s and tensors of 10 MiB that grow by 30 for a while."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        answers = {"memory_allocated": 10 * 2**20, "max_memory_allocated": 40 * 2**20}
        return lambda: self.calls.append(name) or answers.get(name)

    def Event(self, enable_timing):
        event = SimpleNamespace(record=lambda: self.calls.append("record"))
        event.elapsed_time = lambda other: 1500.0 if other is not event else 0.0
        return event


def test_on_a_gpu_time_and_memory_are_the_devices(tool, monkeypatch):
    import torch
    from benchmarks import measure

    monkeypatch.setenv("SAM_D2_BENCHMARK_DEVICE", "cuda")
    monkeypatch.setattr(torch, "cuda", gpu := FakeGpu())
    result, figures = measure(lambda: gpu.calls.append("work") or "done")
    assert result == "done" and figures.pop("cpu_seconds") >= 0
    assert figures == {"seconds": 1.5, "peak_mib": 40.0, "step_mib": 30.0}
    work = gpu.calls.index("work")
    assert gpu.calls[work - 1] == gpu.calls[work + 1] == "record" and gpu.calls[work + 2] == "synchronize"
    assert gpu.calls[0] == "synchronize" and "reset_peak_memory_stats" in gpu.calls[:work]


def test_the_names_of_transformers_weights(tool):
    from benchmarks._transformers import renamed

    names = {
        "image_encoder.blocks.3.norm2.bias": "vision_encoder.layers.3.layer_norm2.bias",
        "image_encoder.neck.2.weight": "vision_encoder.neck.conv2.weight",
        "image_encoder.neck.3.bias": "vision_encoder.neck.layer_norm2.bias",
        "prompt_encoder.mask_downscaling.6.bias": "prompt_encoder.mask_embed.conv3.bias",
        "prompt_encoder.mask_downscaling.4.bias": "prompt_encoder.mask_embed.layer_norm2.bias",
        "mask_decoder.output_upscaling.3.weight": "mask_decoder.upscale_conv2.weight",
        "mask_decoder.iou_prediction_head.layers.1.bias": "mask_decoder.iou_prediction_head.layers.0.bias",
        "output_hypernetworks_mlps.2.layers.2.bias": "output_hypernetworks_mlps.2.proj_out.bias",
        "mask_decoder.transformer.layers.1.norm4.bias": "mask_decoder.transformer.layers.1.layer_norm4.bias",
    }
    assert list(renamed(dict.fromkeys(names))) == list(names.values())
    gaussian = renamed({"prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": 1})
    assert sorted(gaussian) == [
        "prompt_encoder.shared_embedding.positional_embedding", "shared_image_embedding.positional_embedding"
    ]  # fmt: skip


def test_the_table_has_every_ratio_that_is_asked_for(tool, tmp_path):
    ratio = {"name": "peer / ours", "figure": "seconds", "median": 2.456, "min": 2.0, "max": 3.0, "at_least": 1.5}
    others = [{**ratio, "figure": "step_mib", "at_least": 3.0}, {**ratio, "at_least": None}]
    (tmp_path / "b.json").write_text(json.dumps({"ratios": [ratio]}))
    (tmp_path / "a.json").write_text(json.dumps({"ratios": others}))
    assert tool.markdown_table(tmp_path).splitlines()[2:] == [
        "| `a` | peer / ours | memory | 2.46 (2.00-3.00) | 3 |",
        "| `b` | peer / ours | time | 2.46 (2.00-3.00) | 1.5 |",
    ]


def test_the_document_has_the_kept_figures(tool):
    document = (TOOLS.parent / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert tool.markdown_table(tool.RESULTS) in document, "python tools/benchmark.py --table prints what it should have"


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


@pytest.fixture
def toy_tool(load, tmp_path, monkeypatch):
    """``toy_tool(source, *arguments)``: a copy of the tool with one benchmark, toy-sum, and what it is called with."""

    def make(source, *arguments):
        folder = tmp_path / "tools"
        (folder / "benchmarks").mkdir(parents=True)
        (folder / "benchmark.py").write_text((TOOLS / "benchmark.py").read_text())
        (folder / "benchmarks" / "__init__.py").write_text((TOOLS / "benchmarks" / "__init__.py").read_text())
        (folder / "benchmarks" / "toy_sum.py").write_text(f'"""Two ways to add."""\n{source}')
        command = [str(folder / "benchmark.py"), *arguments, "--output-dir", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", command)
        return load(folder)

    return make


ALONE = """
import os
from benchmarks import Benchmark, Measured, Ratio
def add():
    return Measured({'process': os.getpid(), 'seconds': 1.0}, [3.0])
BENCHMARK = Benchmark({'a': add, 'b': add}, (Ratio('seconds', 'a', 'b', 1.1),), (('a', 'b'),))
"""


def test_runs_each_case_in_its_own_process_and_keeps_the_figures(toy_tool, tmp_path):
    assert toy_tool(ALONE, "toy-sum", "--repeats", "2").main() == 0
    result = json.loads((tmp_path / "out" / "toy-sum.json").read_text())
    processes = result["cases"]["a"]["process"], result["cases"]["b"]["process"]
    assert len({value for found in processes for value in (found["min"], found["max"])}) == 4
    assert result["ratios"][0]["median"] == 1.0 and (result["repeats"], result["turns"]) == (2, 1)
    assert {"date", "commit", "hardware", "torch", "threads"} <= set(result)


# Each turn notes its case in a file, and one of them says too much.
IN_TURN = """
import os, sys
from pathlib import Path
from benchmarks import Benchmark, Measured, Ratio
from sam_d2.errors import UserError
NOTES = Path(__file__).with_name("notes")
def turns(case):
    print("what a library says")
    for turn in range(3):
        with NOTES.open("a") as notes:
            notes.write(os.environ["NAME"])
        if (case, turn) == FAILS:
            raise ValueError("no more")
        yield Measured({'process': os.getpid(), 'seconds': 1.0}, [3.0])
def peer():
    if PEER is None:
        raise UserError("the peer is not here")
    return PEER
BENCHMARK = Benchmark(
    {case: lambda case=case: turns(case) for case in "abc"}, (Ratio('seconds', 'a', 'b'),), in_turn=(("a", "b"),),
    environment=lambda case: {"NAME": case.upper()}, peer=peer,
)
"""


def test_cases_take_turns_and_every_other_time_in_reverse(toy_tool, tmp_path):
    assert toy_tool("FAILS, PEER = None, 'the other 1.0'" + IN_TURN, "toy-sum", "--repeats", "1").main() == 0
    assert (tmp_path / "tools" / "benchmarks" / "notes").read_text() == "AB" + "BA" + "AB" + "CCC"
    result = json.loads((tmp_path / "out" / "toy-sum.json").read_text())
    a, b = (result["cases"][case]["process"] for case in "ab")
    assert a["min"] == a["max"] != b["min"] == b["max"], "each keeps its process"
    assert (result["turns"], result["peer"]) == (3, "the other 1.0")


def test_a_case_that_fails_between_turns_ends_all(toy_tool, tmp_path):
    tool = toy_tool("FAILS, PEER = ('b', 1), 'other'" + IN_TURN, "toy-sum", "--repeats", "1")
    with pytest.raises(UserError, match=r"(?s)toy-sum, b: ended with code 70.*ValueError: no more"):
        tool.main()
    assert not (tmp_path / "out").exists()


def test_without_its_peer_a_benchmark_is_refused_by_name_and_left_out_of_all(toy_tool, tmp_path, capsys):
    source = "FAILS, PEER = None, None" + IN_TURN
    tool = toy_tool(source)
    assert tool.main() == 0
    assert "toy-sum is left out: the peer is not here" in capsys.readouterr().out
    sys.argv.append("toy-sum")
    with pytest.raises(UserError, match="the peer is not here"):
        tool.main()


@pytest.mark.parametrize("checkout", [None, "", "nowhere"])
def test_the_embedded_core_needs_a_checkout_to_be_measured_against(tool, monkeypatch, checkout):
    monkeypatch.delenv("SAM_D2_DETECTRON2_PATH", raising=False)
    if checkout is not None:
        monkeypatch.setenv("SAM_D2_DETECTRON2_PATH", checkout)
    benchmark, _ = tool.load_benchmark("embedded-core")
    with pytest.raises(UserError, match=f"SAM_D2_DETECTRON2_PATH='{checkout or ''}' .* git clone https://"):
        benchmark.peer()


def test_each_core_has_a_path_of_its_own(tool, monkeypatch, tmp_path):
    monkeypatch.setenv("SAM_D2_DETECTRON2_PATH", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", "mine")
    benchmark, _ = tool.load_benchmark("embedded-core")
    ours, theirs = (benchmark.environment(case) for case in benchmark.in_turn[0])
    assert (ours["SAM_D2_DETECTRON2"], theirs["SAM_D2_DETECTRON2"]) == ("embedded", "installed")
    assert theirs["PYTHONPATH"].split(":")[0] == str(tmp_path) and str(tmp_path) not in ours["PYTHONPATH"].split(":")
    assert ours["PYTHONPATH"].endswith(":mine") and ours["OMP_NUM_THREADS"] == theirs["OMP_NUM_THREADS"] == "1"
