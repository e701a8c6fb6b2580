#!/usr/bin/env python3
"""Measure how much worse prompts cost: AP and mean IoU of SAM checkpoints over box noise and numbers of points.

Every checkpoint is evaluated on the whole test set, once for each level: boxes of the ground truth moved (shift) or
made larger or smaller (scale) by a share of their sides, and points inside of the masks. The noise is the same for all.
Writes prompt_robustness.json and prompt_robustness.png, and prints a table.
"""

import argparse
from pathlib import Path

from sam_d2.cli import check_output, require_one_process, run_main
from sam_d2.errors import UserError

EXAMPLE = """examples:
  python tools/prompt_robustness.py experiments/output/sam_tiny_quickstart_box --dataset quickstart --output robustness
  python tools/prompt_robustness.py RUN_A RUN_B RUN_C/model_best.pth --dataset cells --output robustness \\
      --shift 0,0.1,0.3 --scale 0 --points 1,3 train.device=cpu
Exit code: 0 written, 2 not."""
LEVELS = "0,0.05,0.1,0.15,0.2,0.25,0.3"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN|CHECKPOINT|CONFIG",
        help="a SAM run's folder, a checkpoint in one, or a config file with the weights that it names; "
        "key=value among them changes the config of all",
    )
    parser.add_argument("--dataset", required=True, metavar="NAME|FOLDER|FILE", help="its test images are taken")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the JSON and the plot")
    shares = "shares of the side, separated by commas, '' for none (default: %(default)s)"
    parser.add_argument("--shift", type=_shares, default=LEVELS, metavar="LEVELS", help=f"how far boxes move: {shares}")
    parser.add_argument("--scale", type=_shares, default=LEVELS, metavar="LEVELS", help=f"how much they grow: {shares}")
    parser.add_argument(
        "--points",
        type=_counts,
        default="1,2,3,5,10",
        metavar="LEVELS",
        help="numbers of points (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    return parser


def _shares(text: str) -> list[float]:
    levels = [float(word) for word in text.split(",") if word.strip()]
    if not all(0 <= level < 1 for level in levels):
        raise argparse.ArgumentTypeError(f"{text}: expected shares of the side, 0 to below 1, such as 0,0.1,0.3")
    return levels


def _counts(text: str) -> list[int]:
    levels = [int(word) for word in text.split(",") if word.strip()]
    if not all(1 <= level <= 100 for level in levels):
        raise argparse.ArgumentTypeError(f"{text}: expected numbers of points, 1 to 100, such as 1,3,5")
    return levels


def _labels(runs: list[str]) -> list[str]:
    """Return what to call each checkpoint: the name of its folder or file, or all of its path where names are equal."""
    if len(set(runs)) < len(runs):
        raise UserError(f"{next(run for run in runs if runs.count(run) > 1)} is named twice; once will do.")
    paths = [Path(run) for run in runs]
    short = [f"{path.parent.name}/{path.name}" if path.suffix == ".pth" else path.resolve().name for path in paths]
    return [run if short.count(name) > 1 else name for name, run in zip(short, runs, strict=True)]


def main() -> int:
    require_one_process("prompt_robustness.py")
    args = build_parser().parse_intermixed_args()
    opts = [word for word in args.runs if "=" in word and not Path(word).exists()]
    runs = [word for word in args.runs if word not in opts]
    if not runs:
        raise UserError("No checkpoint is named, only changes to a config. Name a run's folder.")
    folder = Path(args.output)
    files = {kind: folder / f"prompt_robustness.{kind}" for kind in ("json", "png")}
    for file in files.values():
        check_output(file)
    import logging

    from rich.console import Console

    from detectron2.utils.logger import setup_logger
    from sam_d2.atomic import write_atomically
    from sam_d2.config import apply_overrides
    from sam_d2.data import resolve_dataset
    from sam_d2.engine.console import quiet_console
    from sam_d2.engine.distributed import choose_device
    from sam_d2.evaluation import GroundTruth
    from sam_d2.evaluation.coco_metrics import detection_limit
    from sam_d2.evaluation.robustness import conditions, load_sam, measure
    from sam_d2.evaluation.robustness_report import (
        Measured,
        Robustness,
        robustness_json,
        robustness_table,
        write_plot,
    )
    from sam_d2.labelling.progress import LabelProgress
    from sam_d2.model_source import find_model
    from sam_d2.modeling.prompt_recipes import PromptRecipe

    asked = conditions(args.shift, args.scale, args.points, seed=args.seed)
    for name in ("sam_d2", "detectron2"):
        setup_logger(name=name)
    quiet_console()
    logging.getLogger("sam_d2.evaluation").setLevel(logging.WARNING)  # the same lines at each level
    models = {}
    for label, run in zip(_labels(runs), runs, strict=True):
        path = Path(run)
        weights = path if path.is_file() and path.suffix == ".pth" else None
        cfg, file = find_model(path.parent / "config.yaml" if weights else run, weights)
        if "prompts" not in cfg.model:
            raise UserError(f"{run}: its model takes no prompts; name a run of SAM.")
        models[label] = apply_overrides(cfg, opts), file
    recomputed = {bool(cfg.dataloader.test.mapper.recompute_boxes) for cfg, _ in models.values()}
    if len(recomputed) > 1:
        raise UserError(
            "The runs differ in dataloader.train.mapper.recompute_boxes, so they would be given different boxes. "
            "Add dataloader.test.mapper.recompute_boxes=false (or true) for all."
        )
    if len({cfg.dataloader.evaluator.get("max_dets") for cfg, _ in models.values()}) > 1:
        raise UserError(
            "The runs differ in dataloader.evaluator.max_dets, so their AP would not compare. Add "
            "dataloader.evaluator.max_dets=100 for all."
        )
    truth = GroundTruth.from_catalog(resolve_dataset(args.dataset).test)
    if not truth.count_instances():
        raise UserError(f"--dataset {args.dataset}: {truth.name} has no instance with a mask to prompt for.")
    results, scores, limits = [], {}, set()
    for label, (cfg, file) in models.items():
        print(f"{label}: {len(truth.images)} images, {len(asked)} evaluations")
        model = load_sam(cfg, file, choose_device(cfg.train.device))
        scores[label] = model.score_name(PromptRecipe())  # of the conditions' recipes, which have none of their own
        limits.add(cfg.dataloader.evaluator.get("max_dets") or detection_limit(truth))
        progress = LabelProgress(len(truth.images))
        try:
            found = measure(model, cfg, truth, asked, on_image=progress.add)
        finally:
            progress.close()
        order = sorted(found, key=lambda key: (("shift", "scale", "points").index(key[0]), key[1]))
        results += [Measured(label, kind, level, **found[kind, level], seed=args.seed) for kind, level in order]
    robustness = Robustness(
        dataset=truth.name,
        images=len(truth.images),
        instances=truth.count_instances(),
        pseudo_ground_truth=truth.pseudo > 0,
        seed=args.seed,
        checkpoints={label: str(file) for label, (_, file) in models.items()},
        scores=scores,
        max_dets=limits.pop(),
        results=results,
    )
    write_atomically(files["json"], robustness_json(robustness))
    write_plot(files["png"], robustness)
    Console().print(robustness_table(robustness))
    print(f"Wrote {files['json']} and {files['png']}")
    return 0


if __name__ == "__main__":
    run_main(main)
