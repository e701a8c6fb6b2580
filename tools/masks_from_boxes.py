#!/usr/bin/env python3
"""Make a mask of every box of a dataset with SAM: the same COCO JSON again, with masks.

  python tools/masks_from_boxes.py --dataset cells --config-file configs/sam_vit_h.py --output cells_masks.json
  OMP_NUM_THREADS=4 torchrun --nproc-per-node 2 tools/masks_from_boxes.py --dataset boxes.json ... --output masks.json

Interrupted or killed, it goes on where it was with the same command again: what is finished is kept in OUTPUT.journal.
Boxes stay as they are, and crowd annotations untouched; each mask says in "provenance" which model made it and how sure
it is. docs/masks-from-boxes.md has the rest.
Exit code: 0 all images done, 1 some could not be read and are left out, 2 wrong input.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam_d2.cli import check_output, run_main
from sam_d2.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from sam_d2.labelling.labeller import Filters
    from sam_d2.labelling.output import Counts
    from sam_d2.labelling.source import Source

BATCH = 8
REASONS = {
    "empty": "no mask was predicted",
    "min_area": "smaller than --min-area",
    "max_area": "larger than --max-area",
    "min_score": "score under --min-score",
    "min_stability": "stability under --min-stability",
    "no_area": "the box has no area",
    "outside": "the box lies outside of its image",
    "image_not_read": "the image cannot be read",
}


def number(text: str) -> float:
    """Return a finite number; for argparse."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset",
        required=True,
        metavar="NAME|FOLDER|FILE",
        help="the boxes: a name, a folder, or a COCO JSON",
    )
    parser.add_argument("--split", metavar="NAME", help="which file of a dataset with several (default: train)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the images (default: the dataset's)")
    parser.add_argument(
        "--config-file", required=True, type=Path, metavar="FILE", help="of a SAM: a .py, or a run's folder"
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="default: the run's model_final.pth, else the config's train.init_checkpoint"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="the JSON to write")
    parser.add_argument(
        "--format", choices=("rle", "polygons"), default="rle", help="polygons lose holes (default: %(default)s)"
    )
    parser.add_argument("--keep-existing", action="store_true", help="leave annotations that have a mask as they are")
    parser.add_argument("--score", metavar="NAME", help="in place of the config's model.score")
    parser.add_argument("--min-score", type=number, metavar="X", help="drop masks with a lower score")
    parser.add_argument("--min-stability", type=number, metavar="X", help="drop masks with a lower stability, 0-1")
    parser.add_argument("--min-area", type=number, metavar="PIXELS", help="drop smaller masks")
    parser.add_argument("--max-area", type=number, metavar="PIXELS", help="drop larger masks")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    parser.add_argument(
        "--batch-size", type=int, default=BATCH, metavar="N", help="images between two writes (default: %(default)s)"
    )
    parser.add_argument("opts", nargs="*", default=[], metavar="key=value", help="changes to the config")
    parser.set_defaults(num_gpus=1, num_machines=1)  # more processes come from torchrun
    return parser


def parse_args() -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_intermixed_args()
    if args.batch_size < 1:
        parser.error("--batch-size must be at least 1")
    if args.min_stability is not None and not 0 <= args.min_stability <= 1:
        parser.error("--min-stability must be 0 to 1")
    if args.min_area is not None and args.max_area is not None and args.min_area > args.max_area:
        parser.error("--min-area is above --max-area")
    return args


def load_model(args: argparse.Namespace) -> tuple[DictConfig, Path]:
    """Return the config of a SAM, with the command line's changes, and its weights."""
    from sam_d2.config import apply_overrides
    from sam_d2.config_numbers import check_numbers
    from sam_d2.engine.weights import find_weights
    from sam_d2.model_source import find_model

    cfg, weights = find_model(args.config_file, args.weights, option="--weights")
    begins_with = cfg.train.init_checkpoint
    cfg = apply_overrides(cfg, args.opts)
    check_numbers(cfg)
    if "prompts" not in cfg.model:
        raise UserError(f"--config-file {args.config_file}: its model takes no boxes. Name a config of SAM.")
    if not args.weights and cfg.train.init_checkpoint != begins_with:
        weights = find_weights(cfg.train.init_checkpoint)
    if args.score:
        cfg.model.score = args.score
    return cfg, weights


def describe(args: argparse.Namespace, cfg: DictConfig, weights: Path, source: Source) -> dict[str, Any]:
    """Return what the output's info says of how the masks were made."""
    import hashlib

    import msgspec
    from omegaconf import OmegaConf

    from sam_d2.engine.weights import sha256_of
    from sam_d2.labelling.labeller import PROMPT

    model = msgspec.json.encode(OmegaConf.to_container(cfg.model, resolve=True))
    file = args.config_file.absolute()
    run = file if file.is_dir() else file.parent
    return {
        "model": file.stem if file.suffix == ".py" else run.name,
        "model_config_sha256": hashlib.sha256(model).hexdigest(),
        "checkpoint": weights.name,
        "checkpoint_sha256": sha256_of(weights),
        "prompt": PROMPT,
        "score": cfg.model.score,
        "format": args.format,
        "keep_existing": args.keep_existing,
        "filters": {name: value for name, value in asdict(filters_of(args)).items() if value is not None},
        "source": source.json_file.name,
        "source_sha256": sha256_of(source.json_file),
    }


def filters_of(args: argparse.Namespace) -> Filters:
    from sam_d2.labelling.labeller import Filters

    return Filters(args.min_score, args.min_stability, args.min_area, args.max_area)


def print_counts(args: argparse.Namespace, counts: Counts) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("images", str(counts.images))
    if counts.images_unread:
        table.add_row("  left out, not readable", str(counts.images_unread))
    table.add_row("annotations", str(counts.annotations))
    table.add_row("  masks made", str(counts.made))
    if args.keep_existing:
        table.add_row("  kept as they were", str(counts.kept))
    table.add_row("  crowd, untouched", str(counts.crowd))
    for reason, dropped in counts.dropped.items():
        table.add_row(f"  dropped: {REASONS[reason]}", str(dropped))
    Console().print(table)
    print(f"Written: {args.output}")
    for name, problem in counts.images_left_out:
        print(f"left out: {problem if name in problem else f'{name}: {problem}'}", file=sys.stderr)
    if counts.images_unread:
        print(
            f"{counts.images_unread} images are left out. Mend them and repeat the command: it does those alone.",
            file=sys.stderr,
        )


def work(args: argparse.Namespace) -> int:
    """Run in each process; the first one prepares and joins, and says all that is said."""
    import logging
    from functools import partial

    import torch

    from detectron2.utils import comm
    from sam_d2.engine.console import quiet_console
    from sam_d2.labelling.index import DatasetIndex, build_index
    from sam_d2.labelling.journal import Journal
    from sam_d2.labelling.labeller import BoxLabeller
    from sam_d2.labelling.output import read_info
    from sam_d2.labelling.progress import LabelProgress
    from sam_d2.labelling.run import LabellingRun, Processes, keep_memory_flat
    from sam_d2.labelling.source import find_source
    from sam_d2.predictor import Predictor

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    quiet_console()
    first, processes = comm.is_main_process(), Processes()
    if not first:
        processes.wait()
    cfg, weights = load_model(args)
    source = find_source(args.dataset, args.split, args.images)
    info = describe(args, cfg, weights, source)
    journal = Journal(args.output.with_name(f"{args.output.name}.journal"))
    if args.output.exists() and not journal.folder.exists():
        before = read_info(args.output) or {}
        if any(before.get(key) != value for key, value in info.items()):
            raise UserError(f"--output {args.output}: exists, and is of another command. Move it away.")
        if first:
            journal.sweep()
            print(f"{args.output} is complete: it was made by this command.")
            processes.wait()
        return 0
    predictor = Predictor(cfg, weights, args.device)
    run = LabellingRun(source.json_file, args.output, journal, args.keep_existing, args.batch_size)
    if first:
        others = f" (of its other files: --split {' or '.join(source.other_splits)})" if source.other_splits else ""
        print(f"Boxes of {source.json_file}{others}\nMasks by {info['model']}, {weights}")
        settings = {
            **info,
            "dataset": str(source.json_file),
            "images": [str(root) for root in source.image_roots],
            "device": predictor.model.device.type,
        }
        tables = partial(build_index, source.json_file, source.image_roots, source.classes)
        if journal.begin(settings, tables, threads=torch.get_num_threads()):
            print(f"Going on from {journal.folder}")
        processes.wait()
    torch.set_num_threads(journal.threads)
    keep_memory_flat()
    index = DatasetIndex(journal.index, source.json_file)
    rows = run.remaining(index)
    processes.wait()  # nobody writes before everybody has seen what is left
    provenance = {"model": info["model"], "checkpoint_sha256": info["checkpoint_sha256"]}
    labeller = BoxLabeller(predictor, filters_of(args), provenance, args.format)
    run.label(index, rows, labeller, LabelProgress(len(rows), enabled=first))
    processes.wait()
    if not first:
        return 0
    counts = run.join(index, info)
    print_counts(args, counts)
    return 1 if counts.images_unread else 0


def main() -> int:
    import sqlite3

    args = parse_args()
    check_output(args.output)
    from sam_d2.engine.launch import launch_main

    try:
        return launch_main(work, args) or 0
    except sqlite3.Error as error:
        raise UserError(
            f"{args.output}.journal: cannot be used ({error}). Check the disk's space; if the files are damaged, "
            "delete the folder to begin anew."
        ) from error


if __name__ == "__main__":
    run_main(main)
