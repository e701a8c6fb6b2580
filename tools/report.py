#!/usr/bin/env python3
"""Rebuild the page of a run, or put several runs side by side.

    python tools/report.py experiments/output/sam_tiny_quickstart_box
    python tools/report.py experiments/output/sam_tiny_quickstart_* --output comparison.html
    python tools/report.py RUN_OUT_OF_DISTRIBUTION --in-distribution RUN      # effective robustness

Reads the files of the run folders alone: no model, no images, no dataset.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sam_d2.cli import check_output, run_main
from sam_d2.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="run folder, as train_net.py writes it")
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help="page to write (default: RUN/report.html of one run, comparison.html in the working directory of several)",
    )
    parser.add_argument(
        "--in-distribution",
        nargs="+",
        metavar="RUN",
        type=Path,
        help="for each run the folder in which the same model was scored on images like those that it was trained on: "
        "adds AP there and the effective robustness (mean AP of the domains - 0.45 * AP in distribution) to RUN's "
        "report.json",
    )
    return parser


def main() -> int:
    args = build_parser().parse_args()
    from sam_d2.atomic import write_atomically
    from sam_d2.evaluation.domains import InDistribution
    from sam_d2.evaluation.report_compare import compare_page, print_comparison
    from sam_d2.evaluation.report_data import read_run
    from sam_d2.evaluation.report_page import FILE_NAME, run_page
    from sam_d2.evaluation.results import write_report

    runs = [read_run(folder) for folder in args.runs]
    if args.in_distribution:
        if len(args.in_distribution) != len(runs):
            raise UserError(
                f"--in-distribution names {len(args.in_distribution)} run folders for {len(runs)} runs; "
                "name one for each run, in the same order."
            )
        for run, folder in zip(runs, args.in_distribution, strict=True):
            InDistribution(read_run(folder).results, folder).store(run.results)
    single = len(runs) == 1
    output = args.output or (runs[0].folder / FILE_NAME if single else Path("comparison.html"))
    check_output(output)
    content = run_page(runs[0]) if single else compare_page(runs)
    if args.in_distribution:
        for run in runs:
            write_report(run.folder / "report.json", run.results)
    write_atomically(output, content.encode("utf-8"))
    print_comparison(runs)
    print(f"Wrote {output.resolve()}")
    return 0


if __name__ == "__main__":
    run_main(main)
