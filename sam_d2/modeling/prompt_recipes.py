"""What each ``--prompt`` means: how its prompts are drawn in training and what is asked at a test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sam_d2.errors import UserError
from sam_d2.modeling.prompt_samplers import PromptSampler


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

    Raises:
        UserError: a number of corrections is negative.
    """

    train: PromptSampler | None = None
    test: PromptSampler | None = None
    tested_as: Sequence[str] = ()
    train_corrections: int = 0
    test_corrections: int = 0

    def __post_init__(self) -> None:
        """Refuse a number of clicks that does not exist."""
        if self.train_corrections < 0 or self.test_corrections < 0:
            raise UserError(
                f"model.prompts.*: train_corrections={self.train_corrections} and "
                f"test_corrections={self.test_corrections}: expected at least 0."
            )


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
