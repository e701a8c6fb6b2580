"""What each ``--prompt`` means: how its prompts are drawn in training and what is asked at a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sam_d2.errors import UserError
from sam_d2.modeling.prompt_samplers import BoxSampler, DetectedBoxSampler, PointSampler, PromptSampler
from sam_d2.modeling.prompts import Prompts
from sam_d2.modeling.scoring import parse_score

GROUND_TRUTH, DETECTOR = "ground_truth", "detector"
"""What test prompts are made from: the annotations, or the boxes that come with the sample."""


@dataclass
class PromptRecipe:
    """One ``--prompt``.

    Attributes:
        train: sampler of the training prompts; None where the recipe is a test only.
        test: sampler of the test prompts, deterministic; None where ``tested_as`` names other recipes.
        tested_as: names of the recipes that test a model trained with this one, a row of the report each; empty for
            itself alone.
        train_corrections: rounds of training after the first: each adds a point where the mask is wrong, and the
            mask's logits as mask prompt (SAM, arXiv 2304.02643, appendix A).
        test_corrections: the same at a test, with the point innermost in the larger error.
        prompt_source: what the test prompts are made from: ``ground_truth``, the sample's ``instances``, or
            ``detector``, its ``prompt_instances``.
        score: of the test's masks in place of the model's, see :mod:`sam_d2.modeling.scoring`; None for the model's.
        refinements: rounds at a test in which the mask's logits are given again with the prompt.
        best_of_3: take the one of SAM's three masks that has the highest predicted IoU, also where the prompt is no
            single point; needs weights that have learned them.

    Raises:
        UserError: a number of rounds is negative, a source or score does not exist, or a detector's boxes are to be
            corrected, for which the truth would have to be known.
    """

    train: PromptSampler | None = None
    test: PromptSampler | None = None
    tested_as: Sequence[str] = ()
    train_corrections: int = 0
    test_corrections: int = 0
    prompt_source: str = GROUND_TRUTH
    score: str | None = None
    refinements: int = 0
    best_of_3: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be asked."""
        if self.train_corrections < 0 or self.test_corrections < 0:
            raise UserError(
                f"model.prompts.*: train_corrections={self.train_corrections} and "
                f"test_corrections={self.test_corrections}: expected at least 0."
            )
        if self.refinements < 0:
            raise UserError(f"model.prompts.*: refinements={self.refinements}: expected at least 0.")
        if self.prompt_source not in (GROUND_TRUTH, DETECTOR):
            raise UserError(f"model.prompts.*: prompt_source={self.prompt_source!r}: {GROUND_TRUTH} or {DETECTOR}.")
        if self.prompt_source == DETECTOR and self.test_corrections:
            raise UserError("model.prompts.*: test_corrections need the truth, which a detector's boxes come without.")
        if self.score is not None:
            parse_score(self.score)


def prompt_recipes(**recipes: PromptRecipe) -> dict[str, PromptRecipe]:
    """Return the recipes by the name that ``--prompt`` gives them; lets a config hold them as one node.

    Raises:
        UserError: a recipe is tested as something that is no test.
    """
    for name, recipe in recipes.items():
        for test in recipe.tested_as or [name]:
            if test not in recipes or recipes[test].test is None:
                raise UserError(f"model.prompts.{name}: {test!r} is not a recipe with test prompts.")
    return recipes


def detector_recipe(recipes: Mapping[str, PromptRecipe], tests: Sequence[str]) -> PromptRecipe:
    """Return how a model is asked for masks in a detector's boxes.

    Args:
        recipes: of the model, by name.
        tests: names of those that test it: the first of a detector's boxes counts, then the recipe ``detector``.

    Returns:
        One of ``recipes``; where there is none, as in a config of before, the boxes and ``class_score*predicted_iou``.
    """
    own = (name for name in (*tests, DETECTOR) if name in recipes and recipes[name].prompt_source == DETECTOR)
    plain = PromptRecipe(test=DetectedBoxSampler(), prompt_source=DETECTOR, score="class_score*predicted_iou")
    return next((recipes[name] for name in own), plain)


def recipe_name(recipes: Mapping[str, PromptRecipe], tests: Sequence[str], prompts: Prompts) -> str:
    """Return which recipe prompts that nobody drew by one are of, as an evaluation asks: for its calibration.

    Args:
        recipes: of the model, by name.
        tests: names of those that test it, which come first.
        prompts: of one image: boxes, or points.

    Returns:
        The first recipe, asked once and of the ground truth, that gives boxes alone, or as many points of each kind;
        where there is none what a message calls them, such as ``4-point``.
    """
    points = _points_of(prompts)
    for name in dict.fromkeys((*tests, *recipes)):
        recipe, sampler = recipes[name], recipes[name].test
        if recipe.prompt_source == DETECTOR or recipe.test_corrections or recipe.refinements or recipe.best_of_3:
            continue
        if isinstance(sampler, BoxSampler) and prompts.boxes is not None and prompts.points is None:
            return name
        if isinstance(sampler, PointSampler) and points == {(sampler.positive, sampler.negative)}:
            return name
    if prompts.boxes is not None:
        return "box" if prompts.points is None else "box-and-point"
    return f"{sum(next(iter(points)))}-point" if len(points) == 1 else "several-point"


def _points_of(prompts: Prompts) -> set[tuple[int, int]]:
    """The different numbers of positive and negative points of a prompt; none where boxes are given."""
    if prompts.boxes is not None or prompts.labels is None:
        return set()
    return {(row.count(1), row.count(0)) for row in prompts.labels.tolist()}
