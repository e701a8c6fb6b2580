#!/usr/bin/env python3
"""Fit a calibration of a run's scores, so that a score says what IoU to expect, and keep it in the checkpoint.

The model predicts on the images it was trained on; a rising curve from its score to the true IoU (isotonic regression)
is fitted there and written beside the weights, which stay as they are. model.calibrate=true then uses it; the order of
masks stays the same.
"""

import argparse
from tempfile import TemporaryDirectory

from sam_d2.cli import check_output, require_one_process, run_main
from sam_d2.errors import UserError

EXAMPLE = """examples:
  python tools/calibrate_scores.py experiments/output/sam_cells_box --test
  python experiments/train_net.py --config-file configs/sam.py --dataset cells --prompt box --eval-only \\
      model.calibrate=true
Exit code: 0 written, 2 not."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", metavar="RUN|CHECKPOINT", help="a run's folder, which means its model_final.pth")
    parser.add_argument(
        "--split",
        metavar="NAME|FOLDER|FILE",
        help="what to fit on: NAME_train, NAME_val or NAME_test of a registered dataset, NAME or a folder for its "
        "training images, or all of a file (default: the run's training images)",
    )
    parser.add_argument(
        "--test", action="store_true", help="say the error before and after on the run's test images too"
    )
    parser.add_argument(
        "opts", nargs="*", metavar="key=value", help="changes to the run's config, such as model.score=stability"
    )
    return parser


def main() -> int:
    with TemporaryDirectory() as scratch:
        return calibrate(scratch)


def calibrate(scratch: str) -> int:
    """Do it all; what an evaluation would write into the run's folder goes to ``scratch``."""
    require_one_process("calibrate_scores.py")
    args = build_parser().parse_intermixed_args()  # so that key=value may follow options
    from detectron2.config import instantiate
    from detectron2.utils.logger import setup_logger
    from sam_d2.config import apply_overrides, load_config
    from sam_d2.data import resolve_dataset
    from sam_d2.data.resolve import resolve_part
    from sam_d2.engine.checkpoint import Checkpointer
    from sam_d2.engine.checkpoint_file import load_checkpoint_file, save_checkpoint_file
    from sam_d2.engine.console import quiet_console
    from sam_d2.engine.distributed import choose_device
    from sam_d2.engine.export import checkpoint_of
    from sam_d2.engine.weights import checkpoint_folders
    from sam_d2.evaluation.box_source import box_source
    from sam_d2.evaluation.calibration import measure_scores, with_calibrations

    checkpoint = checkpoint_of(args.checkpoint)
    config = checkpoint.parent / "config.yaml"
    if not config.is_file():
        raise UserError(f"{checkpoint}: no config.yaml lies beside it. Name a run's folder or a checkpoint in one.")
    if checkpoint.resolve().parent in checkpoint_folders():
        raise UserError(
            f"{checkpoint}: lies in a checkpoints folder, where other runs know it by its sha256. Calibrate a copy."
        )
    check_output(checkpoint, "RUN|CHECKPOINT")
    cfg = apply_overrides(load_config(config), args.opts)
    cfg.train.output_dir = scratch  # of a detector's boxes: the run keeps those of its own evaluation
    if "prompts" not in cfg.model:
        raise UserError(f"{config}: its model takes no prompts; only SAM's scores can be calibrated.")
    with_calibrations(load_checkpoint_file(checkpoint, mmap=True), {}, str(checkpoint))  # has it a place for them?
    for name in ("sam_d2", "detectron2"):
        setup_logger(name=name)
    quiet_console()
    resolve_dataset(cfg.train.dataset)
    train, test = str(cfg.dataloader.train.dataset.names), str(cfg.dataloader.test.dataset.names)
    split = train if args.split is None else resolve_part(args.split)
    model = instantiate(cfg.model).to(choose_device(cfg.train.device)).eval()
    Checkpointer(model).load(str(checkpoint))
    boxes = box_source(cfg, choose_device(cfg.train.device))

    fitted, lines = {}, []
    for measured in measure_scores(model, cfg, split, boxes):
        curve = fitted[measured.prompt] = measured.fitted()
        own = "fitted on these masks" if split != test else "fitted on these masks of the test: no figure to report"
        lines.append(f"{measured.words}: ECE {measured.ece():.4f}, calibrated {measured.ece(curve):.4f} ({own})")
    for measured in measure_scores(model, cfg, test, boxes) if args.test and split != test else ():
        lines.append(
            f"{measured.words}: ECE {measured.ece():.4f}, calibrated {measured.ece(fitted[measured.prompt]):.4f}"
        )
    content = load_checkpoint_file(checkpoint)
    save_checkpoint_file(with_calibrations(content, fitted, str(checkpoint)), checkpoint)
    print("\n".join(lines))
    knots = ", ".join(f"{prompt} {len(curve.x)} knots" for prompt, curve in fitted.items())
    print(f"{checkpoint}: the calibration is in it ({knots}). Use it with model.calibrate=true.")
    return 0


if __name__ == "__main__":
    run_main(main)
