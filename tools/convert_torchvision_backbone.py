"""Turn the ImageNet weights of a torchvision ResNet into a .pkl that a Detectron2 model begins with."""

import argparse
from pathlib import Path

from sam_d2.cli import run_main
from sam_d2.errors import UserError

EXAMPLE = """example:
  python tools/convert_torchvision_backbone.py resnet50-0676ba61.pth --output r50.pkl
Then set train.init_checkpoint=r50.pkl, model.input_format=RGB, model.pixel_mean=[123.675,116.28,103.53],
model.pixel_std=[58.395,57.12,57.375] and stride_in_1x1=False of the backbone's stages.
Exit code: 0 written, 2 not."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="torchvision's .pth")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="the .pkl to write")
    return parser


def main() -> int:
    args = build_parser().parse_args()
    if args.output.suffix != ".pkl":
        raise UserError(f"{args.output} must end with .pkl: by that Detectron2 knows the format.")
    if args.output.exists():
        raise UserError(f"{args.output} exists. Delete it, or name another --output.")
    if not args.output.parent.is_dir():
        raise UserError(f"{args.output.parent} does not exist. Make the folder, or name another --output.")

    from sam_d2.engine.torchvision_backbone import convert_file

    count = convert_file(args.checkpoint, args.output)
    print(f"{args.output}: {args.output.stat().st_size:,} bytes, {count} weights of {args.checkpoint}")
    return 0


if __name__ == "__main__":
    run_main(main)
