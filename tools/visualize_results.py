#!/usr/bin/env python3
"""Draw every test image of a run twice: with its ground truth, and with what the run predicted.

    python tools/visualize_results.py experiments/output/mask_rcnn_R_18_FPN_quickstart --output pictures

Reads coco_instances_results.json, which every evaluation writes into the run's folder; needs no model.
Exit code: 0 all drawn, 1 some images could not be read, 2 wrong input.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sam_d2.cli import check_output, run_main
from sam_d2.errors import UserError

RESULTS = "coco_instances_results.json"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder, as train_net.py writes it")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="a JPEG for each image is put there")
    parser.add_argument("--dataset", metavar="NAME", help="whose test images were predicted (default: the run's)")
    parser.add_argument(
        "--confidence",
        type=float,
        metavar="X",
        help="least score that is drawn (default: 0.5; all, where the prompts were the ground truth's)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="the first N images (default: all)")
    return parser


def main() -> int:
    args = build_parser().parse_args()
    results = args.run / RESULTS
    if not results.is_file():
        raise UserError(f"{results}: no such file. An evaluation writes it: train_net.py --eval-only.")
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit {args.limit}: expected at least 1.")
    check_output(args.output / "image.jpg")
    import msgspec
    from rich.console import Console
    from rich.progress import track

    from sam_d2.config import load_config
    from sam_d2.data import resolve_dataset
    from sam_d2.data.image import read_image
    from sam_d2.evaluation.detections import detections_from_coco
    from sam_d2.evaluation.ground_truth import GroundTruth
    from sam_d2.evaluation.overlay import overlay_paths, write_jpeg
    from sam_d2.evaluation.results import read_report
    from sam_d2.evaluation.side_by_side import side_by_side

    config = args.run / "config.yaml"
    if args.dataset is None and not config.is_file():
        raise UserError(f"{config}: no such file, as where nothing but an evaluation was run. Add --dataset NAME.")
    dataset = args.dataset or load_config(config).train.dataset
    truth = GroundTruth.from_catalog(resolve_dataset(dataset).test)
    try:
        rows = msgspec.json.decode(results.read_bytes())
    except msgspec.DecodeError as error:
        raise UserError(f"{results}: no COCO results list ({error}). Evaluate again.") from error
    found = {image.image_id: image for image in detections_from_coco(rows, truth)}
    confidence = args.confidence
    if confidence is None:
        report = args.run / "report.json"
        sources = {row.prompt_source for row in read_report(report)} if report.is_file() else set()
        confidence = -float("inf") if sources == {"ground_truth"} else 0.5
    images = truth.images[: args.limit]
    paths = overlay_paths([Path(image.file_name) for image in images], args.output)
    skipped: list[str] = []
    for image in track(images, "images", console=Console(stderr=True)):
        try:
            pixels = read_image(image.file_name)
        except UserError as error:
            skipped.append(str(error))
            continue
        drawn = side_by_side(pixels, image, found.get(image.image_id), truth.class_names, confidence)
        write_jpeg(paths[Path(image.file_name)], drawn)
    for message in skipped:
        print(f"skipped: {message}", file=sys.stderr)
    print(f"{len(images) - len(skipped)} of {len(images)} images of {truth.name}: {args.output}")
    return 1 if skipped else 0


if __name__ == "__main__":
    run_main(main)
