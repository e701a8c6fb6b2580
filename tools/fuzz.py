#!/usr/bin/env python3
"""Feed mutated files to the readers of sam_d2: each must end in a result or in one of our errors.

An input that ends in another traceback, takes too long or too much memory, kills the process, or makes a reader start
a program, connect or write outside of its folder is a finding: it is kept as a file that --repeat runs again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from random import Random

from fuzzing import FINDINGS, OUTCOMES
from fuzzing.guided import follow_coverage, import_atheris, instrumented
from fuzzing.harness import GROWTH, MEMORY, SECONDS, TARGETS, Harness, harness, limit_memory
from rich.console import Console
from rich.table import Table

from sam_d2.cli import run_main
from sam_d2.errors import UserError

EXAMPLE = """examples:
  python tools/fuzz.py --inputs 100000
  python tools/fuzz.py --target dataset --target results --inputs 2000 --seed 7
  python tools/fuzz.py --repeat fuzz_findings/dataset-traceback-0000123.bin

The same seed gives the same inputs. Exit code: 0 no finding, 1 findings, 2 the arguments do not fit."""
_START = 120.0
"""Seconds that a process may take to import and prepare."""
_MOST_KEPT = 3
"""Findings of one kind, by the last line of the traceback, that are kept as files."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"{_columns()}\n\n{EXAMPLE}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=1000, metavar="N", help="of all targets (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="other inputs (default %(default)s)")
    parser.add_argument(
        "--target",
        action="append",
        choices=list(TARGETS),
        metavar="NAME",
        help=f"{', '.join(TARGETS)}; may be given several times (default: all, each with its share)",
    )
    parser.add_argument(
        "--findings", type=Path, default=Path("fuzz_findings"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--repeat", type=Path, metavar="FILE", help="run one kept input again and show how it ends")
    parser.add_argument(
        "--guided", action="store_true", help="let libFuzzer look for inputs that reach new code (needs atheris)"
    )
    # The process of a target: TARGET FIRST END FILE; the file has the input that it is at, where it is guided.
    parser.add_argument("--process", nargs=4, help=argparse.SUPPRESS)
    return parser


def _columns() -> str:
    """Explain the columns of the table."""
    limits = {"seconds": SECONDS, "growth": GROWTH >> 20, "limit": MEMORY >> 20}
    columns = {name: text.format(**limits) + (" *" if name in FINDINGS else "") for name, text in OUTCOMES.items()}
    columns["past the parser"] = "share of the inputs that are not 'not parsed'"
    return "columns of the table (* a finding):\n" + "\n".join(f"  {name:<17}{text}" for name, text in columns.items())


def main() -> int:
    args = build_parser().parse_args()
    if args.process:
        name, first, end, current = args.process
        process = Process(name, int(first), int(end), args.seed, args.findings)
        return process.guided(Path(current)) if args.guided else process.drawn()
    if args.repeat:
        return repeat(args.repeat)
    if args.inputs < 1:
        raise UserError(f"--inputs {args.inputs}: at least 1.")
    if args.guided:
        import_atheris()
    names = args.target or list(TARGETS)
    shares = {name: TARGETS[name].share for name in names}
    begin = time.monotonic()
    counts = {}
    for name, share in shares.items():
        inputs = max(1, round(args.inputs * share / sum(shares.values())))
        counts[name] = run_target(name, inputs, args.seed, args.findings, guided=args.guided)
        passed = time.monotonic() - begin
        print(f"{name}: {_said(counts[name])}; {passed:.0f} s since the start", file=sys.stderr, flush=True)
    show(counts, time.monotonic() - begin)
    found = sum(count[outcome] for count in counts.values() for outcome in FINDINGS)
    if found:
        print(f"{found} findings; the first of each kind are in {args.findings}, python tools/fuzz.py --repeat FILE")
    return 1 if found else 0


def _said(count: Counter[str]) -> str:
    """Say in a line what became of a target's inputs."""
    outcomes = ", ".join(f"{count[outcome]:,} {outcome}" for outcome in OUTCOMES if count[outcome])
    return f"{count.total():,} inputs: {outcomes}"


def run_target(name: str, inputs: int, seed: int, findings: Path, *, guided: bool) -> Counter[str]:
    """Run the inputs of a target in a process, and in a new one behind each input that ended it."""
    counts: Counter[str] = Counter()
    first = 0
    with tempfile.TemporaryDirectory(prefix="fuzz_") as folder:
        current = Path(folder) / "current"
        current.touch()
        while first < inputs:
            command = [sys.executable, __file__, "--seed", str(seed), "--findings", str(findings)]
            command += ["--process", name, str(first), str(inputs), str(current), *["--guided"] * guided]
            # In a session of its own: Ctrl-C is for this process, which ends that one, and removes its files.
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, text=True, start_new_session=True, env={**os.environ, "TMPDIR": folder}
            ) as process:
                first, outcome = _follow(process, counts, first)
            if first < inputs:
                if outcome == "no start":
                    raise RuntimeError(f"the process of {name} does not start")
                counts[outcome] += 1
                if not guided:
                    with harness(name) as maker:  # in this process it is only made
                        current.write_bytes(maker.make(seed, first))
                keep(findings, f"{name}-{outcome}-{first:07d}", current.read_bytes(), f"exit code {process.returncode}")
                first += 1
    return counts


def _follow(process: subprocess.Popen[str], counts: Counter[str], first: int) -> tuple[int, str]:
    """Count what a process says of its inputs; returns the next one, and how the process ended."""
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None

    def read() -> None:
        for line in process.stdout or ():
            lines.put(line)
        lines.put("")

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    wait = _START
    try:
        while True:
            try:
                line = lines.get(timeout=wait)
            except queue.Empty:
                return first, "no start" if wait == _START else "timeout"
            if not line:
                process.wait()
                return first, "no start" if wait == _START and process.returncode else "died"
            wait = 10 * SECONDS
            if line.strip() in OUTCOMES:
                counts[line.strip()] += 1
                first += 1
    finally:  # on Ctrl-C too; the pipe is closed when nobody reads it any more
        process.kill()
        reader.join()


class Process:
    """Runs inputs of a target here, saying the outcome of each in a line; it may not survive one.

    Args:
        name: of the target.
        first: number of the first input.
        end: one more than that of the last.
        seed: other inputs.
        findings: folder where they are kept.
    """

    def __init__(self, name: str, first: int, end: int, seed: int, findings: Path) -> None:
        self.name, self.index, self.end, self.seed, self.findings = name, first, end, seed, findings
        self._kinds: Counter[str] = Counter()

    def drawn(self) -> int:
        """Run the inputs that the seed gives."""
        with harness(self.name) as runner:
            self._begin(runner)
            while self.index < self.end:
                self._run(runner, runner.make(self.seed, self.index))
        return 0

    def guided(self, current: Path) -> int:
        """Run inputs that libFuzzer looks for; the process ends with the last one.

        Args:
            current: file for the input that is being read.
        """
        with contextlib.ExitStack() as stack:
            with contextlib.redirect_stderr(io.StringIO()), instrumented():  # each module would be a line
                runner = stack.enter_context(harness(self.name))
                self._begin(runner)

            def one(random: Random) -> None:
                content = runner.target.make(random)
                current.write_bytes(content)
                self._run(runner, content)
                if self.index == self.end:
                    os._exit(0)

            follow_coverage(one, self.seed + self.index)
        return 0

    def _begin(self, runner: Harness) -> None:
        runner.run(runner.make(self.seed, 0))  # imports
        limit_memory()
        print("ready", flush=True)

    def _run(self, runner: Harness, content: bytes) -> None:
        outcome, text = runner.run(content)
        if outcome in FINDINGS:
            kind = f"{outcome} {' '.join(re.findall(r'File .*', text)[-1:])}"
            self._kinds[kind] += 1
            if self._kinds[kind] <= _MOST_KEPT:
                keep(self.findings, f"{self.name}-{outcome}-{self.index:07d}", content, text)
        self.index += 1
        print(outcome, flush=True)


def keep(folder: Path, name: str, content: bytes, text: str) -> None:
    """Write an input and what is known of it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.bin").write_bytes(content)
    (folder / f"{name}.txt").write_text(text, encoding="utf-8", errors="backslashreplace")


def repeat(file: Path) -> int:
    name = file.name.partition("-")[0]
    if name not in TARGETS or not file.is_file():
        raise UserError(f"--repeat {file}: name a file TARGET-OUTCOME-NUMBER.bin of a folder of findings.")
    with harness(name) as runner:
        limit_memory()
        outcome, text = runner.run(file.read_bytes())
    print(text)
    print(f"{file}: {outcome}")
    return 1 if outcome in FINDINGS else 0


def show(counts: dict[str, Counter[str]], seconds: float) -> None:
    """Print a table with the inputs of each target by outcome."""
    table = Table("target", *OUTCOMES, "inputs", "past the parser", box=None)
    total: Counter[str] = sum(counts.values(), Counter())
    for name, count in [*counts.items(), ("all", total)]:
        parsed = 1 - count["not parsed"] / max(1, count.total())
        table.add_row(name, *(f"{count[one]:,}" for one in OUTCOMES), f"{count.total():,}", f"{parsed:.0%}")
    Console(width=max(130, shutil.get_terminal_size().columns)).print(table)
    print(f"{total.total():,} inputs in {seconds:.0f} s. --help explains the columns.")


if __name__ == "__main__":
    run_main(main)
