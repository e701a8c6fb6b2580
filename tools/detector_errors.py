#!/usr/bin/env python3
"""Measure how far a detector's boxes lie from the instances of its training set, to train SAM with the same errors.

The file holds (dx0 / w, dy0 / h, dx1 / w, dy1 / h) of each detection that is of an instance (same class, IoU >= 0.5).
A training with --prompt detector draws from it: model.prompts.detector.train.errors=FILE.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from sam_d2.cli import check_output, require_one_process, run_main
from sam_d2.errors import UserError

EXAMPLE = """examples:
  python tools/detector_errors.py experiments/output/mask_rcnn_R_18_FPN_quickstart --dataset quickstart \\
      --output errors.json
  python experiments/train_net.py --config-file configs/sam_tiny.py --dataset quickstart --prompt detector \\
      model.prompts.detector.train.errors=errors.json dataloader.detector.config=RUN_OF_THE_DETECTOR
Exit code: 0 written, 2 not."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("detector", metavar="RUN|CONFIG", help="a detector's run folder, or its config file")
    parser.add_argument("--dataset", required=True, metavar="NAME|FOLDER|FILE", help="its training images are taken")
    parser.add_argument("--output", required=True, metavar="FILE", help="the JSON to write")
    parser.add_argument(
        "--boxes",
        choices=("file", "mask"),
        default="file",
        help="measure against the annotated boxes, or the tight ones of the masks, for a training with "
        "dataloader.train.mapper.recompute_boxes=true, such as sam_tiny_256.py's (default: %(default)s)",
    )
    parser.add_argument("--weights", metavar="FILE", help="instead of the run's or the config's")
    parser.add_argument("--min-score", type=float, default=0.05, help="of a detection (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    parser.add_argument("--num-workers", type=int, default=2, metavar="N", help="processes that read images")
    return parser


def main() -> int:
    require_one_process("detector_errors.py")
    args = build_parser().parse_args()
    if not 0 <= args.min_score <= 1:
        raise UserError(f"--min-score {args.min_score}: expected 0 to 1.")
    check_output(Path(args.output))
    import msgspec

    from detectron2.utils.logger import setup_logger
    from sam_d2.atomic import write_atomically
    from sam_d2.data import resolve_dataset
    from sam_d2.engine.console import quiet_console
    from sam_d2.engine.distributed import choose_device
    from sam_d2.evaluation import InstanceEvaluator
    from sam_d2.evaluation.box_source import DetectorBoxes
    from sam_d2.evaluation.edge_errors import edge_errors
    from sam_d2.evaluation.results import NO_PROMPT, truth_text
    from sam_d2.model_source import find_model

    for name in ("sam_d2", "detectron2"):
        setup_logger(name=name)
    quiet_console()
    cfg, weights = find_model(args.detector, args.weights, option="--weights")
    if "prompts" in cfg.model:
        raise UserError(f"{args.detector}: its model takes prompts; name a detector.")
    evaluator = InstanceEvaluator(
        resolve_dataset(args.dataset).train, prompt=NO_PROMPT, prompt_source="detector", score="class_score"
    )
    evaluator.reset()  # reads the ground truth
    with TemporaryDirectory() as scratch:  # for the results file of an evaluation
        source = DetectorBoxes(
            cfg,
            weights,
            min_score=args.min_score,
            max_boxes=None,
            device=choose_device(args.device),
            num_workers=args.num_workers,
            output_dir=Path(scratch),
        )
        prompts, _ = source.boxes_for(evaluator)
    assert evaluator.ground_truth is not None  # read above
    errors = edge_errors(
        evaluator.ground_truth, prompts.__getitem__, detector=str(weights), recompute_boxes=args.boxes == "mask"
    )
    pseudo = truth_text(evaluator.ground_truth.pseudo > 0)
    write_atomically(Path(args.output), msgspec.json.encode(errors))
    print(
        f"{args.output}: errors of {len(errors.errors)} of {errors.instances} instances of {errors.dataset}{pseudo}, "
        "in % of the side (mean, standard deviation): "
        + ", ".join(
            f"{edge} {100 * mean:+.1f} {100 * std:.1f}"
            for edge, mean, std in zip(("left", "top", "right", "bottom"), errors.mean, errors.std, strict=True)
        )
    )
    return 0


if __name__ == "__main__":
    run_main(main)
