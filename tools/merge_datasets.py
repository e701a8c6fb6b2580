#!/usr/bin/env python3
"""Join COCO files to one dataset, each image tagged with its domain, for an AP of each domain.

    python tools/merge_datasets.py sketch=coco-o/sketch.json weather=coco-o/weather.json --output coco-o/all.json
    python tools/merge_datasets.py day=day.json night=night.json --map automobile=car --output both.json

The images stay where they are. docs/domains.md says what becomes of ids, categories and licences.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from sam_d2.cli import check_output, run_main
from sam_d2.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="DOMAIN=FILE", help="COCO JSON, and the tag of its images")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="COCO JSON to write")
    parser.add_argument(
        "--images",
        action="append",
        default=[],
        metavar="DOMAIN=FOLDER",
        help="what that file's names are relative to (default: looked for above the file)",
    )
    parser.add_argument(
        "--map", action="append", default=[], metavar="OLD=NEW", help="count a category as another, in all files"
    )
    return parser


def pairs(words: Sequence[str], form: str) -> list[tuple[str, str]]:
    """Split ``KEY=VALUE`` arguments at the first ``=``.

    Raises:
        UserError: one has no key or no value.
    """
    found = []
    for word in words:
        key, _, value = word.partition("=")
        if not key or not value:
            raise UserError(f"{word!r}: expected {form}.")
        found.append((key, value))
    return found


def unique(words: Sequence[str], form: str) -> dict[str, str]:
    """As :func:`pairs`, each key once.

    Raises:
        UserError: a key has two values.
    """
    found: dict[str, str] = {}
    for key, value in pairs(words, form):
        if found.setdefault(key, value) != value:
            raise UserError(f"{form}: {key!r} is given {found[key]!r} and {value!r}. Give it once.")
    return found


def main() -> int:
    args = build_parser().parse_args()
    # In here, where Ctrl-C is handled, and wrong words need not wait for it.
    import msgspec

    from sam_d2.data.findings import plural
    from sam_d2.data.merge import Source, merge_coco

    folders = unique(args.images, "--images DOMAIN=FOLDER")
    named = pairs(args.sources, "DOMAIN=FILE, such as sketch=sketch.json")
    sources = [Source(domain, Path(file), Path(folders[domain]) if domain in folders else None)
               for domain, file in named]  # fmt: skip
    for domain, _ in named:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", domain):
            raise UserError(
                f"Domain {domain!r}: use letters, digits, '_', '-' and '.', beginning with a letter or digit."
            )
    unknown = sorted(set(folders) - {domain for domain, _ in named})
    if unknown:
        raise UserError(f"--images names {', '.join(unknown)}, which is no domain of a file.")
    check_output(args.output)
    merged = merge_coco(sources, args.output, unique(args.map, "--map OLD=NEW"))
    from sam_d2.atomic import write_atomically

    write_atomically(args.output.absolute(), msgspec.json.encode(merged.document) + b"\n")
    for note in merged.notes:
        print(f"note: {note}")
    for domain, (images, instances) in merged.counts.items():
        print(f"{domain}: {plural(images, 'image')}, {plural(instances, 'annotation')}")
    where = "absolute" if merged.image_root is None else f"relative to {merged.image_root}"
    count = len(merged.document["categories"])
    print(f"Wrote {args.output}: {plural(count, 'category', 'categories')}; names of images are {where}")
    folder = " --test-images /" if merged.image_root is None else ""
    print("Register it as a test set; given to --dataset itself, the file would be split 80:20 into training and test:")
    print(f"  python tools/register_dataset.py NAME --train-json TRAIN.json --test-json {args.output}{folder}")
    return 0


if __name__ == "__main__":
    run_main(main)
