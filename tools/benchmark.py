"""Measure time and memory, ours against a peer's or against itself, and keep the figures in docs/benchmarks/."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import inspect
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import DEVICE, Benchmark, Measured, Ratio, device
from rich.console import Console
from rich.table import Column, Table

from sam_d2.cli import check_output, run_main
from sam_d2.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(__file__).resolve().parent / "benchmarks"
RESULTS = ROOT / "docs" / "benchmarks"

EXAMPLE = """examples:
  python tools/benchmark.py --list
  python tools/benchmark.py memory-instances --repeats 5
  python tools/benchmark.py vit-b-encoder cached-step --device cuda

Each run of a case is a process of its own, and the cases are run in turn. embedded-core needs SAM_D2_DETECTRON2_PATH,
the folder of a checkout of Detectron2. Exit code: 0 all limits hold, 1 one does not or answers differ, 2 the
arguments do not fit."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run; all of them by default")
    parser.add_argument("--list", action="store_true", help="show the benchmarks and end")
    parser.add_argument("--table", action="store_true", help="show the kept ratios that are asked for, as Markdown")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="runs of each case (default %(default)s)")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where models run; default: %(default)s"
    )
    parser.add_argument("--output-dir", type=Path, default=RESULTS, metavar="DIR", help="default: docs/benchmarks")
    # The process of a case: for each line of its input it measures once and answers with a line.
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser


def benchmark_names() -> list[str]:
    return sorted(path.stem.replace("_", "-") for path in FOLDER.glob("[!_]*.py"))


def load_benchmark(name: str) -> tuple[Benchmark, str]:
    """Return a benchmark and the first line of its description."""
    if name not in benchmark_names():
        raise UserError(f"no benchmark {name!r}. There are: {', '.join(benchmark_names())}.")
    module = importlib.import_module(f"benchmarks.{name.replace('-', '_')}")
    if device() == "cuda" and not module.BENCHMARK.gpu:
        raise UserError(f"{name}: nothing in it runs on a GPU. Leave out --device cuda.")
    return module.BENCHMARK, (inspect.getdoc(module) or "").splitlines()[0]


def take_turns(function: Callable[[], Measured | Iterator[Measured]]) -> None:
    """Measure once for each line of the input, in the process of a case."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer

    def turns() -> Iterator[Measured]:
        found = function()
        yield from [found] if isinstance(found, Measured) else found

    for _, measured in zip(sys.stdin, turns(), strict=False):
        print(json.dumps(dataclasses.asdict(measured)), file=answers, flush=True)


def run_in_turn(name: str, cases: Sequence[str], environment: Callable[[str], dict[str, str]]) -> list[list[Measured]]:
    """Run cases in fresh processes, so that no peak, cache or thread of another is in the figures of one.

    Only one measures at a time. In every other turn they come in reverse order: none profits from the one before.

    Args:
        name: of the benchmark.
        cases: those that take turns.
        environment: see :class:`Benchmark`.

    Returns:
        for each case what it measured, by turns.

    Raises:
        UserError: a process failed.
    """
    command = [sys.executable, str(Path(__file__).resolve()), name, "--case"]
    runs: dict[str, list[Measured]] = {case: [] for case in cases}
    with contextlib.ExitStack() as stack:
        errors = {case: stack.enter_context(tempfile.TemporaryFile("w+")) for case in cases}
        processes: dict[str, Any] = {}
        for case in cases:
            variables = {**os.environ, **environment(case)}
            pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors[case], "text": True}
            processes[case] = stack.enter_context(subprocess.Popen([*command, case], env=variables, **pipes))
            stack.callback(processes[case].kill)
        for case in itertools.chain.from_iterable(cases[:: (-1) ** turn] for turn in itertools.count()):
            with contextlib.suppress(BrokenPipeError):  # it has ended, as its answer says
                print(file=processes[case].stdin, flush=True)
            line = processes[case].stdout.readline()
            if not line:
                break
            runs[case].append(Measured(**json.loads(line)))
        if code := processes[case].wait():
            errors[case].seek(0)
            raise UserError(f"{name}, {case}: ended with code {code}.\n{errors[case].read()[-3000:]}")
    return list(runs.values())


def differing_answers(benchmark: Benchmark, answers: dict[str, list[float]]) -> list[str]:
    """Return a line for each case whose answer is not that of the first of its group."""
    lines = []
    for first, *others in benchmark.same_answers:
        for other in others:
            one, two = answers[first], answers[other]
            if len(one) != len(two):
                lines.append(f"{other} has {len(two)} numbers, {first} has {len(one)}")
                continue
            gaps = [abs(a - b) / max(abs(a), abs(b), 1.0) for a, b in zip(one, two, strict=True)]
            if not max(gaps, default=0.0) <= benchmark.tolerance:  # NaN is a difference too
                lines.append(f"{other} differs from {first} by {max(gaps):.2g} (at most {benchmark.tolerance:g})")
    return lines


def spread(values: list[float]) -> dict[str, float]:
    """Return median, range and the quartiles, between which one half of the values lies."""
    low, median, high = statistics.quantiles(values, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median, "min": min(values), "max": max(values), "quartile_1": low, "quartile_3": high}


def summarise(benchmark: Benchmark, runs: dict[str, list[Measured]]) -> dict[str, Any]:
    """Return median and range of every figure and ratio, and what does not hold."""
    cases: dict[str, dict[str, Any]] = {}
    for case, measured in runs.items():
        cases[case] = {}
        for figure in measured[0].figures:
            cases[case][figure] = spread([run.figures[figure] for run in measured])
    ratios, failures = [], []
    for ratio in benchmark.ratios:
        pairs = zip(runs[ratio.case], runs[ratio.base], strict=True)
        found = spread([ratio.of(one.figures[ratio.figure], other.figures[ratio.figure]) for one, other in pairs])
        least = ratio.of(*(cases[case][ratio.figure]["min"] for case in (ratio.case, ratio.base)))
        ratios.append({**dataclasses.asdict(ratio), "name": ratio.name, **found, "of_minima": least})
        if not ratio.holds(found["median"]):
            failures.append(f"{ratio.figure} of {ratio.name} is {found['median']:.3f}, {ratio.bound} is asked for")
    for repeat in range(min(map(len, runs.values()))):
        answers = {case: measured[repeat].answer for case, measured in runs.items()}
        failures += differing_answers(benchmark, answers)
    return {"cases": cases, "ratios": ratios, "failures": sorted(set(failures))}


def surroundings() -> dict[str, Any]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "date": date.today().isoformat(),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("diff", "HEAD", "--name-only") else ""),
        "hardware": ", ".join([f"{cores} CPU cores ({_processor()})", *gpus]),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    """Return the name of the processor, as far as the system tells it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def show(name: str, result: dict[str, Any], console: Console) -> None:
    figures = list(next(iter(result["cases"].values())))
    table = Table(
        Column("case", no_wrap=True),
        *figures,
        title=f"{name}: median (range) of {result['repeats']} x {result['turns']}",
    )
    for case, found in result["cases"].items():
        cells = [_with_range(found[figure]) for figure in figures]
        table.add_row(case, *cells)
    console.print(table)
    for ratio in result["ratios"]:
        bound = Ratio(*(ratio[field.name] for field in dataclasses.fields(Ratio))).bound
        half = ", ".join(filter(None, [f"middle half {ratio['quartile_1']:.3f}-{ratio['quartile_3']:.3f}", bound]))
        console.print(f"{ratio['figure']}: {ratio['name']} = {ratio['median']:.3f} ({half})")
    for failure in result["failures"]:
        console.print(f"does not hold: {failure}", style="bold red")


def _with_range(figure: dict[str, float]) -> str:
    """Return a median, and where there are several values the range below it, which a narrow terminal has room for."""
    if figure["min"] == figure["max"]:
        return f"{figure['median']:.4g}"
    return f"{figure['median']:.4g}\n{figure['min']:.4g}-{figure['max']:.4g}"


def plot(name: str, result: dict[str, Any], path: Path) -> None:
    """Draw the ratios of a result as SVG: median, range, and what is asked for; nothing where it has none."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ratios = result["ratios"]
    if not ratios:
        return
    figure = Figure(figsize=(9, 1.2 + 0.45 * len(ratios)), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    for row, ratio in enumerate(ratios):
        color = "#0072b2" if ratio["at_least"] is not None else "#7f7f7f"
        axes.barh(row, ratio["median"], color=color, height=0.6)
        axes.plot([ratio["min"], ratio["max"]], [row, row], color="black", linewidth=1)
        bound = ratio["at_least"] if ratio["at_least"] is not None else ratio["limit"]
        if bound is not None:
            axes.plot([bound, bound], [row - 0.4, row + 0.4], color="#d55e00", linewidth=2)
        axes.annotate(f" {ratio['median']:.2f}", (max(ratio["median"], ratio["max"]), row), va="center")
    labels = [f"{ratio['name']}\n{ratio['figure']}, {'higher' if ratio['at_least'] else 'lower'} is better"
              for ratio in ratios]  # fmt: skip
    axes.set_yticks(range(len(ratios)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.5)
    axes.margins(x=0.12)
    figure.suptitle(f"{name}: {result['hardware']}, {result['date']}; line: range, orange: asked for", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    # No date, and no random names: the same figures make the same file.
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(path, metadata={"Date": None})


def kept(folder: Path, name: str) -> Path:
    """Return the file of a benchmark's figures; those of a GPU have one of their own."""
    return folder / f"{name}{'' if device() == 'cpu' else '-' + device()}.json"


def run_benchmark(name: str, repeats: int, output_dir: Path, console: Console) -> bool:
    """Run, show and keep one benchmark; return whether all of it holds."""
    benchmark, description = load_benchmark(name)
    peer = benchmark.peer()
    runs: dict[str, list[Measured]] = {case: [] for case in benchmark.cases}
    for repeat in range(repeats):
        for group in benchmark.groups():
            console.print(f"{name}: {' / '.join(group)}, run {repeat + 1} of {repeats}", style="dim")
            for case, measured in zip(group, run_in_turn(name, group, benchmark.environment), strict=True):
                runs[case] += measured
    result = {
        "benchmark": name,
        "description": description,
        **surroundings(),
        "peer": peer,
        "repeats": repeats,
        "turns": max(map(len, runs.values())) // repeats,
        **summarise(benchmark, runs),
    }
    write_json(kept(output_dir, name), result)
    plot(name, result, kept(output_dir, name).with_suffix(".svg"))
    show(name, result, console)
    return not result["failures"]


def runnable(console: Console) -> list[str]:
    """Return the benchmarks whose peers are here, and say which are left out."""
    names = []
    for name in benchmark_names():
        try:
            load_benchmark(name)[0].peer()
        except UserError as error:
            console.print(f"{name} is left out: {error}")
        else:
            names.append(name)
    return names


def markdown_table(folder: Path) -> str:
    """Return the kept ratios for which there is an aim, one row each, as a table of Markdown."""
    lines = ["| benchmark | peer / ours | figure | median (range) | asked |", "|---|---|---|---|---|"]
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        for ratio in result["ratios"]:
            if ratio.get("at_least") is None:  # nothing is asked for, or a file of before has no such entry
                continue
            found = f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})"
            figure = {"seconds": "time", "cpu_seconds": "CPU time"}.get(ratio["figure"], "memory")
            lines.append(f"| `{file.stem}` | {ratio['name']} | {figure} | {found} | {ratio['at_least']:g} |")
    return "\n".join(lines)


def require_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here. Leave the option out to measure on the CPU.")


def main() -> int:
    args = build_parser().parse_args()
    if args.case is not None:
        benchmark, _ = load_benchmark(args.names[0])
        take_turns(benchmark.cases[args.case])
        return 0
    os.environ[DEVICE] = args.device
    if args.device == "cuda":
        require_gpu()
    console = Console()
    if args.list:
        table = Table.grid(padding=(0, 2))
        for name in benchmark_names():
            table.add_row(name, load_benchmark(name)[1].replace("``", ""))
        console.print(table)
        return 0
    if args.table:
        print(markdown_table(args.output_dir))
        return 0
    if args.repeats < 1:
        raise UserError(f"--repeats {args.repeats}: expected at least 1.")
    names = args.names or runnable(console)
    for name in names:  # what cannot be run or kept ends it before anything is measured
        load_benchmark(name)[0].peer()
        check_output(kept(args.output_dir, name), "--output-dir")
    held = [run_benchmark(name, args.repeats, args.output_dir, console) for name in names]
    return 0 if all(held) else 1


if __name__ == "__main__":
    run_main(main)
