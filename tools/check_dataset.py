#!/usr/bin/env python3
"""Find all that is wrong with a dataset before training does, and write a copy in which what can be is mended.

  python tools/check_dataset.py cells                           # a name: all of its files, and against one another
  python tools/check_dataset.py data/cells --images             # a folder; every image is read too
  python tools/check_dataset.py cells.json --fix cells_mended.json
  python tools/check_dataset.py cells --json findings.json      # every finding, not the first few of each kind

docs/check-dataset.md lists the checks and what --fix mends. Nothing is ever changed in place.
Exit code: 0 nothing found, 1 warnings, 2 errors (with --fix: those that are left in the copy), or wrong arguments.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sam_d2.atomic import write_atomically
from sam_d2.cli import check_output, run_main
from sam_d2.errors import UserError

_ORDER = ("train", "val", "test")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", metavar="NAME|FILE|FOLDER", help="COCO JSON, or Detectron2's list of dicts")
    parser.add_argument("--images", action="store_true", help="read every image, and compare their pixels")
    parser.add_argument("--image-root", type=Path, metavar="DIR", help="folder of the images of a FILE")
    parser.add_argument("--fix", type=Path, metavar="OUT.json", help="write a mended copy of a dataset of one file")
    parser.add_argument("--json", type=Path, metavar="REPORT", help="write all findings")
    return parser


def check_arguments(args: argparse.Namespace, files: list[Path]) -> None:
    """Refuse, before any work, files that cannot be written and folders that are not there."""
    if args.image_root is not None and not args.image_root.is_dir():
        raise UserError(f"--image-root {args.image_root}: no such folder. Check the path.")
    if args.image_root is not None and len(files) > 1:
        raise UserError("--image-root is that of one file; this dataset has several. Check one file at a time.")
    if args.json is not None:
        check_output(args.json, "--json")
        if any(args.json.exists() and args.json.samefile(file) for file in files if file.exists()):
            raise UserError(f"--json {args.json}: is the dataset file itself. Name another file.")
        if args.json.exists() and not is_report(args.json):
            raise UserError(f"--json {args.json}: exists and is no report of this tool. Name another file.")
    if args.fix is None:
        return
    check_output(args.fix, "--fix")
    if len(files) > 1:
        listed = "".join(f"\n  {file}" for file in files)
        raise UserError(f"--fix {args.fix}: the dataset {args.dataset} has several files. Mend one at a time:{listed}")
    if args.fix.exists():
        raise UserError(f"--fix {args.fix}: exists already, and nothing is overwritten. Name another file.")
    if args.json is not None and args.fix.absolute() == args.json.absolute():
        raise UserError(f"--fix and --json both name {args.fix}. Name two files.")


def main() -> int:
    args = build_parser().parse_args()
    from rich.console import Console

    from sam_d2.data.dataset_files import find_files
    from sam_d2.data.manifest import manifest_path
    from sam_d2.doctor.checkup import check_dataset
    from sam_d2.doctor.mend import mend
    from sam_d2.doctor.parts import Source
    from sam_d2.doctor.report import report_json
    from sam_d2.doctor.show import show_checkup, show_mended

    remedy = "python tools/check_dataset.py {file} --image-root {images}"
    found = find_files(args.dataset, manifest_path(), remedy=remedy)
    roots = () if args.image_root is None else (args.image_root.absolute(),)
    lone = Path(args.dataset).expanduser().is_file()  # of which no part is known
    splits: dict[Path, list[str]] = {}  # one file may be two
    for split in sorted(found, key=_ORDER.index):
        splits.setdefault(found[split].json_file, []).append(split)
    sources = []
    for file, names in splits.items():
        own = tuple(dict.fromkeys(root for name in names for root in found[name].image_roots))
        shared = names[0] == "train" and any(found["train"].may_share_images(found[name]) for name in names[1:])
        sources.append(Source("" if lone else " and ".join(names), file, roots or own, shared))
    check_arguments(args, list(splits))
    console = Console()
    checkup = check_dataset(sources, images=args.images)
    show_checkup(console, checkup)
    code = checkup.exit_code
    written = {}
    if args.json is not None:
        written[args.json] = json_bytes(report_json(args.dataset, checkup))
    if args.fix is not None:
        mended = mend(sources[0], checkup)
        written[args.fix] = mended.content()  # may be refused, before anything is said to be mended
        show_mended(console, mended, args.fix)
        code = mended.checkup.exit_code
    for path, content in written.items():
        try:
            write_atomically(path.absolute(), content)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}). Name another place.") from error
        print(f"Wrote {path}")
    return code


def is_report(file: Path) -> bool:
    """Tell whether a file is what ``--json`` wrote before, which may be written again."""
    from sam_d2.doctor.report import KEYS

    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.keys() == KEYS


def json_bytes(report: object) -> bytes:
    return json.dumps(report, indent=1).encode("ascii") + b"\n"


if __name__ == "__main__":
    run_main(main)
