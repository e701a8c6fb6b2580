"""Download published weights into the checkpoints folder, and verify them where their sha256 is published.

A download that was interrupted goes on where it stopped.
"""

import argparse
import logging
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sam_d2.cli import run_main
from sam_d2.engine.download import download
from sam_d2.engine.weights import FOLDER_VARIABLE, PUBLISHED, download_folder

EXAMPLE = """example:
  python tools/download_checkpoint.py sam_vit_b
Exit code: 0 the file is there and, where its sha256 is published, verified; 2 it is not."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="short name, file name or URL; --list shows them")
    parser.add_argument(
        "--output", metavar="DIR", type=Path, help=f"default: {FOLDER_VARIABLE}, else the checkpoints folder"
    )
    parser.add_argument("--list", action="store_true", help="show what can be downloaded, and what is there")
    return parser


def print_list(folder: Path) -> None:
    table = Table(title=f"Weights in {folder}")
    for column in ("name", "file", "MB", "licence", "there"):
        table.add_column(column, justify="right" if column == "MB" else "left")
    for file_name, published in PUBLISHED.items():
        size = "-" if published.size is None else f"{published.size / 1e6:,.0f}"
        there = "yes" if (folder / file_name).is_file() else "no"
        table.add_row(published.name, file_name, size, published.licence, there)
    Console().print(table)


def main() -> int:
    parser = build_parser()
    args = parser.parse_args()
    if not args.list and args.name is None:
        parser.error("NAME is missing; --list shows the names")
    logging.basicConfig(format="%(message)s")
    folder = args.output or download_folder()
    if args.list:
        print_list(folder)
        return 0
    file = download(args.name, folder)
    published = PUBLISHED.get(file.name)
    verified = "sha256 verified" if published and published.sha256 else "not verified: no sha256 is published for it"
    print(f"{file}: {file.stat().st_size:,} bytes, {verified}")
    return 0


if __name__ == "__main__":
    run_main(main)
