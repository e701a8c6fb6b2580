#!/usr/bin/env python3
"""Show images as a model gets them: after the mapper, with their masks and prompts.

    python tools/visualize_data.py --config-file configs/sam_tiny.py --dataset quickstart --prompt box
    python tools/visualize_data.py --config-file configs/sam.py --dataset iwp --prompt point --split test --count 6

The training split comes in the order, with the augmentations and with the prompts of the first training steps;
the test split as it is evaluated. The config is the one that experiments/train_net.py would build, custom_cfg
included.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sam_d2.cli import check_output, run_main

if TYPE_CHECKING:
    import numpy as np
    from omegaconf import DictConfig

    from detectron2.structures import Instances
    from sam_d2.modeling.prompts import Prompts

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "experiments" / "output"
LONG_SIDE = 640
MASKS_AT_ONCE = 50
MOST_IMAGES = 100
FOREGROUND, BACKGROUND, BOX = "#12b76a", "#f04438", "#ffd60a"


@dataclass
class Sample:
    """One image after the mapper.

    Attributes:
        record: The mapper's dict, ``image`` (3, H, W) in the resized frame.
        image: (H, W, 3) uint8 RGB.
        prompts: In the resized frame; None where the config takes none.
    """

    record: dict[str, Any]
    image: np.ndarray
    prompts: Prompts | None


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="a .py config or a run's config.yaml")
    parser.add_argument("--dataset", metavar="NAME|FOLDER|FILE", help="as for train_net.py")
    parser.add_argument("--prompt", metavar="NAME", help="what SAM is given for each instance, as for train_net.py")
    parser.add_argument("--split", choices=("train", "test"), default="train")
    parser.add_argument("--count", type=int, default=16, metavar="N", help="images (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, metavar="FILE.png", help="default: experiments/output/data_DATASET_SPLIT_PROMPT.png"
    )
    parser.add_argument("opts", nargs="*", default=[], metavar="key=value", help="changes to the config")
    args = parser.parse_intermixed_args()
    if not 1 <= args.count <= MOST_IMAGES:
        parser.error(f"--count must be 1 to {MOST_IMAGES}")
    args.output_dir = None
    return args


def load_train_net() -> ModuleType:
    """Import experiments/train_net.py, which is a program and no part of a package."""
    spec = importlib.util.spec_from_file_location("train_net", ROOT / "experiments" / "train_net.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def samples(cfg: DictConfig, split: str) -> Iterator[Sample]:
    """The split's samples in the loader's order; endless for training."""
    from detectron2.config import instantiate

    if split == "train":
        cfg.dataloader.train.num_workers = 0
        records = (record for batch in instantiate(cfg.dataloader.train) for record in batch)
    else:
        mapper = instantiate(cfg.dataloader.test.mapper)
        records = (mapper(record) for record in instantiate(cfg.dataloader.test.dataset))
    recipes = instantiate(cfg.model.prompts) if "prompts" in cfg.model else None
    for record in records:
        image = record["image"].permute(1, 2, 0).numpy()
        if cfg.model.get("input_format", "RGB") == "BGR":
            image = image[:, :, ::-1]
        prompts = None if recipes is None else make_prompts(recipes, cfg.model.prompt, split, record)
        yield Sample(record, image, prompts)


def make_prompts(recipes: dict[str, Any], name: str, split: str, record: dict[str, Any]) -> Prompts:
    """Prompts in the resized frame, drawn as the model draws them."""
    import torch

    from sam_d2.errors import UserError

    recipe, seed = recipes[name], int(record.get("seed", 0))
    sampler = recipe.train if split == "train" else recipes[[*recipe.tested_as, name][0]].test
    if sampler is None:
        raise UserError(f"--prompt {name} has no prompts for --split {split}.")
    instances = record["instances"]
    prompts = sampler(instances, torch.Generator().manual_seed(seed))
    return prompts.rescaled(instances.image_size, tuple(record["image"].shape[-2:]))


def corrections(cfg: DictConfig, split: str) -> int:
    """Points that follow the first where the model's mask is wrong, for which there is no model here."""
    if "prompts" not in cfg.model:
        return 0
    recipes, name = cfg.model.prompts, cfg.model.prompt
    if split == "train":
        return recipes[name].get("train_corrections", 0)
    return max(recipes[test].get("test_corrections", 0) for test in recipes[name].get("tested_as") or [name])


def instance_masks(instances: Instances, size: tuple[int, int]) -> np.ndarray:
    """The masks, (N, height, width) bool, scaled to ``size`` from the frame of the instances."""
    import cv2
    import numpy as np
    import pycocotools.mask as mask_utils

    from detectron2.structures import PolygonMasks

    height, width = size
    scale = np.array([width / instances.image_size[1], height / instances.image_size[0]])
    masks = np.zeros((len(instances), height, width), dtype=bool)
    for row in range(len(instances)):
        if isinstance(instances.gt_masks, PolygonMasks):
            polygons = [
                (polygon.reshape(-1, 2) * scale).ravel().tolist() for polygon in instances.gt_masks.polygons[row]
            ]
            masks[row] = mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(polygons, height, width)))
        else:
            dense = instances.gt_masks.tensor[row].numpy().astype(np.float32)
            method = cv2.INTER_AREA if dense.shape[1] > width else cv2.INTER_LINEAR
            masks[row] = cv2.resize(dense, (width, height), interpolation=method) >= 0.5
    return masks


def draw(sample: Sample) -> np.ndarray:
    """The image with masks in changing colours and prompts over them; (h, w, 3) uint8 RGB."""
    import cv2
    import numpy as np
    import supervision as sv

    height, width = sample.image.shape[:2]
    scale = LONG_SIDE / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    canvas: Any = np.ascontiguousarray(cv2.resize(sample.image, size[::-1], interpolation=method)[:, :, ::-1])
    fill = sv.MaskAnnotator(opacity=0.35, color_lookup=sv.ColorLookup.INDEX)
    outline = sv.PolygonAnnotator(thickness=1, color_lookup=sv.ColorLookup.INDEX)
    instances = sample.record["instances"]
    for begin in range(0, len(instances), MASKS_AT_ONCE):
        masks = instance_masks(instances[begin : begin + MASKS_AT_ONCE], size)
        masks = masks[masks.any(axis=(1, 2))]
        if len(masks):
            shown = sv.Detections(xyxy=sv.mask_to_xyxy(masks), mask=masks)
            canvas = outline.annotate(fill.annotate(canvas, shown), shown)
    if sample.prompts is not None:
        canvas = draw_prompts(canvas, sample.prompts, scale)
    return canvas[:, :, ::-1]


def draw_prompts(canvas: Any, prompts: Prompts, scale: float) -> Any:
    """Boxes, points inside as dots and points outside under a triangle's tip, on BGR ``scale`` times as large."""
    import numpy as np
    import supervision as sv

    if prompts.boxes is not None and len(prompts):
        boxes = sv.Detections(xyxy=prompts.boxes.numpy() * scale)
        frame = sv.BoxAnnotator(color=sv.Color.from_hex(BOX), thickness=2, color_lookup=sv.ColorLookup.INDEX)
        canvas = frame.annotate(canvas, boxes)
    if prompts.points is None or prompts.labels is None:
        return canvas
    look: dict[str, Any] = {"outline_thickness": 1, "outline_color": sv.Color.WHITE, "position": sv.Position.CENTER}
    look["color_lookup"] = sv.ColorLookup.INDEX
    dot = sv.DotAnnotator(color=sv.Color.from_hex(FOREGROUND), radius=5, **look)
    triangle = sv.TriangleAnnotator(color=sv.Color.from_hex(BACKGROUND), base=12, height=12, **look)
    for label, annotator in ((1, dot), (0, triangle)):
        points = (prompts.points[prompts.labels == label].numpy() + 0.5) * scale  # an integer is a pixel's centre
        if len(points):
            canvas = annotator.annotate(canvas, sv.Detections(xyxy=np.concatenate([points, points], axis=1)))
    return canvas


def caption(sample: Sample) -> str:
    record, (height, width) = sample.record, sample.image.shape[:2]
    size = f"{record['width']} x {record['height']} -> {width} x {height} px"
    from sam_d2.visible_text import clean

    return f"{clean(Path(record['file_name']).name)}\n{len(record['instances'])} instances, {size}"


def main() -> int:
    args = parse_args()
    from matplotlib.lines import Line2D

    from sam_d2.errors import UserError
    from sam_d2.evaluation.gallery import write_tiles
    from sam_d2.evaluation.results import prompts_text

    if args.output is not None:
        check_output(args.output)
        if args.output.suffix.lower() != ".png":
            raise UserError(f"--output {args.output}: the picture is a PNG; name it FILE.png.")
    args.eval_only = True  # nothing is trained
    cfg = load_train_net().build_cfg(args)
    prompt = cfg.model.prompt if "prompts" in cfg.model else "none"
    registered = str(cfg.dataloader[args.split].dataset.names)
    output = args.output or OUTPUT / f"data_{registered}_{prompt}.png"
    shown = list(islice(samples(cfg, args.split), args.count))
    marks = {
        "prompt box": ("s", "none", BOX),
        "point inside": ("o", FOREGROUND, "w"),
        "outside": ("v", BACKGROUND, "w"),
    }
    has_points = any(sample.prompts is not None and sample.prompts.points is not None for sample in shown)
    has_boxes = any(sample.prompts is not None and sample.prompts.boxes is not None for sample in shown)
    names = ["prompt box"] * has_boxes + ["point inside", "outside"] * has_points
    handles = [
        Line2D(
            [], [], linestyle="", marker=shape, markersize=11, markerfacecolor=face, markeredgecolor=edge, label=name
        )
        for name in names
        for shape, face, edge in [marks[name]]
    ]
    split = "training" if args.split == "train" else "a test"
    title = f"{registered}: what the model gets in {split}, {prompts_text(prompt)}"
    further = corrections(cfg, args.split)
    if further:
        title += ", the first point of each"
    write_tiles(output, [(draw(sample), caption(sample)) for sample in shown], title, handles, columns=4)
    print(f"Wrote {output}: {len(shown)} images, {sum(len(sample.record['instances']) for sample in shown)} instances")
    if further:
        print(f"Only the first point is shown: up to {further} more follow where the model's mask is wrong.")
    return 0


if __name__ == "__main__":
    run_main(main)
