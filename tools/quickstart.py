#!/usr/bin/env python3
"""Train a small SAM on generated scenes, with box and with point prompts, and score both.

    python tools/quickstart.py

Needs no data, no weights and no GPU. Each run is an ordinary call of experiments/train_net.py, printed before it
begins; an interrupted one goes on from its last checkpoint, a finished one is only scored again.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from sam_d2.cli import run_main
from sam_d2.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "experiments" / "output"
PROMPTS = ("box", "point")


def run_folder(prompt: str) -> Path:
    return OUTPUT / f"sam_tiny_quickstart_{prompt}"


def trained_steps(folder: Path) -> int | None:
    """Steps of a finished run's training; None where its last checkpoint has no number."""
    try:
        number = (folder / "last_checkpoint").read_text().strip().removesuffix(".pth").rpartition("_")[2]
        return int(number) + 1
    except (OSError, ValueError):
        return None


def train_and_score(prompt: str, extra: list[str]) -> float:
    """Run train_net.py for one kind of prompt; returns its seconds."""
    folder = run_folder(prompt)
    command = [sys.executable, "experiments/train_net.py", "--config-file", "configs/sam_tiny.py"]
    command += ["--dataset", "quickstart", "--prompt", prompt]
    heading = f"\n== {prompt} prompts =="
    if (folder / "model_final.pth").is_file():
        command.append("--eval-only")
        steps = trained_steps(folder)
        trained = "already trained" if steps is None else f"already trained ({steps} steps)"
        heading += f"\n{trained}; scored again. Delete {folder} to train anew."
    elif folder.is_dir():
        command.append("--resume")
    command += extra
    shown = " ".join(shlex.quote(part) for part in ["python", *command[1:]])
    print(f"{heading}\n$ {shown}", flush=True)
    start = time.perf_counter()
    # Ctrl-C is for the training, which keeps a checkpoint before it ends; after that it is for this process.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    code = subprocess.run(command, cwd=ROOT).returncode
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    if code:
        log = folder / "log.txt"
        where = f"its log is {log}" if log.is_file() else "it said why above"
        raise UserError(f"the run with {prompt} prompts ended with exit code {code}; {where}.")
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "opts", nargs="*", metavar="key=value", help="changes to the config of both runs, such as train.max_iter=300"
    )
    args = parser.parse_args()
    seconds = {prompt: train_and_score(prompt, args.opts) for prompt in PROMPTS}

    from sam_d2.evaluation import legend, read_report, results_table

    print("\n== Results on scenes that were not trained on ==")
    reports = {prompt: read_report(run_folder(prompt) / "report.json") for prompt in PROMPTS}
    for prompt, results in reports.items():
        print(results_table(results))
        print(f"took {seconds[prompt]:.0f} s, evaluations included\n")
    print(f"{legend(row for results in reports.values() for row in results if row.ranks)}\n")
    print("Look at:", *(f"  {(run_folder(prompt) / 'report.html').relative_to(ROOT)}" for prompt in PROMPTS), sep="\n")
    print("Next: your own images, see 'Your own images' in README.md.")
    return 0


if __name__ == "__main__":
    run_main(main)
