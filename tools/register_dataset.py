"""Check a dataset and write it into the manifest, so that `--dataset NAME` finds it."""

import argparse
import functools
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from sam_d2.cli import run_main
from sam_d2.data import DatasetFile, Split, inspect_dataset_file, raise_findings
from sam_d2.data.dataset_file import common_classes, with_classes
from sam_d2.data.manifest import (
    ManifestDataset,
    ManifestSplit,
    add_to_manifest,
    check_name,
    manifest_path,
    relative_to_manifest,
)
from sam_d2.data.split import DEFAULT_FRACTION, DEFAULT_SEED, split_dataset
from sam_d2.errors import UserError

PartName = Literal["train", "test"]

EXAMPLE = """example:
  python tools/register_dataset.py nuts --train-json nuts/annotations.json --train-images nuts/images
  python experiments/train_net.py --config-file configs/sam.py --prompt box --dataset nuts

Without --test-json the images of the one file are divided, 0.8 of them for training. Nothing is copied.
Exit code: 0 registered, 2 the dataset has errors or the arguments do not fit."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", metavar="NAME", help="what --dataset will call it")
    parser.add_argument("--train-json", required=True, metavar="FILE", help="COCO JSON, or Detectron2's list of dicts")
    parser.add_argument(
        "--train-images",
        metavar="DIR",
        help="the folder that the file_name of its images is relative to (default: looked for around the file)",
    )
    parser.add_argument("--test-json", metavar="FILE", help="another file, to test on; without it one file is divided")
    parser.add_argument("--test-images", metavar="DIR", help="as --train-images, for the images of --test-json")
    parser.add_argument(
        "--split",
        type=float,
        metavar="FRACTION",
        help=f"share for training of a lone file (default {DEFAULT_FRACTION})",
    )
    parser.add_argument("--seed", type=int, help=f"of that split (default {DEFAULT_SEED})")
    parser.add_argument("--classes", metavar="A,B", help="class names, for Detectron2's form, which has none")
    parser.add_argument(
        "--boxes-only",
        action="store_true",
        help="the annotations have no masks yet: tools/masks_from_boxes.py makes them",
    )
    parser.add_argument("--manifest", metavar="FILE", help="default: SAM_D2_DATASETS, else data/datasets.json")
    parser.add_argument("--replace", action="store_true", help="overwrite another dataset of that name")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    if args.test_json is not None and (args.split is not None or args.seed is not None):
        raise UserError("--split and --seed divide one file; leave them out where there is a --test-json.")
    if args.test_json is None and args.test_images is not None:
        raise UserError("--test-images needs --test-json.")
    if args.split is not None and not 0 < args.split < 1:
        raise UserError(f"--split {args.split:g}: give the share of the images for training, between 0 and 1.")
    for option, folder in (("--train-images", args.train_images), ("--test-images", args.test_images)):
        if folder is not None and Path(folder).is_file():
            raise UserError(
                f"{option} {folder}: it is a file; name the folder of the images, such as {Path(folder).parent}."
            )
        if folder is not None and not Path(folder).is_dir():
            raise UserError(
                f"{option} {folder}: no such folder. Check the path (the working directory is {Path.cwd()})."
            )


def load_files(args: argparse.Namespace) -> dict[PartName, DatasetFile]:
    """Return the file of each part, after one error for all problems of both files."""
    read = functools.partial(inspect_dataset_file, require_masks=not args.boxes_only)
    train = read(args.train_json, args.train_images)
    test = train if args.test_json is None else read(args.test_json, args.test_images)
    files = [train] if test is train else [train, test]
    raise_findings([finding for file in files for finding in file.findings], doctor=True)
    names = common_classes(files) if args.classes is None else [name.strip() for name in args.classes.split(",")]
    train, test = with_classes(train, names), with_classes(test, names)
    raise_findings([finding for finding in train.findings + test.findings if finding.field == "classes"])
    return {"train": train, "test": test}


def print_summary(name: str, files: dict[PartName, DatasetFile], parts: dict[PartName, list[dict[str, Any]]]) -> None:
    table = Table(title=name)
    table.add_column("")
    for part in parts:
        table.add_column(part, justify="right")
    counts = {
        part: [[item["iscrowd"] for item in record["annotations"]] for record in records]
        for part, records in parts.items()
    }
    table.add_row("images", *(str(len(records)) for records in counts.values()))
    table.add_row("instances", *(str(sum(map(len, records))) for records in counts.values()))
    table.add_row("of them crowd", *(str(sum(map(sum, records))) for records in counts.values()))
    table.add_row("most in an image", *(str(max(map(len, records))) for records in counts.values()))
    table.add_row("images without any", *(str(sum(not record for record in records)) for records in counts.values()))
    table.add_row("classes", *(str(len(files[part].classes)) for part in parts))
    table.add_row("warnings of the file", *(str(len(files[part].findings)) for part in parts))
    Console().print(table)
    shown = ", ".join(files["train"].classes[:10]) + (", ..." if len(files["train"].classes) > 10 else "")
    print(f"Classes: {shown}")


def main() -> int:
    args = build_parser().parse_args()
    check_name(args.name)
    check_arguments(args)
    manifest = manifest_path(args.manifest)
    files = load_files(args)
    entry = ManifestDataset(classes=files["train"].classes, splits={})
    parts: dict[PartName, list[dict[str, Any]]] = {}
    for part, file in files.items():
        split = None
        parts[part] = file.dataset_dicts
        if args.test_json is None:
            split = Split(part, args.split or DEFAULT_FRACTION, DEFAULT_SEED if args.seed is None else args.seed)
            parts[part] = split_dataset(file.dataset_dicts, split, str(file.json_file))
        assert file.image_root is not None  # a missing image is an error, which load_files raises
        entry.splits[part] = ManifestSplit(
            relative_to_manifest(file.json_file, manifest),
            relative_to_manifest(file.image_root, manifest),
            split,
        )
    add_to_manifest(manifest, args.name, entry, replace=args.replace)
    print_summary(args.name, files, parts)
    if args.boxes_only:
        print(
            f"Registered in {manifest}. Make masks, and register the file with them to train on it:\n"
            f"  python tools/masks_from_boxes.py --dataset {args.name} --config-file configs/sam_vit_h.py "
            f"--output {args.name}_masks.json"
        )
        return 0
    print(f"Registered in {manifest}. Train with SAM ViT-B's weights, a tiny SAM from nothing on a CPU, or a detector:")
    train = "  python experiments/train_net.py --config-file configs"
    for config, prompt in (("sam", "--prompt box "), ("sam_tiny", "--prompt box "), ("mask_rcnn_R_18_FPN", "")):
        print(f"{train}/{config}.py {prompt}--dataset {args.name}")
    print("README.md has the sizes of each. Tiles with many small objects want, for example, after `make quickstart`:")
    print(f"{train}/sam_tiny_256.py --prompt box --dataset {args.name} \\")
    print("      train.init_checkpoint=experiments/output/sam_tiny_quickstart_box/model_final.pth")
    return 0


if __name__ == "__main__":
    run_main(main)
