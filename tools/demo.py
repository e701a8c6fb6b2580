#!/usr/bin/env python3
"""Run a model on images: overlays, and all results as one COCO results JSON.

  a run's model, of any family without prompts:
    python tools/demo.py --config-file RUN --input photos/*.jpg --output found
  SAM, in the boxes that it has found:
    python tools/demo.py --config-file configs/sam.py --input photos/*.jpg --output masks
      --prompt-boxes found/results.json
  both at once:
    python tools/demo.py --config-file configs/sam.py --input photos/*.jpg --output masks --detector RUN

DIR/results.json holds what is sure enough: bbox XYWH in pixels of the image, segmentation as RLE, file_name, and
image_id where the file's name is a number or --prompt-boxes has one. category_id is that of the data set of the run,
which its config.yaml has; of a config without a run it is its data set's, and counts from 0 where there is none. The
boxes of a file are asked as an evaluation asks them: by the recipe of detector prompts, with dataloader.detector's
min_score and max_boxes; one without a score counts as certain. An image that cannot be read is reported and skipped.
Exit code: 0 all images done, 1 some skipped, 2 wrong input.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam_d2.cli import check_output, run_main
from sam_d2.errors import UserError
from sam_d2.run_folders import require_run

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from detectron2.structures import Instances
    from sam_d2.data.prompt_boxes import PromptBox
    from sam_d2.model_classes import ModelClasses
    from sam_d2.predictor import Predictor

RESULTS = "results.json"
SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config-file", required=True, type=Path, metavar="RUN|FILE", help="a run's folder, or a .py or .yaml"
    )
    parser.add_argument(
        "--input", required=True, nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of images"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="default: model_final.pth beside config.yaml, else the config's train.init_checkpoint",
    )
    parser.add_argument(
        "--confidence",
        type=float,
        default=0.5,
        metavar="X",
        help="least score, 0-1; 0 keeps all (default: %(default)s)",
    )
    boxes = parser.add_mutually_exclusive_group()
    boxes.add_argument("--prompt-boxes", metavar="FILE", help="for SAM: a COCO results JSON with a box per mask")
    boxes.add_argument(
        "--detector",
        metavar="RUN|FILE",
        help="for SAM: a run's folder or a config file of what finds the boxes (default: the config's)",
    )
    parser.add_argument(
        "--detector-weights", metavar="FILE", help="default: the run's model_final.pth, else the config's"
    )
    args = parser.parse_args()
    if not 0 <= args.confidence <= 1:
        parser.error("--confidence must be 0 to 1")
    return args


def image_files(inputs: list[Path]) -> list[Path]:
    """Return the files that are named, and in their places the images of the folders that are."""
    files: list[Path] = []
    for path in inputs:
        if not path.exists():
            raise UserError(f"--input {path}: no such file or folder.")
        if not path.is_dir():
            files.append(path)
            continue
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not found:
            raise UserError(f"--input {path}: the folder holds no {', '.join(sorted(SUFFIXES))}.")
        files += found
    return list(dict.fromkeys(files))


def load_predictor(args: argparse.Namespace, cfg: DictConfig) -> Predictor:
    from sam_d2.model_source import find_model
    from sam_d2.predictor import Predictor

    _, weights = find_model(args.config_file, args.weights, option="--weights")
    return Predictor(cfg, weights, detector=args.detector, detector_weights=args.detector_weights)


def detect(predictor: Predictor, image: Any, boxes: list[PromptBox] | None, counts: Counter[str]) -> Instances:
    """Return the instances of an image, in the boxes where there are some; those have their category ids as classes.

    What becomes of the boxes is added to ``counts``.
    """
    from sam_d2.evaluation.prompt_file import detections_of

    if boxes is None:
        return predictor(image)
    instances, of_image = predictor.in_boxes_of(image, detections_of(0, boxes, [box.category for box in boxes]))
    counts.update(of_image)
    return instances


def result_rows(
    file: Path, instances: Instances, category_ids: list[int], prompts: list[PromptBox] | None
) -> Iterator[dict[str, Any]]:
    """Return COCO results of an image."""
    from sam_d2.data.prompt_boxes import id_in_name
    from sam_d2.evaluation.coco_evaluator import encode_masks

    image_id = next((box.image_id for box in prompts or [] if box.image_id is not None), id_in_name(file))
    rles = encode_masks(instances.pred_masks)
    for row, (x0, y0, x1, y1) in enumerate(instances.pred_boxes.tensor.tolist()):
        rle = rles[row]
        yield {
            **({} if image_id is None else {"image_id": image_id}),
            "file_name": str(file),
            "category_id": category_ids[row],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": float(instances.scores[row]),
            "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")},
        }


def process(
    predictor: Predictor,
    file: Path,
    boxes: list[PromptBox] | None,
    classes: ModelClasses | None,
    confidence: float,
    path: Path,
    counts: Counter[str],
) -> list[dict[str, Any]]:
    """Predict on one image, in its boxes where there are some, and write its overlay; returns its results."""
    from sam_d2.data.image import read_image
    from sam_d2.evaluation.overlay import draw_instances, write_jpeg

    image = read_image(file)
    instances = detect(predictor, image, boxes, counts)
    # A predicted IoU may be below 0: SAM does not bound it.
    sure = (instances.scores >= (confidence or -float("inf"))).nonzero()[:, 0]
    instances = instances[sure]
    ids = found = instances.pred_classes.tolist()
    names = [str(number) for number in found]
    if classes is not None:
        ids, names = [classes.ids[index] for index in found], [classes.names[index] for index in found]
    labels = [f"{name} {score:.2f}" for name, score in zip(names, instances.scores.tolist(), strict=True)]
    write_jpeg(path, draw_instances(image, instances, labels))
    return list(result_rows(file, instances, ids, boxes))


def main() -> int:
    args = parse_args()
    check_output(args.output / RESULTS)
    files = image_files(args.input)
    import msgspec
    from omegaconf import OmegaConf
    from rich.console import Console
    from rich.progress import track

    from sam_d2.atomic import write_atomically
    from sam_d2.config import load_config
    from sam_d2.data.findings import plural
    from sam_d2.data.prompt_boxes import PromptBoxes
    from sam_d2.engine.oom import is_out_of_memory
    from sam_d2.evaluation.detector_prompts import COUNTS
    from sam_d2.evaluation.overlay import overlay_paths
    from sam_d2.model_classes import classes_of
    from sam_d2.model_source import find_model

    if not args.config_file.suffix:
        require_run(args.config_file, "--config-file ", others="config file")
    cfg = load_config(args.config_file)
    if args.detector:
        find_model(args.detector, args.detector_weights, option="--detector-weights", named="--detector ")
    finds = args.detector or OmegaConf.select(cfg, "dataloader.detector.config")
    if "prompts" in cfg.model and args.prompt_boxes is None and not finds:
        raise UserError(
            f"{args.config_file}: SAM needs to be told where to look. Add --detector RUN, or --prompt-boxes FILE with "
            '[{"file_name": "a.jpg", "bbox": [x, y, width, height]}, ...].'
        )
    if "prompts" not in cfg.model and (args.prompt_boxes is not None or args.detector is not None):
        option = "--detector" if args.prompt_boxes is None else "--prompt-boxes"
        raise UserError(f"{option}: the model of {args.config_file} takes no prompts. Leave it out.")
    boxes = PromptBoxes(args.prompt_boxes) if args.prompt_boxes else None
    if boxes is not None and not any(boxes.of(file) for file in files):
        raise UserError(
            f"--prompt-boxes {args.prompt_boxes}: none of its {len(boxes.rows)} rows is of an --input image."
        )
    predictor = load_predictor(args, cfg)
    detector = predictor.detector or (predictor.finder.detector if boxes is None else None)
    classes = None if detector is None else classes_of(detector.cfg, detector.num_classes)
    finds = "" if detector is None or predictor.detector is not None else f" in the boxes of {predictor.finder.weights}"
    print(f"Predicting with {predictor.weights}{finds}")
    paths = overlay_paths(files, args.output)
    results: list[dict[str, Any]] = []
    skipped: list[str] = []
    counts: Counter[str] = Counter()
    for file in track(files, "images", console=Console(stderr=True)):
        try:
            asked = None if boxes is None else boxes.of(file)
            results += process(predictor, file, asked, classes, args.confidence, paths[file], counts)
        except UserError as error:
            skipped.append(str(error))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            skipped.append(f"{file}: too large for the memory of the device; make it smaller, or cut it into tiles")
    write_atomically(args.output / RESULTS, msgspec.json.encode(results))
    for kind, words in COUNTS.items():
        if counts[kind]:
            print(f"--prompt-boxes: {plural(counts[kind], 'box', 'boxes')} {words}", file=sys.stderr)
    for message in skipped:
        print(f"skipped: {message}", file=sys.stderr)
    found = f"{plural(len(results), 'instance')} of score >= {args.confidence:g}"
    done = f"{len(files) - len(skipped)} of {plural(len(files), 'image')}"
    print(f"overlays and {RESULTS} in {args.output}: {found} in {done}")
    if not results and args.confidence and len(skipped) < len(files):
        print("Nothing was sure enough: lower --confidence, or keep everything with --confidence 0.")
    return 1 if skipped else 0


if __name__ == "__main__":
    run_main(main)
