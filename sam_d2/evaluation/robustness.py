"""How much of AP and mean IoU is left where prompts are worse than the annotations: noisy boxes, few points."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from msgspec import Struct
from omegaconf import DictConfig
from rich.table import Table

import sam_d2  # noqa: F401  (makes detectron2 importable)
from detectron2.config import instantiate
from sam_d2.engine.checkpoint import Checkpointer
from sam_d2.errors import UserError
from sam_d2.evaluation.coco_evaluator import InstanceEvaluator
from sam_d2.evaluation.ground_truth import GroundTruth
from sam_d2.evaluation.report_charts import SERIES
from sam_d2.modeling.prompt_recipes import GROUND_TRUTH, PromptRecipe
from sam_d2.modeling.prompt_samplers import NoisyBoxSampler, PointSampler, PromptSampler
from sam_d2.modeling.sam import PromptableSAM

VERSION = 1
AXES = {"shift": "shift of the box, % of its side", "scale": "box longer or shorter, % of its side", "points": "points"}
"""Kinds of prompt, and what their levels are."""


@dataclass(frozen=True)
class Condition:
    """Prompts that are asked for once.

    Attributes:
        sampler: Makes them; deterministic.
        levels: (kind, level) that they are; true boxes are the level 0 of two kinds.
    """

    sampler: PromptSampler
    levels: list[tuple[str, float]]


class Measured(Struct, frozen=True):
    """A checkpoint at one level.

    Attributes:
        checkpoint: What it is called.
        kind: ``shift``, ``scale`` or ``points``.
        level: Share of the side, or number of points.
        AP: Of masks, 0-100; None where undefined.
        mIoU: 0-1; None where undefined.
        seed: Of the boxes' noise.
    """

    checkpoint: str
    kind: str
    level: float
    AP: float | None
    mIoU: float | None
    seed: int


class Robustness(Struct, kw_only=True):
    """All that was measured on one dataset.

    Attributes:
        dataset: Registered name.
        images: Of it.
        instances: Of it.
        pseudo_ground_truth: Whether a model made some of the annotations.
        seed: Of the boxes' noise.
        checkpoints: File of each checkpoint, by what it is called.
        scores: Name of the score that ranks the masks of each checkpoint.
        results: By checkpoint, kind and rising level.
        version: Of this form.
    """

    dataset: str
    images: int
    instances: int
    pseudo_ground_truth: bool
    seed: int
    checkpoints: dict[str, str]
    scores: dict[str, str]
    results: list[Measured]
    version: int = VERSION

    @property
    def title(self) -> str:
        """What it was measured on, and what the truth is."""
        pseudo = ", pseudo ground truth" if self.pseudo_ground_truth else ""
        return f"{self.dataset}: {self.images} images, {self.instances} instances{pseudo}"


def conditions(
    shifts: Sequence[float], scales: Sequence[float], points: Sequence[int], *, seed: int = 0
) -> list[Condition]:
    """Return what to ask for; each level once, in rising order.

    Args:
        shifts: shares of the side, 0 to below 1.
        scales: likewise.
        points: numbers of points inside of the mask.
        seed: of the boxes' noise.

    Raises:
        UserError: there is no level at all, or one cannot be.
    """
    shifts, scales, points = sorted(set(shifts)), sorted(set(scales)), sorted(set(points))
    exact: list[tuple[str, float]] = [(kind, 0.0) for kind, of in (("shift", shifts), ("scale", scales)) if 0.0 in of]
    asked = [Condition(NoisyBoxSampler(seed=seed), exact)] if exact else []
    asked += [Condition(NoisyBoxSampler(shift=one, seed=seed), [("shift", one)]) for one in shifts if one]
    asked += [Condition(NoisyBoxSampler(scale=one, seed=seed), [("scale", one)]) for one in scales if one]
    asked += [Condition(PointSampler(positive=one), [("points", one)]) for one in points]
    if not asked:
        raise UserError("There is no level to measure: give at least one of --shift, --scale and --points.")
    return asked


def load_sam(cfg: DictConfig, weights: Path, device: torch.device) -> PromptableSAM:
    """Return a model in eval mode.

    Args:
        cfg: Of a model that takes prompts.
        weights: Its checkpoint.
        device: Of the model.

    Raises:
        UserError: The weights cannot be read or do not fit.
    """
    model: PromptableSAM = instantiate(cfg.model).to(device).eval()
    Checkpointer(model).load(str(weights))
    return model


@torch.no_grad()
def measure(
    model: PromptableSAM,
    cfg: DictConfig,
    truth: GroundTruth,
    asked: Sequence[Condition],
    *,
    on_image: Callable[[int], None] = lambda masks: None,
) -> dict[tuple[str, float], dict[str, float | None]]:
    """Evaluate a model on a dataset under each condition; every image is encoded once.

    Args:
        model: In eval mode.
        cfg: Of its run, of which ``dataloader.test`` and ``dataloader.evaluator`` are read.
        truth: Of the dataset; its name is the registered one.
        asked: What to ask for.
        on_image: Called after each image with the number of masks made.

    Returns:
        ``AP`` (0-100) and ``mIoU`` (0-1) of each kind and level; None where undefined.

    Raises:
        UserError: A score is not finite, or an image cannot be read.
    """
    cfg = cfg.copy()
    cfg.dataloader.test.dataset.names = truth.name
    cfg.dataloader.evaluator.dataset_name = truth.name
    recipes = [PromptRecipe(test=condition.sampler) for condition in asked]
    evaluators: list[InstanceEvaluator] = []
    for recipe in recipes:
        evaluator = instantiate(cfg.dataloader.evaluator)
        evaluator.ground_truth = truth
        evaluator.scores = []  # the model's own alone
        evaluator.ask("box", source=GROUND_TRUTH, score=model.score_name(recipe))
        evaluator.reset()
        evaluators.append(evaluator)
    for batch in instantiate(cfg.dataloader.test):
        images = model.preprocess(batch)
        embeddings = model.encode(images.tensor)
        for sample, embedding, size in zip(batch, embeddings, images.image_sizes, strict=True):
            masks = 0
            instances = sample["instances"]
            for recipe, evaluator in zip(recipes, evaluators, strict=True):
                assert recipe.test is not None  # given above
                prompts = recipe.test(instances, torch.Generator().manual_seed(0))
                prompts = prompts.rescaled(instances.image_size, (size[0], size[1]))
                found = model.predict(embedding, prompts, size, sample, recipe)
                evaluator.process([sample], [{"instances": found}])
                masks += len(found)
            on_image(masks)
    results: dict[tuple[str, float], dict[str, float | None]] = {}
    for condition, evaluator in zip(asked, evaluators, strict=True):
        scores = evaluator.evaluate()
        found_scores = {"AP": scores["segm"]["AP"], "mIoU": scores["prompt"]["mIoU"]}
        row = {name: None if math.isnan(value) else value for name, value in found_scores.items()}
        results.update(dict.fromkeys(condition.levels, row))
    return results


def robustness_json(robustness: Robustness) -> bytes:
    """Return the file's content, a result a line."""
    return msgspec.json.format(msgspec.json.encode(robustness), indent=1) + b"\n"


def robustness_table(robustness: Robustness) -> Table:
    """Return the terminal's table: a row for each kind and level, AP and mIoU of each checkpoint."""
    table = Table(title=robustness.title, title_justify="left")
    table.add_column("prompt")
    table.add_column("level", justify="right")
    for name in robustness.checkpoints:
        table.add_column(f"{_plain(name)}\nAP", justify="right", overflow="fold")
        table.add_column("\nmIoU", justify="right")
    levels = dict.fromkeys((row.kind, row.level) for row in robustness.results)
    by_key = {(row.checkpoint, row.kind, row.level): row for row in robustness.results}
    before = ""
    for kind, level in levels:
        cells = []
        for name in robustness.checkpoints:
            row = by_key[name, kind, level]
            cells += ["-" if row.AP is None else f"{row.AP:.2f}", "-" if row.mIoU is None else f"{row.mIoU:.4f}"]
        if before and kind != before:
            table.add_section()
        table.add_row(kind, f"{level:.0f}" if kind == "points" else f"{100 * level:g} %", *cells)
        before = kind
    return table


def _plain(text: str) -> str:
    """Return a name that rich does not take for markup."""
    return text.replace("[", r"\[")


def write_plot(path: Path, robustness: Robustness) -> None:
    """Draw AP and mean IoU over the levels of each kind, a line for each checkpoint, as a PNG."""
    kinds = [kind for kind in AXES if any(row.kind == kind for row in robustness.results)]
    figure = Figure(figsize=(4.0 * len(kinds) + 0.6, 6.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(kinds), squeeze=False, sharey="row", sharex="col")
    for column, kind in enumerate(kinds):
        for line, metric in enumerate(("AP", "mIoU")):
            axes = grid[line][column]
            for number, name in enumerate(robustness.checkpoints):
                rows = [row for row in robustness.results if (row.checkpoint, row.kind) == (name, kind)]
                x = [row.level if kind == "points" else 100 * row.level for row in rows]
                y = [math.nan if getattr(row, metric) is None else getattr(row, metric) for row in rows]
                style = {"color": SERIES[number % len(SERIES)], "marker": "o", "markersize": 4}
                axes.plot(x, y, **style)
            axes.set_ylim(0, 100 if metric == "AP" else 1)
            axes.grid(alpha=0.4)
            if kind == "points":
                axes.set_xticks(x)
            if line:
                axes.set_xlabel(AXES[kind])
            if not column:
                axes.set_ylabel("mask AP" if metric == "AP" else "mean IoU")
    # names are a user's: a _ before one hides it, a $ in it would be a formula
    names = [f" {name}" if name.startswith("_") else name for name in robustness.checkpoints]
    legend = figure.legend(grid[0][0].lines, names, loc="outside lower center", ncols=min(3, len(names)))
    for text in (*legend.get_texts(), figure.suptitle(robustness.title, fontsize=11)):
        text.set_parse_math(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
