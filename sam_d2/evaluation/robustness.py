"""How much of AP and mean IoU is left where prompts are worse than the annotations: noisy boxes, few points."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig

import sam_d2  # noqa: F401  (makes detectron2 importable)
from detectron2.config import instantiate
from sam_d2.engine.checkpoint import Checkpointer
from sam_d2.errors import UserError
from sam_d2.evaluation.coco_evaluator import InstanceEvaluator
from sam_d2.evaluation.ground_truth import GroundTruth
from sam_d2.modeling.prompt_recipes import GROUND_TRUTH, PromptRecipe
from sam_d2.modeling.prompt_samplers import NoisyBoxSampler, PointSampler, PromptSampler
from sam_d2.modeling.sam import PromptableSAM


@dataclass(frozen=True)
class Condition:
    """Prompts that are asked for once.

    Attributes:
        sampler: Makes them; deterministic.
        levels: (kind, level) that they are; true boxes are the level 0 of two kinds.
    """

    sampler: PromptSampler
    levels: list[tuple[str, float]]


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
