"""Write a run's weights as one file that the model's own library reads: segment_anything, Detectron2 or torchvision.

For labelling tools that take SAM's own files, and for programs that run detectors without sam_d2.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sam_d2.cli import check_output, run_main
from sam_d2.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLE = """example:
  python tools/export_checkpoint.py experiments/output/sam_cells_box --output sam_cells.pth
  python -c "from segment_anything import sam_model_registry; sam_model_registry['vit_b'](checkpoint='sam_cells.pth')"
Exit code: 0 written, 2 not."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", metavar="RUN|CHECKPOINT", help="a run's folder, which means its model_final.pth")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="the .pth to write")
    parser.add_argument(
        "--config-file", type=Path, metavar="FILE", help="of a LoRA checkpoint that has no config.yaml beside it"
    )
    return parser


def main() -> int:
    args = build_parser().parse_args()
    if args.output.exists():
        raise UserError(f"{args.output} exists. Delete it, or name another --output.")
    if not args.output.parent.is_dir():
        raise UserError(f"{args.output.parent} does not exist. Make the folder, or name another --output.")
    check_output(args.output)

    from sam_d2.engine.checkpoint_file import save_checkpoint_file
    from sam_d2.engine.export import checkpoint_of, file_content, official_state_dict

    checkpoint = checkpoint_of(args.checkpoint)
    state = official_state_dict(checkpoint, args.config_file)
    save_checkpoint_file(file_content(state), args.output)
    print(f"{args.output}: {args.output.stat().st_size:,} bytes, {len(state)} weights of {checkpoint}")
    print_use(state, args.output, checkpoint, args.config_file)
    return 0


def print_use(state: dict[str, Tensor], file: Path, checkpoint: Path, config_file: Path | None) -> None:
    """Say how the model's own library loads the file."""
    from sam_d2.engine.export import (
        is_calibrated,
        library_of,
        registry_name,
        torchvision_lines,
        wants_drawn_boxes,
    )

    library = library_of(state)
    if library == "torchvision":
        beside = checkpoint.parent / "config.yaml"
        config = config_file or (beside if beside.is_file() else None)
        lines = [*torchvision_lines(state, config), f'model.load_state_dict(torch.load("{file}"))']
        print("Load it with", *(f"  {line}" for line in lines), sep="\n")
        if config is None:
            print("WARNING: no config.yaml lies beside it, so its settings are unknown: name its --config-file.")
        print("Norms that were frozen here learn there in train(); call eval(), or freeze them there too.")
        return
    if library == "detectron2":
        print(f"Load it in Detectron2 as train.init_checkpoint={file} of a LazyConfig, MODEL.WEIGHTS {file} of a YAML.")
        return
    name = registry_name(state)
    if name is None:
        print("Its sizes are none of SAM's published ones: only a program that builds the same modules can load it.")
    else:
        print(f'Load it with sam_model_registry["{name}"](checkpoint="{file}"), or in a tool as SAM {name}.')
    if is_calibrated(checkpoint):
        print(
            "Its calibration of scores is left behind, because SAM's own format has no place for one: the exported "
            f"model gives its predicted IoU as it is. The calibration stays in {checkpoint}."
        )
    if wants_drawn_boxes(checkpoint):
        print(
            "WARNING: these weights were trained with model.draw_boxes=true. A program that gives a box alone gets "
            "worthless masks: it must send each box as mask_input too, the mask logits that "
            "sam_d2.modeling.prompts.Prompts.with_drawn_boxes makes of it."
        )


if __name__ == "__main__":
    run_main(main)
